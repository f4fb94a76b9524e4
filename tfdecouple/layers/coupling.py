"""The conditional coupling: one part of the channels scales and shifts the other (paper equation 6, Figure 3b)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.errors import ConfigError, UserError
from tfdecouple.layers.base import InvertibleLayer
from tfdecouple.layers.nets import MLP, ConvNet
from tfdecouple.runtime.shapes import sizes, zero_per_image
from tfdecouple.runtime.tf32 import full_float32
from tfdecouple.transforms import TRANSFORMS

PATTERNS = ("continuous", "alternate")
PARTS = ("last", "first")


@keras.saving.register_keras_serializable(package="tfdecouple")
class Coupling(InvertibleLayer):
    """y_a = x_a; y_b = s(x_a, z) * x_b + b(x_a, z).

    The four split patterns of the paper's Figure 3b are the two patterns times the two choices of x_b. Of C channels,
    n_t = floor(C/2) are transformed unless another number is given, and the others are x_a:

    | pattern    | part  | transformed (x_b)      | left alone (x_a)       |
    | continuous | last  | the last n_t channels  | the first C - n_t      |
    | continuous | first | the first n_t channels | the last C - n_t       |
    | alternate  | last  | channels 1, 3, 5, ...  | channels 0, 2, 4, ...  |
    | alternate  | first | channels 0, 2, 4, ...  | channels 1, 3, 5, ...  |

    With an odd number of channels the alternate pattern falls back to the continuous one, as in the paper's code.

    Args:
        hidden: width of the coupling net.
        condition_size: size of z, or 0 for a coupling without z. Only couplings of images can have one.
        pattern: "continuous" or "alternate".
        part: which part is transformed, "last" or "first".
        transformed: n_t; None for half of the channels. Only for the continuous pattern.
        transform: "affine" or "additive" (s = 1).
        alpha: s = 1 + alpha*tanh(u/2) lies in (1 - alpha, 1 + alpha) (paper B.2).
        **kwargs: of `InvertibleLayer`.

    Raises:
        ConfigError: for an unknown pattern, part or transform, or an alpha outside (0, 1].

    >>> layer = Coupling(hidden=8, condition_size=4, pattern="alternate")
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 6]), tf.zeros([2, 4]))
    >>> x, _ = layer.inverse_and_log_det(y, tf.zeros([2, 4]))
    >>> bool(tf.reduce_all(tf.abs(x - 1.0) < 1e-6))
    True
    """

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
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value, choices in (
            ("pattern", pattern, PATTERNS),
            ("part", part, PARTS),
            ("transform", transform, TRANSFORMS),
        ):
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha is {alpha}; it must lie in (0, 1]")
        if transformed is not None and pattern != "continuous":
            raise ConfigError(f"transformed is {transformed}; only the continuous pattern takes it")
        self.hidden = hidden
        self.condition_size = condition_size
        self.pattern = pattern
        self.part = part
        self.transformed = transformed
        self.transform = transform
        self.alpha = alpha

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the coupling net for `[batch, height, width, channels]` or `[batch, channels]`."""
        self._remember_shape(x_shape)
        channels = x_shape[-1]
        self._n_transformed = channels // 2 if self.transformed is None else self.transformed
        self._n_kept = channels - self._n_transformed
        if not 0 < self._n_transformed < channels:
            raise UserError(
                f"a coupling cannot transform {self._n_transformed} of {channels} channels; "
                "both parts need at least one"
            )
        if len(x_shape) != 4 and self.condition_size:
            raise UserError(
                f"a coupling of vectors takes no condition, but condition_size is {self.condition_size}; it must be 0"
            )
        self._alternates = self.pattern == "alternate" and channels % 2 == 0
        outputs = self._n_transformed * (2 if self.transform == "affine" else 1)
        net = ConvNet if len(x_shape) == 4 else MLP
        self.net = net(outputs, self.hidden, self.condition_size, dtype=self.dtype_policy, name="net")
        self.net.build((*x_shape[:-1], self._n_kept), condition_shape)
        self.built = True

    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Makes the coupling the identity."""
        self.net.reset()
        return x

    @full_float32()
    def scale(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Returns s of the transformed channels of x; all ones for an additive coupling."""
        x, condition = self._prepare(x, condition)
        kept, transformed = self._split(x)
        scale, _ = self._bijectors(kept, condition)
        ones = tf.ones_like(transformed)
        return ones if scale is None else scale.forward(ones)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden": self.hidden,
            "condition_size": self.condition_size,
            "pattern": self.pattern,
            "part": self.part,
            "transformed": self.transformed,
            "transform": self.transform,
            "alpha": self.alpha,
        }

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        kept, transformed = self._split(x)
        scale, shift = self._bijectors(kept, condition)
        if scale is not None:
            transformed = scale.forward(transformed)
        log_det = zero_per_image(x) if scale is None else _log_det(scale)
        return self._merge(kept, shift.forward(transformed)), log_det

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        kept, transformed = self._split(y)
        scale, shift = self._bijectors(kept, condition)
        transformed = shift.inverse(transformed)
        if scale is not None:
            transformed = scale.inverse(transformed)
        log_det = zero_per_image(y) if scale is None else -_log_det(scale)
        return self._merge(kept, transformed), log_det

    def _bijectors(self, kept: tf.Tensor, condition: tf.Tensor | None) -> tuple[tfb.Bijector | None, tfb.Bijector]:
        """Returns what scales x_b (None for an additive coupling) and what shifts it."""
        parameters = self.net.call(kept, condition)
        if self.transform == "additive":
            return None, tfb.Shift(parameters)
        # Split once, since the gradient of two slices is two arrays of zeros with something in them, then their sum.
        shift, raw = tf.split(parameters, 2, -1)
        return self._scale_bijector(raw), tfb.Shift(shift)

    def _scale_bijector(self, raw: tf.Tensor) -> tfb.Bijector:
        if self.alpha == 1:
            # 1 + tanh(u/2) = 2*sigmoid(u), whose logarithm stays finite where the scale itself underflows.
            log_two = tf.math.log(tf.constant(2.0, raw.dtype))
            return tfb.Scale(log_scale=log_two + tf.math.log_sigmoid(raw))
        return tfb.Scale(1 + self.alpha * tf.tanh(raw / 2))

    def _split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (x_a, x_b)."""
        if self._alternates:
            even, odd = _even_and_odd(x)
            return (even, odd) if self.part == "last" else (odd, even)
        if self.part == "last":
            kept, transformed = tf.split(x, [self._n_kept, self._n_transformed], -1)
        else:
            transformed, kept = tf.split(x, [self._n_transformed, self._n_kept], -1)
        return kept, transformed

    def _merge(self, kept: tf.Tensor, transformed: tf.Tensor) -> tf.Tensor:
        """Undoes `_split`."""
        pair = (kept, transformed) if self.part == "last" else (transformed, kept)
        if self._alternates:
            return _interleaved(*pair)
        return tf.concat(pair, -1)


# Each undoes the other, so that each is the other's gradient.
@tf.custom_gradient
def _interleaved(even: tf.Tensor, odd: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns `[..., 2n]`, the channels of two maps `[..., n]` in turn."""
    # One long transposition takes half of the time that `tf.stack` along the last axis takes.
    pairs = tf.transpose(tf.stack([tf.reshape(even, [-1]), tf.reshape(odd, [-1])]))
    return tf.reshape(pairs, [*sizes(even)[:-1], 2 * even.shape[-1]]), _even_and_odd


@tf.custom_gradient
def _even_and_odd(x: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
    """Returns channels 0, 2, 4, ... and channels 1, 3, 5, ... of `[..., 2n]`, each `[..., n]`."""
    pairs = tf.reshape(x, [*sizes(x)[:-1], x.shape[-1] // 2, 2])
    return tuple(tf.unstack(pairs, num=2, axis=-1)), _interleaved


def _log_det(scale: tfb.Scale) -> tf.Tensor:
    """Returns the log-determinant of a scaling by positive numbers `[batch, ...]`, for each image."""
    # In closed form: TFP would pass over the map for a sign, for a product by 1 and for a sum over no axis.
    log_scale = tf.math.log(scale.scale) if scale.log_scale is None else scale.log_scale
    return tf.reduce_sum(log_scale, list(range(1, len(log_scale.shape))))
