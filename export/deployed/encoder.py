"""The encoder as it is deployed: convolutions with their batch normalisation multiplied in."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
import tensorflow as tf

from export.deployed.base import Deployed, values
from export.deployed.layout import Layout
from export.deployed.linear import DeployedLinear, normalised
from tfdecouple.networks.encoder import Encoder, ResNetBlock


def _normalised_convolution(name: str, convolution: Any, norm: Any, layout: Layout, strides: int) -> DeployedLinear:
    scale = values(norm.gamma) / np.sqrt(values(norm.moving_variance) + norm.epsilon)
    shift = values(norm.beta) - values(norm.moving_mean) * scale
    return DeployedLinear.of(name, values(convolution.kernel) * scale, shift, layout, strides=strides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedBlock(Deployed):
    """A ResNet block.

    Attributes:
        first: convolution, of stride 1 or 2.
        second: convolution.
        shortcut: convolution, or None where the shortcut is the input itself.
        layout: of the images.
    """

    first: DeployedLinear
    second: DeployedLinear
    shortcut: DeployedLinear | None
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
    def from_layer(cls, encoder: Encoder, layout: Layout, side: int) -> Self:
        """Folds an encoder whose last maps have so many rows and columns."""
        blocks = (DeployedBlock.from_layer(block, f"encoder/{block.name}", layout) for block in encoder.blocks)
        kernel, bias = normalised(encoder.last)
        order = layout.flattened(side, side, encoder.out_channels)
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
