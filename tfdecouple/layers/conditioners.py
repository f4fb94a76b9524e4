"""The conditioners, the neural nets inside couplings: convolutional nets for images, a perceptron for vectors."""

import functools
import math
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfdecouple.config.shapes import Shape
from tfdecouple.errors import UserError
from tfdecouple.layers.base import BaseLayer, Condition, Weight
from tfdecouple.numerics.kernels import (
    Kernels,
    get_kernels,
    multiply_channels,
    multiply_in_full_precision,
    normalize_kernel,
)
from tfdecouple.numerics.tf32 import full_float32


def make_kernel_initializer() -> keras.initializers.Initializer:
    """Returns the initializer of kernels without weight norm, uniform in +-1/sqrt(fan_in), as in the paper's code."""
    return keras.initializers.VarianceScaling(scale=1 / 3, mode="fan_in", distribution="uniform")


def make_bias_initializer(fan_in: int) -> keras.initializers.Initializer:
    """Returns an initializer of biases, uniform in +-1/sqrt(fan_in), given the fan-in of the kernel beside the bias."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def require_condition(layer: keras.layers.Layer, size: int, condition: Condition, local: bool = False) -> None:
    """Raises UserError unless `condition`, a z or (if `local`) a feature map, is given and has `size` channels."""
    expected = f"[batch, height, width, {size}]" if local else f"[batch, {size}]"
    if condition is None:
        what = "a map" if local else "z"
        raise UserError(f"layer {layer.name} is conditional: pass condition={what} of shape {expected}")
    if condition.shape[-1] != size:
        raise UserError(f"layer {layer.name} got a condition of shape {condition.shape}; it needs {expected}")


def declare_weight_norm(shape: Shape) -> dict[str, Weight]:
    """Returns {name: `Weight`} of a weight-normalised kernel (`normalize_kernel`) of `shape`, outputs last, and a bias.

    Gain and bias are 0 at the start, so the output is exactly 0 for any direction, and every coupling whose net ends in
    this kernel starts as the identity.
    """
    return {
        "last_direction": Weight(shape, functools.partial(keras.initializers.RandomNormal, stddev=0.05)),
        "last_gain": Weight(shape[-1:]),
        "last_bias": Weight(shape[-1:]),
    }


class StartsAtZero:
    """A mixin for layers whose last kernel is that of `declare_weight_norm`; list it before the Keras base class."""

    last_gain: keras.Variable
    last_bias: keras.Variable

    def reset_to_zero(self) -> None:
        """Sets gain and bias of this layer's last kernel to 0, so that the layer's output is 0 for every input."""
        for weight in (self.last_gain, self.last_bias):
            weight.assign(tf.zeros_like(weight))


class CouplingNet(StartsAtZero, BaseLayer):
    """A neural net that computes the parameters of a coupling's transform from the unchanged channels x_a and from z.

    Subclasses implement `declare` and `output`. The output must be 0 at the start, so that couplings start as the
    identity: a net ends in the kernel of `declare_weight_norm`, or overrides `reset_to_zero`.

    Args:
        outputs: count of output channels.
        hidden: count of channels of the hidden layers.
        condition_size: size of z, or channels of the feature map, that conditions the net; 0 for no condition.
        **kwargs: arguments of `BaseLayer`, for example `dtype`.
    """

    def __init__(self, outputs: int, hidden: int, condition_size: int = 0, **kwargs: object):
        super().__init__(**kwargs)
        self.outputs = outputs
        self.hidden = hidden
        self.condition_size = condition_size

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        """Returns this coupling net's output for x, `[batch, ..., outputs]`, in the net's `dtype`.

        `weights` is {name: tensor} with the names of `declare`. `condition` is z, `[batch, condition_size]`, or a
        feature map with the height and width of x; a net without a condition ignores the argument.
        """
        raise NotImplementedError

    @full_float32()
    def call(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Returns this coupling net's output for x, `[batch, ..., outputs]`, computed with its current weights."""
        return self.output(self.read_tensors(), x, condition)

    def compute_output_shape(self, x_shape: Shape, condition_shape: Shape | None = None) -> tuple:
        return (*x_shape[:-1], self.outputs)


@keras.saving.register_keras_serializable(package="tfdecouple")
class ConvNet(CouplingNet):
    """The paper's coupling net for images (equation 7): conv3x3 - ELU - conv1x1 + FC(z) - ELU - conv3x3.

    The first two convolutions have no bias and the third is weight-normalised with a bias, as in the paper's code.
    Zero padding keeps height and width. If the net is built for a feature map as large as x, instead of the vector z, a
    3x3 convolution of that map replaces FC(z).
    """

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        weights = {
            "first": Weight((3, 3, x_shape[-1], self.hidden), make_kernel_initializer),
            "second": Weight((1, 1, self.hidden, self.hidden), make_kernel_initializer),
        }
        if self.condition_size:
            is_local = condition_shape is not None and len(condition_shape) == 4
            kernel = (*((3, 3) if is_local else ()), self.condition_size, self.hidden)
            weights["condition_kernel"] = Weight(kernel, make_kernel_initializer)
            initializer = functools.partial(make_bias_initializer, math.prod(kernel[:-1]))
            weights["condition_bias"] = Weight(kernel[-1:], initializer)
        return weights | declare_weight_norm((3, 3, self.hidden, self.outputs))

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        kernels = get_kernels()
        dtype = kernels.net_dtype or self.compute_dtype
        arguments = [tf.cast(weights["first"], dtype), tf.cast(tf.squeeze(weights["second"], [0, 1]), dtype)]
        arguments += [weights["last_direction"], weights["last_gain"]]
        shift = None
        if self.condition_size:
            is_local = len(weights["condition_kernel"].shape) == 4
            require_condition(self, self.condition_size, condition, is_local)
            if is_local:
                # The convolved condition is as large as a hidden map. `_run_hidden_maps` computes it, because only
                # that function can compute maps again in the backward pass instead of storing them.
                shift = tf.cast(condition, dtype)
                arguments += [tf.cast(weights[f"condition_{name}"], dtype) for name in ("kernel", "bias")]
            else:
                # FC(z) is one vector per image, much smaller than a map, so full precision costs little time here.
                shift = tf.cast(tf.matmul(condition, weights["condition_kernel"]) + weights["condition_bias"], dtype)
        y = kernels.run_net(functools.partial(_run_hidden_maps, kernels), tf.cast(x, dtype), shift, *arguments)
        return kernels.add_bias(tf.cast(y, self.compute_dtype), weights["last_bias"])


def _run_hidden_maps(
    kernels: Kernels,
    x: tf.Tensor,
    shift: tf.Tensor | None,
    first: tf.Tensor,
    second: tf.Tensor,
    direction: tf.Tensor,
    gain: tf.Tensor,
    *map_convolution: tf.Tensor,
) -> tf.Tensor:
    """Returns the output of a `ConvNet` before the bias of the last convolution is added.

    `shift` is FC(z), `[batch, hidden]`, or a feature map, or None for a net without a condition. For a feature map,
    `map_convolution` contains kernel and bias of the convolution that is applied to the map; otherwise it is empty.
    """
    h = multiply_channels(tf.nn.elu(kernels.convolve(x, first)), second)
    if map_convolution:
        kernel, bias = map_convolution
        h = h + kernels.convolve(shift, kernel) + bias
    elif shift is not None:
        h += kernels.spread_vectors(shift)
    return kernels.convolve_normed(tf.nn.elu(h), direction, gain)


@keras.saving.register_keras_serializable(package="tfdecouple")
class MLP(CouplingNet):
    """The coupling net for vectors, in the prior over z (paper B.3): FC - ELU - FC - ELU - FC, without a condition."""

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        return {
            "first": Weight((x_shape[-1], self.hidden), make_kernel_initializer),
            "first_bias": Weight((self.hidden,)),
            "second": Weight((self.hidden, self.hidden), make_kernel_initializer),
            "second_bias": Weight((self.hidden,)),
            **declare_weight_norm((self.hidden, self.outputs)),
        }

    def output(self, weights: Mapping[str, tf.Tensor], x: tf.Tensor, condition: Condition) -> tf.Tensor:
        h = tf.nn.elu(multiply_in_full_precision(x, weights["first"]) + weights["first_bias"])
        h = tf.nn.elu(multiply_in_full_precision(h, weights["second"]) + weights["second_bias"])
        kernel = normalize_kernel(weights["last_direction"], weights["last_gain"])
        return multiply_in_full_precision(h, kernel) + weights["last_bias"]
