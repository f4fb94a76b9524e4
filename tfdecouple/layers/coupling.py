"""The coupling layer: some channels, and z, determine how the other channels are transformed (paper equation 6)."""

from __future__ import annotations

import math
import pkgutil
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import forward_and_log_det, inverse_and_log_det
from tfdecouple.config import CONDITIONERS
from tfdecouple.errors import ConfigError, UserError
from tfdecouple.layers.base import (
    Condition,
    Cost,
    FullLayer,
    Gradients,
    InvertibleLayer,
    Mapped,
    Nested,
    trainable_tensors,
)
from tfdecouple.layers.conditioners import MLP, ConvNet, CouplingNet, LocalConvNet
from tfdecouple.layers.split import ChannelSplit
from tfdecouple.runtime.precision import full_float32
from tfdecouple.transforms import TRANSFORMS


@keras.saving.register_keras_serializable(package="tfdecouple")
class Coupling(Nested, InvertibleLayer):
    """A coupling layer: y_a = x_a and y_b = s(x_a, z) * x_b + b(x_a, z), or another transform of x_b given x_a and z.

    A split of the channels gives x_a and x_b. A conditioner, which is a net of x_a and z, gives the parameters of the
    transform, a bijector of x_b. The condition may be a map of the size of x instead of the vector z; the net of a
    coupling that is built for a map is a `LocalConvNet`.

    Args:
        hidden: width of the coupling net, a `ConvNet` for images and an `MLP` for vectors.
        condition_size: size of z, or channels of the map, or 0 without a condition; couplings of vectors have none.
        pattern: pattern of the `ChannelSplit`, "continuous" or "alternate".
        part: which channels are transformed, "last" or "first".
        transformed: how many channels are transformed; None for half of the channels.
        transform: name of a transform in `tfdecouple/transforms.py`, such as "affine" or "additive".
        alpha: bound of the transform; an affine s lies in (1 - alpha, 1 + alpha) (paper B.2).
        conditioner: name of a `CouplingNet` in `config.CONDITIONERS`, which replaces the usual net.
        **kwargs: arguments of `InvertibleLayer`.

    Raises:
        ConfigError: if pattern, part, transform or conditioner is unknown, or alpha lies outside (0, 1].

    >>> layer = Coupling(hidden=8, condition_size=4, pattern="alternate")
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 6]), tf.zeros([2, 4]))
    >>> x, _ = layer.inverse_and_log_det(y, tf.zeros([2, 4]))
    >>> bool(tf.reduce_all(tf.abs(x - 1.0) < 1e-6))
    True
    """

    saved_arguments = (
        "hidden", "condition_size", "pattern", "part", "transformed", "transform", "alpha", "conditioner",
    )  # fmt: skip

    def __init__(
        self,
        hidden: int,
        condition_size: int = 0,
        *,
        pattern: str = "continuous",
        part: str = "last",
        transformed: int | None = None,
        transform: str = "affine",
        alpha: float = 1.0,
        conditioner: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if transform not in TRANSFORMS:
            raise ConfigError(f"transform is {transform!r}; it must be one of {', '.join(TRANSFORMS)}")
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha is {alpha}; it must lie in (0, 1]")
        if conditioner not in (None, *CONDITIONERS):
            raise ConfigError(f"conditioner is {conditioner!r}; it must be one of {', '.join(CONDITIONERS)}")
        self.hidden, self.condition_size = hidden, condition_size
        self.pattern, self.part, self.transformed = pattern, part, transformed
        self.transform, self.alpha, self.conditioner = transform, alpha, conditioner
        self.split = ChannelSplit(pattern, part, transformed)
        self.net: Any = None

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the conditioner with the shapes of its inputs, x_a and the condition.

        Raises:
            UserError: if a coupling of vectors has a condition.
        """
        unchanged, transformed = self.split.counts(x_shape[-1])
        self._outputs = TRANSFORMS[self.transform].parameters * transformed
        if self.net is None:
            if len(x_shape) != 4 and self.condition_size:
                raise UserError(
                    "a coupling of vectors takes no condition, but condition_size is "
                    f"{self.condition_size}; it must be 0"
                )
            net: type[CouplingNet] = ConvNet if len(x_shape) == 4 else MLP
            if self.conditioner is not None:
                net = pkgutil.resolve_name(CONDITIONERS[self.conditioner])
            elif self.condition_size and condition_shape is not None and len(condition_shape) == 4:
                net = LocalConvNet
            self.net = net(self._outputs, self.hidden, self.condition_size, dtype=self.dtype_policy, name="net")
        return [(self.net, (*x_shape[:-1], unchanged), condition_shape)]

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns the cost of the coupling for one image: that of its net and of its transform."""
        _, transformed = self.split.counts(x_shape[-1])
        activations = math.prod(x_shape[1:-1]) * transformed * TRANSFORMS[self.transform].count_activations(self.alpha)
        return super().cost(x_shape, condition_shape).plus(Cost(activations=activations))

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Resets the net, so that the coupling is the identity, and returns x."""
        x, _ = self._prepare(x, condition)
        self.net.reset()
        return x

    @full_float32()
    def scale(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Returns the slope dy_b/dx_b for each entry of x_b: s for an affine transform, 1 for an additive one."""
        x, condition = self._prepare(x, condition)
        x_a, x_b = self.split(x)
        bijector = self._make_bijector(self.net.call(x_a, condition))
        with tf.GradientTape() as tape:
            tape.watch(x_b)
            y_b, _ = forward_and_log_det(bijector, x_b)
        return tape.gradient(y_b, x_b)

    def _forward(self, x: tf.Tensor, condition: Condition) -> Mapped:
        x_a, x_b = self.split(x)
        y_b, log_det = forward_and_log_det(self._make_bijector(self.net.call(x_a, condition)), x_b)
        return self.split.merge(x_a, y_b), log_det

    def _inverse(self, y: tf.Tensor, condition: Condition) -> Mapped:
        y_a, y_b = self.split(y)
        x_b, log_det = inverse_and_log_det(self._make_bijector(self.net.call(y_a, condition)), y_b)
        return self.split.merge(y_a, x_b), log_det

    def _inverse_and_gradients(
        self, y: tf.Tensor, condition: Condition, y_gradient: tf.Tensor, log_det_gradient: tf.Tensor
    ) -> Gradients:
        # The coupling leaves x_a unchanged, so one run of the net serves both the inverse and the gradients.
        (x_a, y_b), (x_a_gradient, y_b_gradient) = self.split(y), self.split(y_gradient)
        inputs = [x_a, *([] if condition is None else [condition])]
        weights = trainable_tensors(self)
        with tf.GradientTape(watch_accessed_variables=False) as net_tape:
            net_tape.watch([*inputs, *weights])
            raw = self.net.call(x_a, condition)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(raw)
            bijector = self._make_bijector(raw)
            with tape.stop_recording():
                # TFP caches the inverse and would not compute the forward direction of x_b; a copy is not in the cache.
                x_b = tf.identity(inverse_and_log_det(bijector, y_b)[0])
            tape.watch(x_b)
            outputs = forward_and_log_det(bijector, x_b)
        upstream = [y_b_gradient, log_det_gradient]
        x_b_gradient, raw_gradient = tape.gradient(
            outputs, [x_b, raw], output_gradients=upstream, unconnected_gradients="zero"
        )
        (net_gradient, *rest), weight_gradients = net_tape.gradient(
            raw, [inputs, weights], output_gradients=raw_gradient
        )
        if net_gradient is not None:
            x_a_gradient += net_gradient
        x, x_gradient = self.split.merge(x_a, x_b), self.split.merge(x_a_gradient, x_b_gradient)
        return Gradients(x, x_gradient, rest[0] if rest else None, weight_gradients)

    def _make_bijector(self, raw: tf.Tensor) -> tfb.Bijector:
        """Returns the bijector that maps x_b to y_b, given the unconstrained parameters, which the net computes."""
        transform = TRANSFORMS[self.transform]
        if raw.shape[-1] != self._outputs:
            raise UserError(f"the conditioner of {self.name} gives {raw.shape[-1]} channels; it needs {self._outputs}")
        # A split is cheaper than slices: the gradient of slices sums up full-size arrays that are mostly zero.
        parameters = tf.split(raw, transform.parameters, -1) if transform.parameters > 1 else [raw]
        return transform.bijector(parameters, self.alpha)
