"""The deployed encoders and dequantisation: each convolution has its batch normalisation multiplied into its kernel."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from export.deployed.deployed_flow import DeployedFlow
from export.deployed.deployed_layers import DeployedLinear, normalised
from export.deployed.graph import Deployed, Layout, LogDets, values
from tfdecouple.bijectors import Sigmoid
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder, ResNetBlock


def _normalised_convolution(
    name: str, convolution: Any, norm: Any, layout: Layout, strides: int
) -> DeployedLinear | DeployedTransposed:
    scale = values(norm.gamma) / np.sqrt(values(norm.moving_variance) + norm.epsilon)
    shift = values(norm.beta) - values(norm.moving_mean) * scale
    kernel = values(convolution.kernel)
    if isinstance(convolution, keras.layers.Conv2DTranspose):
        return DeployedTransposed.of(name, np.swapaxes(kernel, 2, 3) * scale, shift, layout, strides)
    return DeployedLinear.of(name, kernel * scale, shift, layout, strides=strides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedTransposed(Deployed):
    """A transposed convolution as a plain one, which every runtime has and computes fast.

    With a stride of 2 each place of the input becomes four pixels of the output, and each of them sees one of four
    parts of the kernel: a convolution to four times the channels, unsqueezed.

    Attributes:
        linear: the plain convolution.
        strides: 1, or 2 where height and width are doubled.
        layout: of the images.
    """

    linear: DeployedLinear
    strides: int
    layout: Layout

    @classmethod
    def of(cls, name: str, kernel: np.ndarray, bias: np.ndarray, layout: Layout, strides: int) -> Self:
        """Makes it from a kernel `[size, size, inputs, outputs]`, size 1 or 3, and a bias, both in float64."""
        size, _, inputs, outputs = kernel.shape
        reach = size // 2
        plain = np.zeros((3, 3, inputs, strides, strides, outputs))
        # Output pixel p = strides * input - reach + tap, for each tap of the kernel.
        for row, column in np.ndindex(size, size):
            (down, r), (right, c) = (divmod(tap - reach, strides) for tap in (row, column))
            plain[1 - down, 1 - right, :, r, c] += kernel[row, column]
        whole = plain.reshape(3, 3, inputs, strides**2 * outputs)
        linear = DeployedLinear.of(f"{name}/plain", whole, np.tile(bias, strides**2), layout)
        return cls(name=name, linear=linear, strides=strides, layout=layout)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Maps images."""
        y = self.linear(x)
        return self.layout.unsqueezed(y) if self.strides > 1 else y


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedBlock(Deployed):
    """A ResNet block.

    Attributes:
        first: convolution, of stride 1 or 2, which may be transposed, as may all.
        second: convolution.
        shortcut: convolution, or None where the shortcut is the input itself.
        layout: of the images.
    """

    first: DeployedLinear | DeployedTransposed
    second: DeployedLinear | DeployedTransposed
    shortcut: DeployedLinear | DeployedTransposed | None
    layout: Layout

    @classmethod
    def from_layer(cls, block: ResNetBlock, name: str, layout: Layout) -> Self:
        """Folds a block."""
        shortcut = None
        if block.shortcut:
            convolution, norm = block.shortcut
            shortcut = _normalised_convolution(f"{name}/shortcut", convolution, norm, layout, block.strides)
        first = _normalised_convolution(f"{name}/first", block.convolution_1, block.norm_1, layout, block.strides)
        second = _normalised_convolution(f"{name}/second", block.convolution_2, block.norm_2, layout, 1)
        return cls(name=name, first=first, second=second, shortcut=shortcut, layout=layout)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the block's output."""
        with self.scope():
            shortcut = x if self.shortcut is None else self.shortcut(x)
            return self.layout.elu(self.second(self.layout.elu(self.first(x))) + shortcut)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedEncoder(Deployed):
    """The encoder of images in the layout of the graph.

    Attributes:
        blocks: in their order.
        top: the convolution after them.
        last: the dense layer, its inputs in the order of the layout.
        layout: of the images.
    """

    blocks: tuple[DeployedBlock, ...]
    top: DeployedLinear
    last: DeployedLinear
    layout: Layout

    @classmethod
    def from_layer(cls, encoder: Encoder, layout: Layout, sides: tuple[int, int]) -> Self:
        """Folds an encoder whose last maps have so many rows and columns."""
        blocks = (DeployedBlock.from_layer(block, f"encoder/{block.name}", layout) for block in encoder.blocks)
        kernel, bias = normalised(encoder.last)
        order = layout.flattened(*sides, encoder.out_channels)
        top = encoder.top
        return cls(
            name="encoder",
            blocks=tuple(blocks),
            top=DeployedLinear.of("encoder/top", values(top.kernel), values(top.bias), layout),
            last=DeployedLinear.of("encoder/last", kernel[order], bias, layout),
            layout=layout,
        )

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of z, each `[batch, d_z]`, of x in [-1, 1)."""
        with self.scope():
            for block in self.blocks:
                x = block(x)
            h = self.layout.elu(self.top(x))
            mean, log_variance = tf.split(self.last(tf.reshape(h, [-1, self.last.kernel.shape[0]])), 2, -1)
            return mean, log_variance


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedDequantizer(Deployed):
    """q(u|x) of images in the layout of the graph.

    Attributes:
        blocks: of the network from images to maps, in their order.
        flow: from noise to u, but for the sigmoid.
        layout: of the images.
    """

    blocks: tuple[DeployedBlock, ...]
    flow: DeployedFlow
    layout: Layout

    @classmethod
    def from_layer(cls, dequantizer: Dequantizer, layout: Layout) -> Self:
        """Folds both networks."""
        blocks = dequantizer.encoder.blocks
        return cls(
            name="dequantizer",
            blocks=tuple(DeployedBlock.from_layer(one, f"dequantizer/encoder/{one.name}", layout) for one in blocks),
            flow=DeployedFlow.from_layer(dequantizer.flow, layout, "dequantizer/flow"),
            layout=layout,
        )

    def forward(self, x: tf.Tensor, noise: tf.Tensor, log_dets: LogDets) -> tf.Tensor:
        """Returns u of x in [-1, 1), without noise, and of normal noise; `log_dets` takes the log-determinants."""
        with self.scope():
            for block in self.blocks:
                x = block(x)
            y = self.flow.forward(noise, x, log_dets)
            u, log_det = Sigmoid().forward_and_log_det(y)
            log_dets.append(log_det)
            return u
