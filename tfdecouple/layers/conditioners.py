"""The neural nets inside couplings (conditioners): a convolutional net for images, a perceptron for vectors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import keras
import tensorflow as tf

from tfdecouple.layers.base import BaseLayer, Condition, Cost, Shape, Weight, require_condition
from tfdecouple.runtime.convolution import convolve, convolve_normed
from tfdecouple.runtime.execution import with_memory_mode
from tfdecouple.runtime.numerics import channel_product, full_product
from tfdecouple.runtime.precision import current_net_precision, full_float32


def fan_in_uniform() -> keras.initializers.Initializer:
    """Returns an initializer that is uniform in +-1/sqrt(fan_in), as in the paper's code for every plain weight."""
    return keras.initializers.VarianceScaling(scale=1 / 3, mode="fan_in", distribution="uniform")


def bound_uniform(fan_in: int) -> keras.initializers.Initializer:
    """Returns an initializer for a bias that is uniform in +-1/sqrt(fan_in); a bias has no fan-in of its own."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def weight_norm(shape: Shape) -> dict[str, Weight]:
    """Returns the declared weights of a weight-normalised layer with a kernel of this shape, outputs last."""
    return {
        "last_direction": Weight(shape, functools.partial(keras.initializers.RandomNormal, stddev=0.05)),
        "last_gain": Weight(shape[-1:]),
        "last_bias": Weight(shape[-1:]),
    }


class WeightNorm(NamedTuple):
    """A weight-normalised kernel g * V / ||V|| with a bias: direction V, gain g and bias, the last two `[outputs]`.

    The norm runs over all axes except the outputs. While gain and bias are 0, the output is exactly 0 for any V, so
    every coupling starts as the identity.
    """

    direction: Any
    gain: Any
    bias: Any

    @classmethod
    def from_weights(cls, weights: Mapping[str, Any]) -> Self:
        """Returns the weight-normalised kernel of a layer that declares `weight_norm`, from its weights by name."""
        return cls(*(weights[f"last_{name}"] for name in cls._fields))

    def kernel(self) -> tf.Tensor:
        """Returns the kernel g * V / ||V||, outputs last."""
        direction, gain = map(tf.convert_to_tensor, (self.direction, self.gain))
        squares = tf.reduce_sum(tf.square(direction), list(range(len(direction.shape) - 1)))
        return direction * (gain / tf.sqrt(squares))


class StartsAtZero:
    """A mixin with the method `reset` for a layer that ends in a `weight_norm`; it stands before the Keras class."""

    @property
    def last(self) -> WeightNorm:
        """The variables of the weight-normalised last layer."""
        return WeightNorm(self.last_direction, self.last_gain, self.last_bias)  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Sets the last layer's gain and bias to 0, so that the output is 0 for every input."""
        for weight in (self.last.gain, self.last.bias):
            weight.assign(tf.zeros_like(weight))


class CouplingNet(StartsAtZero, BaseLayer):
    """A neural net that computes the parameters of a coupling's transform from the unchanged channels x_a and from z.

    Subclasses implement `declare` and `output`. They end in a `weight_norm`, so that couplings start as the identity,
    or override `reset`. The cost follows from the shapes of the weights: a kernel of four axes is a convolution, a
    kernel of two axes a product with one vector of each image.

    Args:
        outputs: number of output channels.
        hidden: width of the hidden layers.
        condition_size: size of the condition, or 0 for an unconditional net.
        **kwargs: arguments of `BaseLayer`, for example `dtype`.
    """

    saved_arguments = ("outputs", "hidden", "condition_size")

    def __init__(self, outputs: int, hidden: int, condition_size: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.outputs = outputs
        self.hidden = hidden
        self.condition_size = condition_size

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        """Returns the net's output for x, `[batch, ..., outputs]` in the layer's dtype.

        The weights are given by the names of `declare`. The condition is z, `[batch, condition_size]`, or a map of the
        size of x; an unconditional net ignores it.
        """
        raise NotImplementedError

    @full_float32()
    def call(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Returns the net's output for the net's own weights, `[batch, ..., outputs]`."""
        return self.output(self.tensors(), x, condition)

    def compute_output_shape(self, x_shape: Any, condition_shape: Any = None) -> tuple:
        """Returns the shape of the output of `call`, which Keras' summary shows."""
        return (*x_shape[:-1], self.outputs)

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns the cost of the net for one image."""
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
        """Returns the weights for inputs `[batch, height, width, channels]`."""
        weights = {
            "first": Weight((3, 3, x_shape[-1], self.hidden), fan_in_uniform),
            "second": Weight((1, 1, self.hidden, self.hidden), fan_in_uniform),
        }
        if self.condition_size:
            kernel = (*((3, 3) if self._local else ()), self.condition_size, self.hidden)
            weights["condition_kernel"] = Weight(kernel, fan_in_uniform)
            weights["condition_bias"] = Weight(kernel[-1:], functools.partial(bound_uniform, math.prod(kernel[:-1])))
        return weights | weight_norm((3, 3, self.hidden, self.outputs))

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        """Returns the net's output, `[batch, height, width, outputs]`."""
        dtype = "bfloat16" if current_net_precision() == "bfloat16" else self.compute_dtype
        last, kernels = WeightNorm.from_weights(weights), [tf.cast(weights["first"], dtype)]
        kernels += [tf.cast(tf.squeeze(weights["second"], [0, 1]), dtype), last.direction, last.gain]
        shift = None
        if self.condition_size:
            require_condition(self, self.condition_size, condition, self._local)
            if self._local:
                # The result of this convolution is as large as a hidden map, so `_run_hidden_maps` computes it.
                shift = tf.cast(condition, dtype)
                kernels += [tf.cast(weights[f"condition_{name}"], dtype) for name in ("kernel", "bias")]
            else:
                # FC(z) is small compared with the maps, so it costs little to compute it in the layer's own precision.
                shift = tf.cast(tf.matmul(condition, weights["condition_kernel"]) + weights["condition_bias"], dtype)
        y = with_memory_mode(_run_hidden_maps)(tf.cast(x, dtype), shift, *kernels)
        return tf.cast(y, self.compute_dtype) + last.bias


@keras.saving.register_keras_serializable(package="tfdecouple")
class LocalConvNet(ConvNet):
    """A `ConvNet` for a local condition: a 3x3 convolution of a map, of the size of x, replaces FC(z).

    The convolution of the map has a bias, as in the paper's code.
    """

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

    `shift` is FC(z), `[batch, hidden]`, or the map of a local condition, for which `map_convolution` holds kernel and
    bias of its convolution; without a condition it is None.
    """
    h = channel_product(tf.nn.elu(convolve(x, first)), second)
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
        """Returns the weights for inputs `[batch, channels]`."""
        return {
            "first": Weight((x_shape[-1], self.hidden), fan_in_uniform),
            "first_bias": Weight((self.hidden,)),
            "second": Weight((self.hidden, self.hidden), fan_in_uniform),
            "second_bias": Weight((self.hidden,)),
            **weight_norm((self.hidden, self.outputs)),
        }

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        """Returns the net's output, `[batch, outputs]`."""
        last = WeightNorm.from_weights(weights)
        h = tf.nn.elu(full_product(x, weights["first"]) + weights["first_bias"])
        h = tf.nn.elu(full_product(h, weights["second"]) + weights["second_bias"])
        return full_product(h, last.kernel()) + last.bias
