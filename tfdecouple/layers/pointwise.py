"""Layers that map each number: the sigmoid of the dequantisation, sinh-arcsinh, and the whitening by a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple import bijectors
from tfdecouple.bijectors import ClosedForm, Whitening
from tfdecouple.layers.base import Condition, InvertibleLayer, Weight, require_condition
from tfdecouple.layers.conditioners import StartsAtZero, WeightNorm, fan_in_uniform, weight_norm
from tfdecouple.runtime.numerics import full_product


@keras.saving.register_keras_serializable(package="tfdecouple")
class Sigmoid(InvertibleLayer):
    """A layer that applies the sigmoid to every number: y = 1 / (1 + exp(-x)).

    >>> y, log_det = Sigmoid().forward_and_log_det(tf.zeros([2, 4, 4, 3]))
    >>> float(y[0, 0, 0, 0]), log_det.shape.as_list()
    (0.5, [2])
    """

    # Where the sigmoid saturates, its inverse loses digits, so the input is stored.
    recovers_input = False

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector y = 1 / (1 + exp(-x))."""
        return bijectors.Sigmoid()


@keras.saving.register_keras_serializable(package="tfdecouple")
class SinhArcsinh(InvertibleLayer):
    """A layer that changes the tails of each channel: y = s sinh((arcsinh(x) + skewness) * tails) (Jones, Pewsey 2009).

    The layer makes the tails of a channel's distribution heavier or lighter, and one tail longer than the other. The
    factor s is such that the layer maps 2 to 2 if the skewness is 0.

    >>> layer = SinhArcsinh()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> bool(tf.reduce_all(tf.abs(y - 1.0) < 1e-6)), log_det.shape.as_list()
    (True, [2])
    """

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the declared weights per channel: the unbounded skewness and the unbounded logarithm of `tails`."""
        return {"skewness": Weight(x_shape[-1:]), "tails": Weight(x_shape[-1:])}

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> tfb.Bijector:
        """Returns the bijector y = s sinh((arcsinh(x) + skewness) * tails)."""
        # Tails between exp(-1/4) and exp(1/4) keep the output of many such layers in a row finite.
        skewness, log_tails = (tf.tanh(weights[name]) / 4 for name in ("skewness", "tails"))
        return tfb.SinhArcsinh(skewness, tf.exp(log_tails))


@keras.saving.register_keras_serializable(package="tfdecouple")
class ConditionalWhitening(StartsAtZero, InvertibleLayer):
    """A layer v = (h - mu(z)) / sigma(z): if v is N(0, I), then h given z is Gaussian with mean mu and scale sigma.

    In the baseline of the paper's Table 3 no other layer uses z. The paper does not describe the net that computes mean
    and scale from z; here it is FC - ELU - FC with one mean and one log-scale for each entry of h. Its last layer is
    weight-normalised and 0 at the start, as in couplings.

    Args:
        hidden: width of the net.
        condition_size: size of z.
        **kwargs: arguments of `InvertibleLayer`.
    """

    saved_arguments = ("hidden", "condition_size")

    # A flow has at most one whitening layer, so recovering its input by inversion would save little memory.
    recovers_input = False

    def __init__(self, hidden: int, condition_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.condition_size = condition_size

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the declared weights of the net, for h of shape `[batch, ...]`."""
        return {
            "first": Weight((self.condition_size, self.hidden), fan_in_uniform),
            "first_bias": Weight((self.hidden,)),
            **weight_norm((self.hidden, 2 * math.prod(x_shape[1:]))),
        }

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the net for h of shape `[batch, ...]`."""
        super().build(x_shape)

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Resets the net, so that the layer is the identity, and returns x."""
        x, _ = self._prepare(x, condition)
        self.reset()
        return x

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector v = (h - mu(z)) / sigma(z), with z as the condition."""
        require_condition(self, self.condition_size, condition)
        h = tf.nn.elu(full_product(condition, weights["first"]) + weights["first_bias"])
        last = WeightNorm.from_weights(weights)
        mean, log_scale = tf.split(full_product(h, last.kernel()) + last.bias, 2, -1)
        shape = (-1, *self._sides, self._channels)
        return Whitening(tf.reshape(mean, shape), tf.reshape(log_scale, shape))
