"""The layers that apply one bijector: actnorm, 1x1 convolution, squeeze, sigmoid, sinh-arcsinh, whitening."""

import functools
import math
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfdecouple import bijectors
from tfdecouple.bijectors import ChannelAffine, ChannelMatrix, ClosedForm, Whitening
from tfdecouple.config.shapes import Shape
from tfdecouple.errors import UserError
from tfdecouple.layers.base import BaseLayer, Condition, InvertibleLayer, Weight
from tfdecouple.layers.conditioners import (
    StartsAtZero,
    declare_weight_norm,
    make_kernel_initializer,
    require_condition,
)
from tfdecouple.numerics.arithmetic import get_sizes, multiply_sizes
from tfdecouple.numerics.kernels import multiply_in_full_precision, normalize_kernel

# A channel with a smaller standard deviation counts as constant; pixel values k and k + 1 are 2/256 apart in x.
_CONSTANT = 1e-4


@keras.saving.register_keras_serializable(package="tfdecouple")
class ActNorm(InvertibleLayer):
    """A layer that scales and shifts each channel of images or vectors: y = exp(log_scale) * x + bias.

    After `initialize(x)` the outputs for the batch x have mean 0 and standard deviation 1 in every channel; a channel
    that is constant in x is only shifted.

    >>> layer = ActNorm()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> y.shape.as_list(), log_det.shape.as_list()
    ([2, 4, 4, 3], [2])
    """

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        initializer = functools.partial(keras.initializers.RandomNormal, stddev=0.05)
        return {"log_scale": Weight(x_shape[-1:], initializer), "bias": Weight(x_shape[-1:])}

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Sets scale and bias to normalise every channel of this actnorm's outputs for x; returns the outputs."""
        x, _ = self._prepare_inputs(x, condition)
        flat = tf.reshape(x, [-1, x.shape[-1]])
        mean = tf.reduce_mean(flat, 0)
        count = multiply_sizes(get_sizes(flat)[:1], x.dtype)
        deviation = tf.sqrt(tf.reduce_sum(tf.square(flat - mean), 0) / tf.maximum(count - 1.0, 1.0))
        log_scale = tf.where(deviation > _CONSTANT, -tf.math.log(tf.maximum(deviation, _CONSTANT)), 0.0)
        self.log_scale.assign(log_scale)
        self.bias.assign(-mean * tf.exp(log_scale))
        return (x - mean) * tf.exp(log_scale)

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ChannelAffine:
        return ChannelAffine(weights["bias"], weights["log_scale"])


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleLinear(InvertibleLayer):
    """A layer y = W x that multiplies the channels by a learned square matrix W, which is orthogonal at the start.

    Each call computes the log-determinant by an LU factorisation, as in the paper's code.

    >>> layer = InvertibleLinear()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 8]))
    >>> bool(tf.reduce_all(tf.abs(log_det) < 1e-4))
    True
    """

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        return {"kernel": Weight((x_shape[-1], x_shape[-1]), keras.initializers.Orthogonal)}

    def compute_condition_number(self) -> tf.Tensor:
        """Returns the condition number of W, a float64 scalar: its largest singular value divided by its smallest."""
        values = tf.linalg.svd(tf.cast(self.kernel, tf.float64), compute_uv=False)
        return values[0] / values[-1]

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ChannelMatrix:
        return ChannelMatrix(weights["kernel"])


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleConv1x1(InvertibleLinear):
    """The invertible 1x1 convolution: an `InvertibleLinear` applied at every pixel of an image."""


@keras.saving.register_keras_serializable(package="tfdecouple")
class Squeeze(InvertibleLayer):
    """A layer that turns blocks of 2 x 2 pixels into channels: `[batch, 2h, 2w, c]` to `[batch, h, w, 4c]`; log_det 0.

    The new channels are ordered by the pixel's position in its block (four positions), then by the old channel, as in
    the paper's code; Glow's code orders the new channels by the old channel, then by the position.

    >>> y, _ = Squeeze().forward_and_log_det(tf.zeros([1, 4, 4, 3]))
    >>> y.shape.as_list()
    [1, 2, 2, 12]
    """

    def build(self, x_shape: Shape, condition_shape: Shape | None = None) -> None:
        """Marks the squeeze, which has no weights, as built; raises UserError unless `x_shape` has four axes."""
        if len(x_shape) != 4:
            raise UserError(f"squeeze got a shape {tuple(x_shape)}; it needs [batch, height, width, channels]")
        # `InvertibleLayer.build` would fix the count of channels, but one squeeze layer serves all levels of a flow.
        BaseLayer.build(self, x_shape)

    def compute_output_shape(self, x_shape: Shape, condition_shape: Shape | None = None) -> tuple[tuple, tuple]:
        batch, height, width, channels = x_shape
        return (batch, height // 2, width // 2, 4 * channels), (batch,)

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        return bijectors.Squeeze()

    def as_bijector(self, condition: Condition = None) -> ClosedForm:
        return bijectors.Squeeze()


@keras.saving.register_keras_serializable(package="tfdecouple")
class Sigmoid(InvertibleLayer):
    """A layer that applies the sigmoid to every entry of x: y = 1 / (1 + exp(-x)).

    >>> y, log_det = Sigmoid().forward_and_log_det(tf.zeros([2, 4, 4, 3]))
    >>> float(y[0, 0, 0, 0]), log_det.shape.as_list()
    (0.5, [2])
    """

    # The inverse of a saturated sigmoid is inexact, so the input is stored for the backward pass, not recovered.
    recovers_input = False

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        return bijectors.Sigmoid()


@keras.saving.register_keras_serializable(package="tfdecouple")
class ConditionalWhitening(StartsAtZero, InvertibleLayer):
    """A layer v = (h - mu(z)) / sigma(z): if v is N(0, I), then h given z is Gaussian with mean mu and scale sigma.

    The layer ends the flow in the baseline of the paper's Table 3, where no other layer uses z. The paper does not
    describe the net that computes mu and log sigma of each entry of h from z. Here it is FC - ELU - FC of width
    `hidden`; the last FC is weight-normalised and 0 at the start, as in couplings. `condition_size` is the size of z.
    """

    # A flow has at most one whitening layer, so recovering the layer's input by inversion would save little memory.
    recovers_input = False

    def __init__(self, hidden: int, condition_size: int, **kwargs: object):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.condition_size = condition_size

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        return {
            "first": Weight((self.condition_size, self.hidden), make_kernel_initializer),
            "first_bias": Weight((self.hidden,)),
            **declare_weight_norm((self.hidden, 2 * math.prod(x_shape[1:]))),
        }

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Sets the net's output (mean and log-scale) to 0, so that the whitening is the identity; returns x."""
        x, _ = self._prepare_inputs(x, condition)
        self.reset_to_zero()
        return x

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        require_condition(self, self.condition_size, condition)
        h = tf.nn.elu(multiply_in_full_precision(condition, weights["first"]) + weights["first_bias"])
        kernel = normalize_kernel(weights["last_direction"], weights["last_gain"])
        mean, log_scale = tf.split(multiply_in_full_precision(h, kernel) + weights["last_bias"], 2, -1)
        shape = (-1, *self._sides, self._channels)
        return Whitening(tf.reshape(mean, shape), tf.reshape(log_scale, shape))
