"""The networks inside couplings: a convolutional one for images, a multi-layer perceptron for vectors."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.architecture.weights import Weights, convolutional_net, dense_net
from tfdecouple.layers.base import FullLayer, need_condition
from tfdecouple.runtime.convolution import convolve, convolve_normed
from tfdecouple.runtime.precision import current_net_precision
from tfdecouple.runtime.products import channel_product, full_product
from tfdecouple.runtime.rematerialization import wide
from tfdecouple.runtime.tf32 import full_float32


def fan_in_uniform() -> keras.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), the start of the paper's code for every plain weight."""
    return keras.initializers.VarianceScaling(scale=1 / 3, mode="fan_in", distribution="uniform")


def bound_uniform(fan_in: int) -> keras.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in) for a bias, which does not show its own fan-in."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


class WeightNorm:
    """A kernel g * V / ||V||, the norm over all axes but the output's, with a bias.

    With `g` and `bias` at 0 the output is exactly 0, whatever V: the identity start of every coupling.

    Args:
        layer: the Keras layer that owns the weights.
        shapes: those of the layer's weights, as `architecture.weights` declares them; here of "last_direction", the
            kernel's with the outputs last, "last_gain" and "last_bias".
    """

    def __init__(self, layer: keras.layers.Layer, shapes: Weights):
        self.direction, self.gain, self.bias = (
            layer.add_weight(name=name, shape=shapes[name], initializer=initializer)
            for name, initializer in (
                ("last_direction", keras.initializers.RandomNormal(stddev=0.05)),
                ("last_gain", "zeros"),
                ("last_bias", "zeros"),
            )
        )

    def direction_and_scale(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns V, of the kernel's shape, and g / ||V||, of one number an output; the kernel is their product."""
        direction, gain = map(tf.convert_to_tensor, (self.direction, self.gain))
        squares = tf.reduce_sum(tf.square(direction), list(range(len(direction.shape) - 1)))
        return direction, gain / tf.sqrt(squares)

    def kernel(self) -> tf.Tensor:
        """Returns the kernel, its outputs last."""
        direction, scale = self.direction_and_scale()
        return direction * scale

    def reset(self) -> None:
        """Sets the output to 0."""
        self.gain.assign(tf.zeros_like(self.gain))
        self.bias.assign(tf.zeros_like(self.bias))


class CouplingNet(FullLayer):
    """What the two nets have in common: they end in a weight-normalised layer that starts at 0.

    Args:
        outputs: number of output channels.
        hidden: width of the two hidden layers.
        condition_size: size of the condition, or 0 for an unconditional net.
        dtype: of weights and output.
    """

    def __init__(self, outputs: int, hidden: int, condition_size: int = 0, *, dtype: Any = "float32", **kwargs: Any):
        super().__init__(dtype=dtype, **kwargs)
        self.outputs = outputs
        self.hidden = hidden
        self.condition_size = condition_size

    def compute_output_shape(self, x_shape: Any, condition_shape: Any = None) -> tuple:
        """Returns the shape of what `call` gives."""
        return (*x_shape[:-1], self.outputs)

    def reset(self) -> None:
        """Makes the output 0 for every input."""
        self.last.reset()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "outputs": self.outputs,
            "hidden": self.hidden,
            "condition_size": self.condition_size,
        }


@keras.saving.register_keras_serializable(package="tfdecouple")
class ConvNet(CouplingNet):
    """conv3x3 - ELU - conv1x1 + FC(z) - ELU - conv3x3, the paper's equation 7.

    The first two convolutions have no bias and the third is weight-normalised with a bias, as in the paper's code.
    Zero padding keeps height and width.
    """

    # Whether the condition is a map, whose kernel reaches around a place; z has none.
    _local = False

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the weights for inputs `[batch, height, width, channels]`."""
        shapes = convolutional_net(x_shape[-1], self.hidden, self.outputs, self.condition_size, local=self._local)
        self.first = self.add_weight(name="first", shape=shapes["first"], initializer=fan_in_uniform())
        self.second = self.add_weight(name="second", shape=shapes["second"], initializer=fan_in_uniform())
        if self.condition_size:
            kernel = shapes["condition_kernel"]
            self.condition_kernel = self.add_weight(name="condition_kernel", shape=kernel, initializer=fan_in_uniform())
            self.condition_bias = self.add_weight(
                name="condition_bias",
                shape=shapes["condition_bias"],
                initializer=bound_uniform(math.prod(kernel[:-1])),
            )
        self.last = WeightNorm(self, shapes)
        self.built = True

    @full_float32()
    def call(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Returns `[batch, height, width, outputs]` in the layer's dtype.

        Args:
            x: `[batch, height, width, channels]`.
            condition: z, `[batch, condition_size]`; ignored by an unconditional net.
        """
        dtype = "bfloat16" if current_net_precision() == "bfloat16" else self.compute_dtype
        shift = None
        if self.condition_size:
            need_condition(self, self.condition_size, condition)
            shift = tf.matmul(condition, tf.convert_to_tensor(self.condition_kernel))
            shift += tf.convert_to_tensor(self.condition_bias)
            # One vector per image, small beside the maps: it stays in the layer's own precision until it is added.
            shift = tf.cast(shift, dtype)
        first, second = (tf.cast(tf.convert_to_tensor(kernel), dtype) for kernel in (self.first, self.second))
        h = _equation_7(tf.cast(x, dtype), shift, first, tf.squeeze(second, [0, 1]), *self.last.direction_and_scale())
        return tf.cast(h, self.compute_dtype) + tf.convert_to_tensor(self.last.bias)


@keras.saving.register_keras_serializable(package="tfdecouple")
class LocalConvNet(ConvNet):
    """As `ConvNet`, with a 3x3 convolution of a map beside x in the place of FC(z): a local condition.

    The convolution of the map has a bias, as in the paper's code.
    """

    _local = True

    @full_float32()
    def call(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Returns `[batch, height, width, outputs]` in the layer's dtype.

        Args:
            x: `[batch, height, width, channels]`.
            condition: the map, `[batch, height, width, condition_size]`.
        """
        need_condition(self, self.condition_size, condition, local=True)
        dtype = "bfloat16" if current_net_precision() == "bfloat16" else self.compute_dtype

        def read(weight: keras.Variable) -> tf.Tensor:
            return tf.cast(tf.convert_to_tensor(weight), dtype)

        first, second = read(self.first), tf.squeeze(read(self.second), [0, 1])
        # The map as it is: convolved, it is as wide as the net, and what is wide stays inside.
        local = tf.cast(condition, dtype), read(self.condition_kernel), read(self.condition_bias)
        h = _with_map(tf.cast(x, dtype), local[0], first, second, *self.last.direction_and_scale(), *local[1:])
        return tf.cast(h, self.compute_dtype) + tf.convert_to_tensor(self.last.bias)


@wide
def _equation_7(
    x: tf.Tensor, shift: tf.Tensor | None, first: tf.Tensor, second: tf.Tensor, direction: tf.Tensor, scale: tf.Tensor
) -> tf.Tensor:
    """Returns the output of a `ConvNet` but for its bias; shift is FC(z), `[batch, hidden]`, or None."""
    h = channel_product(tf.nn.elu(convolve(x, first)), second)
    h = tf.nn.elu(h if shift is None else h + tf.reshape(shift, [-1, 1, 1, shift.shape[-1]]))
    return convolve_normed(h, direction, scale)


@wide
def _with_map(
    x: tf.Tensor,
    condition: tf.Tensor,
    first: tf.Tensor,
    second: tf.Tensor,
    direction: tf.Tensor,
    scale: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor,
) -> tf.Tensor:
    """Returns the output of a `LocalConvNet` but for its last bias; condition is the map."""
    h = channel_product(tf.nn.elu(convolve(x, first)), second) + convolve(condition, kernel) + bias
    return convolve_normed(tf.nn.elu(h), direction, scale)


@keras.saving.register_keras_serializable(package="tfdecouple")
class MLP(CouplingNet):
    """FC - ELU - FC - ELU - FC, for the couplings of the prior over z (paper B.3). It takes no condition."""

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the weights for inputs `[batch, channels]`."""
        shapes = dense_net(x_shape[-1], self.hidden, self.outputs)
        self.first = self.add_weight(name="first", shape=shapes["first"], initializer=fan_in_uniform())
        self.first_bias = self.add_weight(name="first_bias", shape=shapes["first_bias"], initializer="zeros")
        self.second = self.add_weight(name="second", shape=shapes["second"], initializer=fan_in_uniform())
        self.second_bias = self.add_weight(name="second_bias", shape=shapes["second_bias"], initializer="zeros")
        self.last = WeightNorm(self, shapes)
        self.built = True

    @full_float32()
    def call(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Returns `[batch, outputs]` for x `[batch, channels]`."""
        read = tf.convert_to_tensor
        h = tf.nn.elu(full_product(x, read(self.first)) + read(self.first_bias))
        h = tf.nn.elu(full_product(h, read(self.second)) + read(self.second_bias))
        return full_product(h, self.last.kernel()) + read(self.last.bias)
