"""The whitening of v by z: where the paper's Table 3 baseline uses z, and nowhere else."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.architecture.weights import whitening_net
from tfdecouple.bijectors import ClosedForm, Whitening
from tfdecouple.layers.base import InvertibleLayer, need_condition
from tfdecouple.layers.nets import WeightNorm, fan_in_uniform
from tfdecouple.runtime.products import full_product


@keras.saving.register_keras_serializable(package="tfdecouple")
class ConditionalWhitening(InvertibleLayer):
    """v = (h - mu(z)) / sigma(z), so that h given z is Gaussian with that mean and scale while v stays N(0, I).

    The paper does not describe the net from z to mean and scale; this is FC - ELU - FC to one mean and one log-scale
    for each entry of h, the last layer weight-normalised and 0 at the start, like those of the couplings.

    Args:
        hidden: width of the net.
        condition_size: size of z.
        **kwargs: of `InvertibleLayer`.
    """

    def __init__(self, hidden: int, condition_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.condition_size = condition_size

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the net for h of shape `[batch, ...]`."""
        self._remember_shape(x_shape)
        self._event = tuple(x_shape[1:])
        shapes = whitening_net(self.condition_size, self.hidden, math.prod(self._event))
        self.first = self.add_weight(name="first", shape=shapes["first"], initializer=fan_in_uniform())
        self.first_bias = self.add_weight(name="first_bias", shape=shapes["first_bias"], initializer="zeros")
        self.last = WeightNorm(self, shapes)
        self.built = True

    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Makes the layer the identity."""
        x, _ = self._prepare(x, condition)
        self.last.reset()
        return x

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "hidden": self.hidden, "condition_size": self.condition_size}

    def _bijector(self, condition: tf.Tensor | None) -> ClosedForm:
        need_condition(self, self.condition_size, condition)
        read = tf.convert_to_tensor
        h = tf.nn.elu(full_product(condition, read(self.first)) + read(self.first_bias))
        mean, log_scale = tf.split(full_product(h, self.last.kernel()) + read(self.last.bias), 2, -1)
        shape = (-1, *self._event)
        return Whitening(tf.reshape(mean, shape), tf.reshape(log_scale, shape))
