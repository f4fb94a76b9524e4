"""The whitening of v by z, through which alone the baseline of the paper's Table 3 uses z."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.bijectors import ClosedForm, Whitening
from tfdecouple.layers.base import Condition, InvertibleLayer, Weight, require_condition
from tfdecouple.layers.conditioners import StartsAtZero, WeightNorm, fan_in_uniform, weight_norm
from tfdecouple.runtime.numerics import full_product


@keras.saving.register_keras_serializable(package="tfdecouple")
class ConditionalWhitening(StartsAtZero, InvertibleLayer):
    """v = (h - mu(z)) / sigma(z), so that h given z is Gaussian with that mean and scale while v stays N(0, I).

    The paper does not describe the net from z to mean and scale; this is FC - ELU - FC to one mean and one log-scale
    for each entry of h. The last layer is weight-normalised and 0 at the start, like those of the couplings.

    Args:
        hidden: width of the net.
        condition_size: size of z.
        **kwargs: of `InvertibleLayer`.
    """

    saved_arguments = ("hidden", "condition_size")

    # A flow has at most one, so that inverting it would save next to no memory.
    recovers_input = False

    def __init__(self, hidden: int, condition_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.condition_size = condition_size

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the weights of the net for h of shape `[batch, ...]`."""
        return {
            "first": Weight((self.condition_size, self.hidden), fan_in_uniform),
            "first_bias": Weight((self.hidden,)),
            **weight_norm((self.hidden, 2 * math.prod(x_shape[1:]))),
        }

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the net for h of shape `[batch, ...]`."""
        super().build(x_shape)

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Makes the layer the identity."""
        x, _ = self._prepare(x, condition)
        self.reset()
        return x

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector of the mean and scale that z gives."""
        require_condition(self, self.condition_size, condition)
        h = tf.nn.elu(full_product(condition, weights["first"]) + weights["first_bias"])
        last = WeightNorm.from_weights(weights)
        mean, log_scale = tf.split(full_product(h, last.kernel()) + last.bias, 2, -1)
        shape = (-1, *self._sides, self._channels)
        return Whitening(tf.reshape(mean, shape), tf.reshape(log_scale, shape))
