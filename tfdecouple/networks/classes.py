"""What is learned of each label: its code z, or the shift and scale of the prior over z."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.layers.base import FullLayer, Weight
from tfdecouple.layers.nets import bound_uniform, fan_in_uniform
from tfdecouple.runtime.numerics import full_product
from tfdecouple.runtime.precision import full_float32

# How far from 0 the embedding starts, and how many times as wide as z the hidden layers are, as in the paper's code.
_EMBEDDING, _WIDENING = 0.1, 4


class _OfClasses(FullLayer):
    """A layer with weights for each label.

    Args:
        classes: how many labels there are.
        latent_dim: size of z.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, classes: int, latent_dim: int, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.classes = classes
        self.latent_dim = latent_dim

    def _of(self, labels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns the rows of `[classes, d_z]` that belong to labels `[batch]`; zeros for what is no label."""
        # A product, whose gradient is one, too: what gathers rows adds them up in another order each time on a GPU.
        return full_product(tf.one_hot(labels, self.classes, dtype=rows.dtype), rows)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config.pop("dtype")
        return {**config, "classes": self.classes, "latent_dim": self.latent_dim}


@keras.saving.register_keras_serializable(package="tfdecouple")
class ClassCodes(_OfClasses):
    """z as a function of the label: embedding - FC - ELU - FC - ELU - FC, as in the paper's code ("categorical")."""

    def declare(self, x_shape: Any = None, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the weights, as the paper's code starts them."""
        size, hidden = self.latent_dim, _WIDENING * self.latent_dim
        embedding = functools.partial(keras.initializers.RandomUniform, -_EMBEDDING, _EMBEDDING)
        after_size, after_hidden = (functools.partial(bound_uniform, fan_in) for fan_in in (size, hidden))
        return {
            "embedding": Weight((self.classes, size), embedding),
            "first": Weight((size, hidden), fan_in_uniform),
            "first_bias": Weight((hidden,), after_size),
            "second": Weight((hidden, hidden), fan_in_uniform),
            "second_bias": Weight((hidden,), after_hidden),
            "last": Weight((hidden, size), fan_in_uniform),
            "last_bias": Weight((size,), after_hidden),
        }

    def compute_output_shape(self, x_shape: Any) -> tuple:
        """Returns the shape of what `call` gives."""
        return (*x_shape, self.latent_dim)

    @full_float32()
    def codes(self) -> tf.Tensor:
        """Returns the code of each label, `[classes, d_z]`."""
        read = tf.convert_to_tensor
        h = tf.nn.elu(full_product(read(self.embedding), read(self.first)) + read(self.first_bias))
        h = tf.nn.elu(full_product(h, read(self.second)) + read(self.second_bias))
        return full_product(h, read(self.last)) + read(self.last_bias)

    @full_float32()
    def call(self, labels: tf.Tensor) -> tf.Tensor:
        """Returns z of labels `[batch]`, whole numbers: `[batch, d_z]`."""
        return self._of(labels, self.codes())


@keras.saving.register_keras_serializable(package="tfdecouple")
class ClassAffine(_OfClasses):
    """z * scale + shift with a shift and scale for each label: what stands before the flow of the prior over z.

    At the start it changes nothing, and the prior knows no labels.
    """

    def declare(self, x_shape: Any = None, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns shift and scale."""
        return dict.fromkeys(("log_scale", "shift"), Weight((self.classes, self.latent_dim)))

    def compute_output_shape(self, x_shape: Any) -> tuple[tuple, tuple]:
        """Returns the shapes of what `call` gives."""
        return (x_shape[0], self.classes, self.latent_dim), (self.classes,)

    def reset(self) -> None:
        """Makes it change nothing."""
        for weight in (self.log_scale, self.shift):
            weight.assign(tf.zeros_like(weight))

    def call(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps z as each label does.

        Args:
            z: `[batch, d_z]`.

        Returns:
            `[batch, classes, d_z]`, and the log-determinant of each label, `[classes]`.
        """
        log_scale = tf.convert_to_tensor(self.log_scale)
        y = z[:, None] * tf.exp(log_scale) + tf.convert_to_tensor(self.shift)
        return y, tf.reduce_sum(log_scale, -1)

    @full_float32()
    def inverse(self, y: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Maps y `[batch, d_z]` back to z, each by its label, `[batch]`."""
        log_scale, shift = (self._of(labels, tf.convert_to_tensor(each)) for each in (self.log_scale, self.shift))
        return (y - shift) * tf.exp(-log_scale)

    def as_bijector(self, labels: tf.Tensor | None = None) -> tfb.Bijector:
        """Returns the map as a TFP bijector: of labels `[batch]`, or of all for z `[..., 1, d_z]`."""
        log_scale, shift = (tf.convert_to_tensor(each) for each in (self.log_scale, self.shift))
        if labels is not None:
            log_scale, shift = (tf.gather(each, labels) for each in (log_scale, shift))
        return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])
