"""The conditioners, neural nets inside couplings: convolutional nets for images, a perceptron for vectors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import keras
import tensorflow as tf

from tfdecouple.layers.base import BaseLayer, Condition, Cost, Shape, Weight, require_condition
from tfdecouple.runtime.convolution import convolve, convolve_normed
from tfdecouple.runtime.execution import apply_memory_mode
from tfdecouple.runtime.numerics import multiply_channels, multiply_in_full_precision
from tfdecouple.runtime.precision import full_float32, get_net_precision


def fan_in_uniform() -> keras.initializers.Initializer:
    """Returns an initializer of kernels, uniform in +-1/sqrt(fan_in), which the paper's code uses for plain weights."""
    return keras.initializers.VarianceScaling(scale=1 / 3, mode="fan_in", distribution="uniform")


def make_bias_initializer(fan_in: int) -> keras.initializers.Initializer:
    """Returns an initializer of biases, uniform in +-1/sqrt(fan_in), for the fan-in of the kernel beside the bias."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def weight_norm(shape: Shape) -> dict[str, Weight]:
    """Returns {name: `Weight`} of a weight-normalised layer, for the shape of its kernel with the outputs last."""
    return {
        "last_direction": Weight(shape, functools.partial(keras.initializers.RandomNormal, stddev=0.05)),
        "last_gain": Weight(shape[-1:]),
        "last_bias": Weight(shape[-1:]),
    }


class WeightNorm(NamedTuple):
    """A weight-normalised kernel g * V / ||V|| and a bias: direction V, gain g `[outputs]` and bias `[outputs]`.

    The norm is taken over all axes except the last. While gain and bias are 0, the layer's output is exactly 0 for any
    direction, so every coupling starts as the identity.
    """

    direction: Any
    gain: Any
    bias: Any

    @classmethod
    def from_weights(cls, weights: Mapping[str, Any]) -> Self:
        """Returns kernel and bias, given the weights, by name, of a layer that uses `weight_norm`."""
        return cls(*(weights[f"last_{name}"] for name in cls._fields))

    def kernel(self) -> tf.Tensor:
        """Returns the kernel g * V / ||V||, outputs last."""
        direction, gain = map(tf.convert_to_tensor, (self.direction, self.gain))
        squares = tf.reduce_sum(tf.square(direction), list(range(len(direction.shape) - 1)))
        return direction * (gain / tf.sqrt(squares))


class StartsAtZero:
    """A mixin for a layer that ends in a `weight_norm`; it stands before the Keras class among the base classes."""

    @property
    def last(self) -> WeightNorm:
        """The variables of the weight-normalised last layer."""
        return WeightNorm(self.last_direction, self.last_gain, self.last_bias)  # type: ignore[attr-defined]

    def reset_to_zero(self) -> None:
        """Sets the last layer's gain and bias to 0, so that the output is 0 for every input."""
        for weight in (self.last.gain, self.last.bias):
            weight.assign(tf.zeros_like(weight))


class CouplingNet(StartsAtZero, BaseLayer):
    """A neural net that computes the parameters of a coupling's transform from the unchanged channels x_a and from z.

    Subclasses implement `declare` and `output`. A net ends in a `weight_norm`, so that couplings start as the identity,
    or overrides `reset_to_zero`. The multiply-adds follow from the shapes of the weights: a kernel of four axes is a
    convolution, and a kernel of two axes is multiplied by one vector of each image.

    Args:
        outputs: number of output channels.
        hidden: width of the hidden layers.
        condition_size: number of channels of the condition, or 0 for a net without a condition.
        **kwargs: arguments of `BaseLayer`, for example `dtype`.
    """

    saved_arguments = ("outputs", "hidden", "condition_size")

    def __init__(self, outputs: int, hidden: int, condition_size: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.outputs = outputs
        self.hidden = hidden
        self.condition_size = condition_size

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        """Returns the output of the net for x, `[batch, ..., outputs]` in the layer's dtype.

        `weights` are the values by the names of `declare`. The condition is z, `[batch, condition_size]`, or a map of
        the size of x; a net without a condition ignores the argument.
        """
        raise NotImplementedError

    @full_float32()
    def call(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Returns the output of the net, `[batch, ..., outputs]`, with the current values of its weights."""
        return self.output(self.read_tensors(), x, condition)

    def compute_output_shape(self, x_shape: Any, condition_shape: Any = None) -> tuple:
        """Returns the shape of the output of `call`, which a Keras model's `summary` shows."""
        return (*x_shape[:-1], self.outputs)

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns multiply-adds and counts of stored numbers of the net for one image."""
        positions = math.prod(x_shape[1:-1])
        shapes = [weight.shape for weight in self.declare(x_shape, condition_shape).values()]
        adds = sum(math.prod(shape) * (positions if len(shape) == 4 else 1) for shape in shapes if len(shape) > 1)
        map_channels = self.condition_size if condition_shape is not None and len(condition_shape) == 4 else 0
        net_inputs = positions * (x_shape[-1] + map_channels)
        return Cost(adds, net_inputs=net_inputs, hidden_map=positions * self.hidden)


@keras.saving.register_keras_serializable(package="tfdecouple")
class ConvNet(CouplingNet):
    """The paper's coupling net for images (equation 7): conv3x3 - ELU - conv1x1 + FC(z) - ELU - conv3x3.

    The first two convolutions have no bias and the third is weight-normalised with a bias, as in the paper's code.
    Zero padding keeps height and width.
    """

    # Whether the condition is a map, convolved by a 3x3 kernel, instead of z.
    _local = False

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns {name: `Weight`} for inputs `[batch, height, width, channels]`."""
        weights = {
            "first": Weight((3, 3, x_shape[-1], self.hidden), fan_in_uniform),
            "second": Weight((1, 1, self.hidden, self.hidden), fan_in_uniform),
        }
        if self.condition_size:
            kernel = (*((3, 3) if self._local else ()), self.condition_size, self.hidden)
            weights["condition_kernel"] = Weight(kernel, fan_in_uniform)
            weights["condition_bias"] = Weight(
                kernel[-1:], functools.partial(make_bias_initializer, math.prod(kernel[:-1]))
            )
        return weights | weight_norm((3, 3, self.hidden, self.outputs))

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        """Returns the output of the net, `[batch, height, width, outputs]`."""
        dtype = "bfloat16" if get_net_precision() == "bfloat16" else self.compute_dtype
        last, kernels = WeightNorm.from_weights(weights), [tf.cast(weights["first"], dtype)]
        kernels += [tf.cast(tf.squeeze(weights["second"], [0, 1]), dtype), last.direction, last.gain]
        shift = None
        if self.condition_size:
            require_condition(self, self.condition_size, condition, self._local)
            if self._local:
                # `_run_hidden_maps` convolves the map: the result is as large as a hidden map, and only that function
                # computes hidden maps again in the backward pass instead of storing them.
                shift = tf.cast(condition, dtype)
                kernels += [tf.cast(weights[f"condition_{name}"], dtype) for name in ("kernel", "bias")]
            else:
                # FC(z) is small compared with the maps, so full precision costs little here.
                shift = tf.cast(tf.matmul(condition, weights["condition_kernel"]) + weights["condition_bias"], dtype)
        y = apply_memory_mode(_run_hidden_maps)(tf.cast(x, dtype), shift, *kernels)
        return tf.cast(y, self.compute_dtype) + last.bias


@keras.saving.register_keras_serializable(package="tfdecouple")
class LocalConvNet(ConvNet):
    """A `ConvNet` with a map of the size of x as condition: a 3x3 convolution of the map, with bias, replaces FC(z)."""

    _local = True


def _run_hidden_maps(
    x: tf.Tensor,
    shift: tf.Tensor | None,
    first: tf.Tensor,
    second: tf.Tensor,
    direction: tf.Tensor,
    gain: tf.Tensor,
    *map_convolution: tf.Tensor,
) -> tf.Tensor:
    """Returns the output of a `ConvNet` before the bias of the last convolution is added.

    `shift` is FC(z), `[batch, hidden]`; or a condition that is a map, for which `map_convolution` holds kernel and bias
    of the map's convolution; or None without a condition.
    """
    h = multiply_channels(tf.nn.elu(convolve(x, first)), second)
    if map_convolution:
        kernel, bias = map_convolution
        h = h + convolve(shift, kernel) + bias
    elif shift is not None:
        h += tf.reshape(shift, [-1, 1, 1, shift.shape[-1]])
    return convolve_normed(tf.nn.elu(h), direction, gain)


@keras.saving.register_keras_serializable(package="tfdecouple")
class MLP(CouplingNet):
    """The coupling net for vectors, in the prior over z (paper B.3): FC - ELU - FC - ELU - FC, without a condition."""

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns {name: `Weight`} for inputs `[batch, channels]`."""
        return {
            "first": Weight((x_shape[-1], self.hidden), fan_in_uniform),
            "first_bias": Weight((self.hidden,)),
            "second": Weight((self.hidden, self.hidden), fan_in_uniform),
            "second_bias": Weight((self.hidden,)),
            **weight_norm((self.hidden, self.outputs)),
        }

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        """Returns the output of the net, `[batch, outputs]`."""
        last = WeightNorm.from_weights(weights)
        h = tf.nn.elu(multiply_in_full_precision(x, weights["first"]) + weights["first_bias"])
        h = tf.nn.elu(multiply_in_full_precision(h, weights["second"]) + weights["second_bias"])
        return multiply_in_full_precision(h, last.kernel()) + last.bias
