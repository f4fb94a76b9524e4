"""The compression encoder q(z|x): an image to mean and log-variance of z (paper section 2.1 and appendix B.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.config.shapes import encoder_blocks
from tfdecouple.layers.base import Cost, FullLayer, Nested, Shape, Weight
from tfdecouple.layers.nets import StartsAtZero, bound_uniform, fan_in_uniform, weight_norm
from tfdecouple.runtime.execution import Batch, Execution, divided, image_by_image, joined, total
from tfdecouple.runtime.numerics import product, sizes
from tfdecouple.runtime.precision import full_float32


def make_convolution(planes: int, size: int, strides: int, transposed: bool, **options: Any) -> keras.layers.Layer:
    """Returns a convolution of the encoder, or a transposed one, without padding."""
    kind = keras.layers.Conv2DTranspose if transposed else keras.layers.Conv2D
    return kind(planes, size, strides, padding="valid", kernel_initializer=fan_in_uniform(), dtype="float32", **options)


def _batch_norm(name: str) -> BatchNorm:
    return BatchNorm(momentum=0.9, epsilon=1e-5, dtype="float32", name=name)


@keras.saving.register_keras_serializable(package="tfdecouple")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalisation of images by the statistics of all devices, with Keras' options and weights."""

    def call(self, x: Batch, training: bool = False, mask: None = None) -> Batch:
        """Returns the images normalised; in training their own statistics do it, and move the moving ones.

        Args:
            x: `[batch, height, width, channels]`.
            training: whether to normalise by the batch; a layer that is not trainable never does.
            mask: none; Keras' has one.
        """
        if training and self.trainable:
            mean, variance = _moments(x)
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + new * (1 - self.momentum))
        else:
            mean, variance = map(tf.convert_to_tensor, (self.moving_mean, self.moving_variance))
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.convert_to_tensor(self.gamma)
        return _scaled(x, scale, tf.convert_to_tensor(self.beta) - mean * scale)


@image_by_image
def _scaled(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    return x * scale + shift


def _moments(x: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and (biased) variance of each channel over the images of all devices, `[channels]`.

    Every device has as many images as another.
    """
    shards = x if isinstance(x, list) else [x]
    images = sum(sizes(shard)[0] for shard in shards)
    count = product([images, *sizes(shards[0])[1:-1]], shards[0].dtype)

    def mean_of(function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        mean = total(function, x) / count
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return mean
        return replica.all_reduce(tf.distribute.ReduceOp.MEAN, mean)

    mean = mean_of(lambda images: tf.reduce_sum(images, [0, 1, 2]))
    variance = mean_of(lambda images: tf.reduce_sum(tf.math.squared_difference(images, mean), [0, 1, 2]))
    return mean, variance


@image_by_image
def convolved(x: tf.Tensor, convolution: keras.layers.Layer) -> tf.Tensor:
    """Returns a convolution padded alike on both sides: "same" pads an even image on one side only at stride 2.

    Of a transposed one, the gradient of such a convolution, the same rows and columns are cut off.
    """
    width = convolution.kernel_size[0] // 2
    if not width and convolution.strides != (1, 1):
        return _single(x, tf.convert_to_tensor(convolution.kernel), convolution)
    if isinstance(convolution, keras.layers.Conv2DTranspose):
        rows, columns = (size * convolution.strides[0] for size in sizes(x)[1:3])
        return convolution(x)[:, width : width + rows, width : width + columns]
    if width and convolution.strides == (1, 1) and not convolution.use_bias:
        return tf.nn.conv2d(x, tf.convert_to_tensor(convolution.kernel), 1, "SAME")
    return convolution(tf.pad(x, [[0, 0], [width, width], [width, width], [0, 0]]) if width else x)


def _single(x: tf.Tensor, kernel: tf.Tensor, convolution: keras.layers.Layer) -> tf.Tensor:
    """Returns a 1x1 convolution with a stride, by one without: pixels are left out before it, or zeros put in after it.

    For the gradient of a kernel with a stride oneDNN writes beyond its memory where the images are an odd number, and
    with AVX-512 where maps of fewer than 16 channels have more than 40 rows (seen in 3.7.3; the process ends sooner or
    later). The numbers are the same.
    """
    step = convolution.strides[0]
    if not isinstance(convolution, keras.layers.Conv2DTranspose):
        return tf.nn.conv2d(x[:, ::step, ::step], kernel, 1, "VALID")
    images, rows, columns, _ = sizes(x)
    planes = kernel.shape[2]
    y = tf.nn.conv2d_transpose(x, kernel, [images, rows, columns, planes], 1, "VALID")
    gaps = [[0, 0], [0, 0], [0, step - 1], [0, 0], [0, step - 1], [0, 0]]
    return tf.reshape(tf.pad(y[:, :, None, :, None], gaps), [images, rows * step, columns * step, planes])


@image_by_image
def _elu(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.elu(x)


@image_by_image
def _elu_of_sum(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.nn.elu(x + y)


@keras.saving.register_keras_serializable(package="tfdecouple")
class ResNetBlock(Nested, FullLayer):
    """conv3x3 - BatchNorm - ELU - conv3x3 - BatchNorm plus shortcut, then ELU.

    The shortcut is the identity where neither size nor planes change, else conv1x1 - BatchNorm.

    Args:
        planes: output planes.
        strides: 1, or 2 to halve height and width.
        **kwargs: of `keras.layers.Layer`.
    """

    # Whether all convolutions are transposed.
    transposed = False

    def __init__(self, planes: int, strides: int = 1, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.planes = planes
        self.strides = strides
        self.convolution_1 = make_convolution(planes, 3, strides, self.transposed, use_bias=False, name="convolution_1")
        self.norm_1 = _batch_norm("norm_1")
        self.convolution_2 = make_convolution(planes, 3, 1, self.transposed, use_bias=False, name="convolution_2")
        self.norm_2 = _batch_norm("norm_2")
        self.shortcut: list[keras.layers.Layer] = []

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Builds the layers for `[batch, height, width, channels]`."""
        _, height, width, channels = x_shape
        batch, *_ = inner = self.compute_output_shape(x_shape)
        self.convolution_1.build((batch, height + 2, width + 2, channels))
        self.convolution_2.build((batch, inner[1] + 2, inner[2] + 2, self.planes))
        if self._has_shortcut(channels):
            self.shortcut = [
                make_convolution(
                    self.planes, 1, self.strides, self.transposed, use_bias=False, name="shortcut_convolution"
                ),
                _batch_norm("shortcut_norm"),
            ]
            self.shortcut[0].build(x_shape)
            self.shortcut[1].build(inner)
        self.norm_1.build(inner)
        self.norm_2.build(inner)
        self.built = True

    def weight_shapes(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Shape]:
        """Returns `{path: shape}` of the weights; the layers of Keras that own them know the shapes once built."""
        channels, planes = x_shape[-1], self.planes

        def kernel(size: int, channels: int) -> Shape:
            # Of a transposed convolution Keras has the outputs first.
            return (size, size, *((planes, channels) if self.transposed else (channels, planes)))

        kernels = {"convolution_1": kernel(3, channels), "convolution_2": kernel(3, planes)}
        norms = ["norm_1", "norm_2"]
        if self._has_shortcut(channels):
            kernels["shortcut_convolution"] = kernel(1, channels)
            norms.append("shortcut_norm")
        of_norms = itertools.product(norms, ("gamma", "beta", "moving_mean", "moving_variance"))
        return {f"{name}/kernel": shape for name, shape in kernels.items()} | {
            f"{norm}/{name}": (planes,) for norm, name in of_norms
        }

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns what the block costs for one image."""
        *sides, channels = x_shape[1:]
        *out_sides, planes = self.compute_output_shape(x_shape)[1:]
        shortcut, out, border = self._has_shortcut(channels), math.prod(out_sides), 0 if self.transposed else 2
        # A transposed convolution has its kernel at each position of its input.
        first = channels * planes * (9 + shortcut) * min(math.prod(sides), out)
        # The (padded) input of both convolutions, what each batch normalisation sees, and both ELUs' outputs.
        inner = planes * math.prod(side + border for side in out_sides)
        before = channels * math.prod(side + border for side in sides)
        kept = before + inner + (2 + shortcut + 2) * planes * out
        return Cost(first + 9 * planes**2 * out, kept=kept)

    def _has_shortcut(self, channels: int) -> bool:
        """Returns whether the block changes size or channels, so that its shortcut cannot be the identity."""
        return self.strides != 1 or channels != self.planes

    def compute_output_shape(self, x_shape: Any) -> tuple:
        """Returns the shape of what `call` gives."""
        batch, height, width, _ = x_shape
        sides = (side * self.strides if self.transposed else side // self.strides for side in (height, width))
        return (batch, *sides, self.planes)

    @full_float32()
    def call(self, x: Batch, training: bool = False) -> Batch:
        """Returns `[batch, height/strides, width/strides, planes]`; transposed, the sides times the strides.

        Args:
            x: `[batch, height, width, channels]`.
            training: as for `Encoder`.
        """
        # By `call`, since Keras would take a batch in shards for several inputs.
        h = self.norm_1.call(convolved(x, self.convolution_1), training)
        h = self.norm_2.call(convolved(_elu(h), self.convolution_2), training)
        if self.shortcut:
            convolution, norm = self.shortcut
            x = norm.call(convolved(x, convolution), training)
        return _elu_of_sum(h, x)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config.pop("dtype")
        return {**config, "planes": self.planes, "strides": self.strides}


@keras.saving.register_keras_serializable(package="tfdecouple")
class TransposedResNetBlock(ResNetBlock):
    """As `ResNetBlock`, of transposed convolutions: strides of 2 double height and width."""

    transposed = True


def chained(blocks: Sequence[ResNetBlock], x_shape: Any) -> list[tuple[FullLayer, Any, Any]]:
    """Returns blocks that follow each other, as `FullLayer.children`, given the shape of the first one's input."""
    found: list[tuple[FullLayer, Any, Any]] = []
    for block in blocks:
        found.append((block, x_shape, None))
        x_shape = block.compute_output_shape(x_shape)
    return found


@keras.saving.register_keras_serializable(package="tfdecouple")
class Encoder(StartsAtZero, Nested, FullLayer):
    """Levels of two ResNet blocks, then conv1x1 - ELU - flatten - FC to mean and log-variance.

    At the start the last layer is 0 and z is standard normal, whatever the image (the paper's zero initialisation,
    section 2.1; the reference aims at 0.01 instead, and misses it in training mode).

    Args:
        latent_dim: size of z.
        channels: planes of the levels; each halves height and width.
        out_channels: planes before flattening (the paper's c').
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, latent_dim: int, channels: tuple[int, ...], out_channels: int, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.execution = Execution()
        self.latent_dim = latent_dim
        self.channels = tuple(channels)
        self.out_channels = out_channels
        # Which blocks there are does not depend on the channels of the images.
        self.blocks = [
            ResNetBlock(planes, strides, name=name) for name, planes, strides, _ in encoder_blocks(self.channels)
        ]
        self.top = keras.layers.Conv2D(
            out_channels,
            1,
            kernel_initializer=fan_in_uniform(),
            bias_initializer=bound_uniform(self.channels[-1]),
            dtype="float32",
            name="top",
        )

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the last, dense layer, for images `[batch, height, width, channels]`."""
        return weight_norm((math.prod(self.map_shape(x_shape)[1:]), 2 * self.latent_dim))

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the blocks."""
        return chained(self.blocks, x_shape)

    def weight_shapes(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Shape]:
        """Returns `{path: shape}` of all weights, with those of `top`, which is a layer of Keras."""
        top = {"top/kernel": (1, 1, self.channels[-1], self.out_channels), "top/bias": (self.out_channels,)}
        return super().weight_shapes(x_shape) | top

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Builds the layers for images `[batch, height, width, channels]`."""
        self.top.build((*self.map_shape(x_shape)[:-1], self.channels[-1]))
        super().build(x_shape)

    def map_shape(self, x_shape: Any) -> tuple:
        """Returns the shape of the map that is flattened, batch first, for images of a shape."""
        block, shape, _ = self.children(x_shape)[-1]
        return (*block.compute_output_shape(shape)[:-1], self.out_channels)

    def compute_output_shape(self, x_shape: Any) -> tuple[tuple, tuple]:
        """Returns the shapes of what `call` gives."""
        return ((x_shape[0], self.latent_dim),) * 2

    @full_float32()
    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Encodes images.

        Args:
            x: `[batch, height, width, channels]` in [-1, 1), without noise.
            training: whether batch statistics normalise, and update the moving ones.

        Returns:
            mean and log-variance of z, each `[batch, d_z]`.
        """
        # Without training each image is by itself, and whoever calls this has divided the batch.
        batch: Batch = divided(x) if training else x
        for block in self.blocks:
            batch = block(batch, training=training)
        h = joined(_elu(convolved(batch, self.top)))
        h = tf.reshape(h, [-1, self.last.direction.shape[0]])
        h = tf.matmul(h, self.last.kernel()) + tf.convert_to_tensor(self.last.bias)
        mean, log_variance = tf.split(h, 2, -1)
        return mean, log_variance

    @full_float32()
    def infer(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `call` without training, where each image is by itself: the fast way for a caller outside of a graph."""
        return self.execution.run(self, self._infer, x)

    def _infer(self, x: tf.Tensor, condition: None = None) -> tuple[tf.Tensor, tf.Tensor]:
        return self.execution.run_whole(self._by_averages, x)

    def _by_averages(self, x: tf.Tensor, condition: None = None) -> tuple[tf.Tensor, tf.Tensor]:
        return self(x, training=False)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config.pop("dtype")
        return {
            **config,
            "latent_dim": self.latent_dim,
            "channels": self.channels,
            "out_channels": self.out_channels,
        }
