"""The prior over z: a flow from z to a standard normal (paper B.3), and layers with separate weights for each label.

The layers with weights for each label shift and scale z by the label, or compute z from the label.
"""

import functools

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.config import ModelConfig
from tfdecouple.config.shapes import Shape, name_flow_steps
from tfdecouple.layers import InvertibleLinear, InvertibleSequence
from tfdecouple.layers.base import BaseLayer, Weight
from tfdecouple.layers.conditioners import make_bias_initializer, make_kernel_initializer
from tfdecouple.networks.flow import FlowStep
from tfdecouple.numerics.kernels import get_kernels, multiply_in_full_precision
from tfdecouple.numerics.tf32 import full_float32

# As in the paper's code, the embedding is initialised within +-0.1, and hidden layers are four times as wide as z.
_EMBEDDING_RANGE, _HIDDEN_FACTOR = 0.1, 4


@keras.saving.register_keras_serializable(package="tfdecouple")
class PriorStep(FlowStep):
    """A flow step on vectors, with a linear layer instead of the 1x1 convolution; the coupling nets are MLPs."""

    _linear = InvertibleLinear


@keras.saving.register_keras_serializable(package="tfdecouple")
class PriorFlow(InvertibleSequence):
    """The prior flow, which maps z `[batch, d_z]` to standard normal noise `[batch, d_z]`.

    Args:
        steps: count of flow steps.
        hidden: width of the coupling nets.
        transform: name of the couplings' transform, such as "affine" or "additive".
        alpha: bounds the scale of an affine coupling to (1 - alpha, 1 + alpha).
        **kwargs: arguments of `InvertibleLayer`.
    """

    def __init__(self, steps: int, hidden: int, *, transform: str = "affine", alpha: float = 1.0, **kwargs: object):
        super().__init__(**kwargs)
        self.steps, self.hidden, self.transform, self.alpha = steps, hidden, transform, alpha
        couplings = {"hidden": hidden, "transform": transform, "alpha": alpha}
        self.sequence = [PriorStep(couplings, name=name, dtype=self.dtype_policy) for name in name_flow_steps(steps)]


def make_prior_flow(config: ModelConfig, name: str) -> PriorFlow:
    """Returns the `PriorFlow` of a model's config, unbuilt."""
    width, transform, alpha = config.prior_hidden, config.prior_transform, config.prior_alpha
    return PriorFlow(config.prior_steps, width, transform=transform, alpha=alpha, name=name)


class _LabelLayer(BaseLayer):
    """The base class of layers with separate weights for each of `classes` labels; `latent_dim` is the size of z."""

    def __init__(self, classes: int, latent_dim: int, **kwargs: object):
        super().__init__(**kwargs)
        self.classes = classes
        self.latent_dim = latent_dim

    def _select_rows(self, labels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns for each label `[batch]` its row of `rows` `[classes, d_z]`; a label out of range gets zeros."""
        # The gradient of `tf.gather` adds up rows in a varying order on a GPU, so a matrix product is used instead.
        return multiply_in_full_precision(get_kernels().select(labels, self.classes, rows.dtype), rows)


@keras.saving.register_keras_serializable(package="tfdecouple")
class LabelCodes(_LabelLayer):
    """A net from the label to z: embedding - FC - ELU - FC - ELU - FC, as in the paper's code ("categorical" there)."""

    def declare(self, x_shape: Shape | None = None, condition_shape: Shape | None = None) -> dict[str, Weight]:
        size, hidden = self.latent_dim, _HIDDEN_FACTOR * self.latent_dim
        embedding = functools.partial(keras.initializers.RandomUniform, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        after_size, after_hidden = (functools.partial(make_bias_initializer, fan_in) for fan_in in (size, hidden))
        return {
            "embedding": Weight((self.classes, size), embedding),
            "first": Weight((size, hidden), make_kernel_initializer),
            "first_bias": Weight((hidden,), after_size),
            "second": Weight((hidden, hidden), make_kernel_initializer),
            "second_bias": Weight((hidden,), after_hidden),
            "last": Weight((hidden, size), make_kernel_initializer),
            "last_bias": Weight((size,), after_hidden),
        }

    def compute_output_shape(self, x_shape: Shape) -> tuple:
        return (*x_shape, self.latent_dim)

    @full_float32()
    def compute_codes(self) -> tf.Tensor:
        """Returns the z of every label of the model, float32 `[classes, d_z]`."""
        read = tf.convert_to_tensor
        h = tf.nn.elu(multiply_in_full_precision(read(self.embedding), read(self.first)) + read(self.first_bias))
        h = tf.nn.elu(multiply_in_full_precision(h, read(self.second)) + read(self.second_bias))
        return multiply_in_full_precision(h, read(self.last)) + read(self.last_bias)

    @full_float32()
    def call(self, labels: tf.Tensor) -> tf.Tensor:
        """Returns the z of each image's label, float32 `[batch, d_z]`, for integer labels `[batch]`."""
        return self._select_rows(labels, self.compute_codes())


@keras.saving.register_keras_serializable(package="tfdecouple")
class LabelAffine(_LabelLayer):
    """A layer before the prior flow that maps z to z * scale + shift, with separate scale and shift for each label.

    The layer starts as the identity, so p(z|y) does not depend on the label y at first.
    """

    def declare(self, x_shape: Shape | None = None, condition_shape: Shape | None = None) -> dict[str, Weight]:
        return dict.fromkeys(("log_scale", "shift"), Weight((self.classes, self.latent_dim)))

    def compute_output_shape(self, x_shape: Shape) -> tuple[tuple, tuple]:
        return (x_shape[0], self.classes, self.latent_dim), (self.classes,)

    def reset_to_zero(self) -> None:
        """Sets this layer's log-scale and shift to 0 for every label, so that the layer is the identity."""
        for weight in (self.log_scale, self.shift):
            weight.assign(tf.zeros_like(weight))

    def call(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z scaled and shifted by each label, `[batch, classes, d_z]`, and log-determinants, `[classes]`."""
        log_scale = tf.convert_to_tensor(self.log_scale)
        y = z[:, None] * tf.exp(log_scale) + tf.convert_to_tensor(self.shift)
        return y, tf.reduce_sum(log_scale, -1)

    @full_float32()
    def invert_for_labels(self, y: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns the z `[batch, d_z]` that this layer maps to y `[batch, d_z]` for the images' labels `[batch]`."""
        log_scale, shift = (
            self._select_rows(labels, tf.convert_to_tensor(table)) for table in (self.log_scale, self.shift)
        )
        return (y - shift) * tf.exp(-log_scale)

    def as_bijector(self, labels: tf.Tensor | None = None) -> tfb.Bijector:
        """Returns this layer as a TFP bijector of z `[batch, d_z]`, or of `[..., classes, d_z]` if `labels` is None."""
        log_scale, shift = (tf.convert_to_tensor(table) for table in (self.log_scale, self.shift))
        if labels is not None:
            log_scale, shift = (tf.gather(table, labels) for table in (log_scale, shift))
        return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])
