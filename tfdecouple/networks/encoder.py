"""The encoder q(z|x), which computes mean and log-variance of z from an image (paper section 2.1 and B.1)."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.config import ModelConfig
from tfdecouple.config.shapes import Shape
from tfdecouple.layers.base import BaseLayer, Children, Runner, Weight
from tfdecouple.layers.colour_map import measure_colours
from tfdecouple.layers.conditioners import (
    StartsAtZero,
    declare_weight_norm,
    make_bias_initializer,
    make_kernel_initializer,
)
from tfdecouple.numerics.arithmetic import get_sizes, multiply_sizes, sum_over_devices
from tfdecouple.numerics.kernels import get_kernels, normalize_kernel
from tfdecouple.numerics.tf32 import full_float32

# Standard deviation of the noise of q(z|x) at the start, in the entries of z that are colours.
_COLOUR_NOISE = 0.05
# Weight of the old value when batch normalisation updates its moving statistics.
_MOMENTUM = 0.9


class Convolution(BaseLayer):
    """A convolution, or transposed convolution, that pads maps with equally many zeros on all sides.

    TensorFlow's padding "SAME" would pad an even image on one side only at stride 2.

    Args:
        planes: count of output channels.
        size: side of the kernel, 1 or 3.
        strides: factor by which height and width shrink; a transposed convolution enlarges them by this factor.
        transposed: whether the convolution is transposed.
        bias_fan_in: fan-in of the kernel, which sets the range of the initial bias; 0 for a convolution without bias.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        planes: int,
        size: int,
        strides: int = 1,
        *,
        transposed: bool = False,
        bias_fan_in: int = 0,
        **kwargs: object,
    ):
        super().__init__(**kwargs)
        self.planes = planes
        self.size = size
        self.strides = strides
        self.transposed = transposed
        self.bias_fan_in = bias_fan_in

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        channels = (self.planes, x_shape[-1]) if self.transposed else (x_shape[-1], self.planes)
        weights = {"kernel": Weight((self.size, self.size, *channels), make_kernel_initializer)}
        if self.bias_fan_in:
            weights["bias"] = Weight((self.planes,), functools.partial(make_bias_initializer, self.bias_fan_in))
        return weights

    def compute_output_shape(self, x_shape: Shape) -> tuple:
        batch, height, width, _ = x_shape
        sides = (side * self.strides if self.transposed else side // self.strides for side in (height, width))
        return (batch, *sides, self.planes)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Convolves maps x to `planes` channels; `strides` divides (if `transposed`, multiplies) the maps' sides."""
        kernels, kernel = get_kernels(), tf.convert_to_tensor(self.kernel)
        y = self._transpose(x, kernel) if self.transposed else kernels.convolve_padded(x, kernel, self.strides)
        return kernels.add_bias(y, tf.convert_to_tensor(self.bias)) if self.bias_fan_in else y

    def _transpose(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        images, rows, columns, _ = get_sizes(x)
        size, step, border, planes = self.size, self.strides, self.size // 2, self.planes
        if size == 1 and step > 1:
            # Zeros are inserted after the convolution, because strided 1x1 kernels are unsafe in oneDNN (see `call`).
            y = tf.nn.conv2d_transpose(x, kernel, [images, rows, columns, planes], 1, "VALID")
            gaps = [[0, 0], [0, 0], [0, step - 1], [0, 0], [0, step - 1], [0, 0]]
            return tf.reshape(tf.pad(y[:, :, None, :, None], gaps), [images, rows * step, columns * step, planes])
        sides = [(side - 1) * step + size for side in (rows, columns)]
        y = tf.nn.conv2d_transpose(x, kernel, [images, *sides, planes], step, "VALID")
        return y[:, border : border + rows * step, border : border + columns * step]


class BatchNorm(BaseLayer):
    """Batch normalisation with the statistics of the images on all devices; `epsilon` is added to the variance."""

    epsilon = 1e-5

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        shape = x_shape[-1:]
        return {
            "gamma": Weight(shape, "ones"),
            "beta": Weight(shape),
            "moving_mean": Weight(shape, trainable=False),
            "moving_variance": Weight(shape, "ones", trainable=False),
        }

    def compute_output_shape(self, x_shape: Shape) -> tuple:
        return tuple(x_shape)

    def normalize(self, parts: list[tf.Tensor], training: bool) -> list[tf.Tensor]:
        """Normalises a batch of maps, given in parts that are computed in parallel; returns the normalised parts.

        In training the statistics are those of the batch, and the moving statistics are updated; otherwise, and in a
        layer that is not trainable, they are the moving statistics.
        """
        if training and self.trainable:
            mean, variance = _batch_statistics(parts)
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * _MOMENTUM + new * (1 - _MOMENTUM))
        else:
            mean, variance = map(tf.convert_to_tensor, (self.moving_mean, self.moving_variance))
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.convert_to_tensor(self.gamma)
        shift = tf.convert_to_tensor(self.beta) - mean * scale
        return [get_kernels().scale_channels(part, scale, shift) for part in parts]


def _batch_statistics(parts: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    images = sum(get_sizes(part)[0] for part in parts)
    count = multiply_sizes([images, *get_sizes(parts[0])[1:-1]], parts[0].dtype)
    # The last batch of an epoch may have more images on one device than on another.
    total, count = sum_over_devices([tf.add_n([tf.reduce_sum(part, [0, 1, 2]) for part in parts]), count])
    mean = total / count
    squares = [tf.reduce_sum(tf.math.squared_difference(part, mean), [0, 1, 2]) for part in parts]
    return mean, sum_over_devices(tf.add_n(squares)) / count


@keras.saving.register_keras_serializable(package="tfdecouple")
class ResNetBlock(BaseLayer):
    """A ResNet block: conv3x3 - BatchNorm - ELU - conv3x3 - BatchNorm plus shortcut, then ELU.

    The shortcut is the identity if the output has the shape of the input, and otherwise conv1x1 - BatchNorm. The number
    of output channels is `planes`. With `strides` 2 height and width are halved, or doubled if all convolutions are
    `transposed`.
    """

    def __init__(self, planes: int, strides: int = 1, transposed: bool = False, **kwargs: object):
        super().__init__(**kwargs)
        self.planes = planes
        self.strides = strides
        self.transposed = transposed
        self.convolution_1 = Convolution(planes, 3, strides, transposed=transposed, name="convolution_1")
        self.norm_1 = BatchNorm(name="norm_1")
        self.convolution_2 = Convolution(planes, 3, transposed=transposed, name="convolution_2")
        self.norm_2 = BatchNorm(name="norm_2")
        self.shortcut: list[BaseLayer] = []

    def children(self, x_shape: Shape, condition_shape: Shape | None = None) -> Children:
        inner = self.compute_output_shape(x_shape)
        if not self.shortcut and (self.strides != 1 or x_shape[-1] != self.planes):
            name = "shortcut_convolution"
            convolution = Convolution(self.planes, 1, self.strides, transposed=self.transposed, name=name)
            self.shortcut = [convolution, BatchNorm(name="shortcut_norm")]
        layers = (self.convolution_1, self.norm_1, self.convolution_2, self.norm_2, *self.shortcut)
        return [
            (layer, shape, None)
            for layer, shape in zip(layers, (x_shape, inner, inner, inner, x_shape, inner), strict=False)
        ]

    def compute_output_shape(self, x_shape: Shape) -> tuple:
        return self.convolution_1.compute_output_shape(x_shape)

    @full_float32()
    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns this block's output for maps x; `strides` divides (in a transposed block, multiplies) the sides."""
        return self.run_parts([x], training)[0]

    def run_parts(self, parts: list[tf.Tensor], training: bool) -> list[tf.Tensor]:
        """Returns this block's outputs for a batch, given in parts that only the batch normalisations join."""
        h = self.norm_1.normalize([self.convolution_1.call(part) for part in parts], training)
        h = self.norm_2.normalize([self.convolution_2.call(tf.nn.elu(part)) for part in h], training)
        if self.shortcut:
            convolution, norm = self.shortcut
            parts = norm.normalize([convolution.call(part) for part in parts], training)
        return [tf.nn.elu(left + right) for left, right in zip(h, parts, strict=True)]


class ImageNetwork(BaseLayer):
    """The base class of networks of an image, such as encoders.

    Subclasses implement `call(x, training)`. An encoder returns mean and log-variance of z, each `[batch, d_z]`, which
    are 0 after `reset_to_zero`. The attribute `runner` runs the network without training, as for an `InvertibleLayer`;
    None for a direct call.
    """

    runner: Any = None

    @full_float32()
    def run_inference(self, x: tf.Tensor, runner: Runner | None = None) -> tf.Tensor:
        """Returns `call(x, training=False)` for images x, computed by `runner`, or by the attribute if it is None."""
        if not (runner := runner or self.runner):
            return self(x, training=False)
        outputs = runner(ImageNetwork._infer, self, x)
        return outputs if len(outputs) > 1 else outputs[0]

    def _infer(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.nest.flatten(self(x, training=False)))


class _BlockNetwork(ImageNetwork):
    """The base class of networks that run ResNet blocks in sequence: first two blocks for each level of an encoder.

    The second block of a level halves height and width. `channels` are the counts of output channels of the levels.
    """

    def __init__(self, channels: Sequence[int], **kwargs: object):
        super().__init__(**kwargs)
        self.channels = tuple(channels)
        self.blocks = [
            ResNetBlock(planes, strides, name=f"level_{level}_block_{strides}")
            for level, planes in enumerate(channels)
            for strides in (1, 2)
        ]

    def children(self, x_shape: Shape, condition_shape: Shape | None = None) -> Children:
        children: Children = []
        for block in self.blocks:
            children.append((block, x_shape, None))
            x_shape = block.compute_output_shape(x_shape)
        return children

    def _run_blocks(self, x: tf.Tensor, training: bool) -> list[tf.Tensor]:
        # In training the batch is divided here, because each batch normalisation joins the statistics of all parts.
        # Otherwise the caller may have divided the batch, as no image depends on another image.
        parts = get_kernels().split_batch(x) if training else [x]
        for block in self.blocks:
            parts = block.run_parts(parts, training)
        return parts


@keras.saving.register_keras_serializable(package="tfdecouple")
class Encoder(StartsAtZero, _BlockNetwork):
    """The encoder: levels of two ResNet blocks each, then conv1x1 - ELU - flatten - FC to mean and log-variance of z.

    At the start the last layer is 0, so z (except for colours) is standard normal for any image (the paper's zero
    initialisation, section 2.1). The paper's code aims at outputs of standard deviation 0.01 instead, and misses this
    value in training mode.

    Args:
        latent_dim: size of z.
        channels: count of output channels of each level; each level halves height and width.
        out_channels: count of channels before flattening (the paper's c').
        colours: count of the first numbers of z that are mean and covariance of the image's colours
            (`measure_colours`); 0 for none.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, latent_dim: int, channels: tuple[int, ...], out_channels: int, colours: int = 0, **kwargs: object
    ):
        super().__init__(channels, **kwargs)
        self.latent_dim = latent_dim
        self.out_channels = out_channels
        self.colours = colours
        self.top = Convolution(out_channels, 1, bias_fan_in=self.channels[-1], name="top")

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        outputs = 2 * self.latent_dim - self.colours
        return declare_weight_norm((math.prod(self.compute_map_shape(x_shape)[1:]), outputs))

    def children(self, x_shape: Shape, condition_shape: Shape | None = None) -> Children:
        blocks = super().children(x_shape)
        block, shape, _ = blocks[-1]
        return [*blocks, (self.top, block.compute_output_shape(shape), None)]

    def compute_map_shape(self, x_shape: Shape) -> tuple:
        """Returns the shape, batch first, of the map before the encoder's dense layer, for images of `x_shape`."""
        return (*self.children(x_shape)[-1][1][:-1], self.out_channels)

    def compute_output_shape(self, x_shape: Shape) -> tuple[tuple, tuple]:
        return ((x_shape[0], self.latent_dim),) * 2

    @full_float32()
    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of z, each `[batch, d_z]`, for images x in [-1, 1) without noise."""
        h = _join([tf.nn.elu(self.top.call(part)) for part in self._run_blocks(x, training)])
        weights = self.read_tensors()
        kernel = normalize_kernel(weights["last_direction"], weights["last_gain"])
        h = tf.matmul(tf.reshape(h, [-1, kernel.shape[0]]), kernel) + weights["last_bias"]
        rest = self.latent_dim - self.colours
        mean, log_variance = tf.split(h, [rest, self.latent_dim], -1)
        if self.colours:
            mean = tf.concat([measure_colours(x), mean], -1)
            log_variance += [2 * math.log(_COLOUR_NOISE)] * self.colours + [0.0] * rest
        return mean, log_variance


def make_encoder(config: ModelConfig, name: str) -> Encoder:
    """Returns the `Encoder` of a model's config, unbuilt."""
    return Encoder(
        config.latent_dim, config.encoder_channels, config.encoder_out_channels, config.colour_numbers, name=name
    )


@keras.saving.register_keras_serializable(package="tfdecouple")
class LocalResNet(_BlockNetwork):
    """A network from an image to a map of the image's size: the encoder's blocks, then as many transposed blocks.

    `channels` are the counts of output channels of the encoder's levels, which each halve height and width.
    `map_channels` is the count of channels of the map.
    """

    def __init__(self, channels: tuple[int, ...], map_channels: int, **kwargs: object):
        super().__init__(channels, **kwargs)
        self.map_channels = map_channels
        # The second transposed block of a level doubles height and width, and has the channels of the level before.
        narrower = (map_channels, *channels)
        self.blocks.extend(
            ResNetBlock(planes, strides, transposed=True, name=f"up_{level}_block_{strides}")
            for level in reversed(range(len(channels)))
            for strides, planes in ((1, channels[level]), (2, narrower[level]))
        )

    def compute_output_shape(self, x_shape: Shape) -> tuple:
        return (*x_shape[:-1], self.map_channels)

    @full_float32()
    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns maps `[batch, height, width, map_channels]` for images x of the same size in [-1, 1)."""
        return _join(self._run_blocks(x, training))


def _join(parts: list[tf.Tensor]) -> tf.Tensor:
    return tf.concat(parts, 0) if len(parts) > 1 else parts[0]
