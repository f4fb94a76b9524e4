"""The deployed encoder and dequantiser, with each batch normalisation folded into its convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.deployed.deployed_layers import DeployedLinear, fold_weight_norm
from export.deployed.deployed_networks import DeployedFlow, sum_log_dets
from export.deployed.graph import Deployed, Layout, LogDets, to_float64
from tfdecouple.bijectors import Sigmoid
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder, ResNetBlock


def fold_convolution(name: str, convolution: Any, norm: Any, layout: Layout, strides: int) -> DeployedLinear:
    """Returns one plain convolution that equals a convolution, perhaps a transposed one, and its batch normalisation.

    A transposed convolution of stride 2 makes four pixels of each input position, each with one of four parts of the
    kernel. It equals a plain convolution to four times the channels, unsqueezed, which every runtime computes fast.
    """
    scale = to_float64(norm.gamma) / np.sqrt(to_float64(norm.moving_variance) + norm.epsilon)
    shift = to_float64(norm.beta) - to_float64(norm.moving_mean) * scale
    kernel = to_float64(convolution.kernel)
    if not convolution.transposed:
        return DeployedLinear(name, kernel * scale, shift, layout, strides)
    kernel = np.swapaxes(kernel, 2, 3) * scale
    size, _, inputs, outputs = kernel.shape
    reach = size // 2
    plain = np.zeros((3, 3, inputs, strides, strides, outputs))
    # Each kernel position `tap` connects the input position i with the output position strides * i - reach + tap.
    for row, column in np.ndindex(size, size):
        (down, r), (right, c) = (divmod(tap - reach, strides) for tap in (row, column))
        plain[1 - down, 1 - right, :, r, c] += kernel[row, column]
    whole, bias = plain.reshape(3, 3, inputs, strides**2 * outputs), np.tile(shift, strides**2)
    return DeployedLinear(name, whole, bias, layout, unsqueezes=strides > 1)


class DeployedBlock(Deployed):
    """A deployed ResNet block, whose convolutions may be transposed."""

    def __init__(self, block: ResNetBlock, name: str, layout: Layout):
        super().__init__(name, layout)
        self.shortcut = None
        if block.shortcut:
            convolution, norm = block.shortcut
            self.shortcut = fold_convolution(f"{name}/shortcut", convolution, norm, layout, block.strides)
        self.first = fold_convolution(f"{name}/first", block.convolution_1, block.norm_1, layout, block.strides)
        self.second = fold_convolution(f"{name}/second", block.convolution_2, block.norm_2, layout, 1)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the output of the block for images in the layout of the graph."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.layout.elu(self.second(self.layout.elu(self.first(x))) + shortcut)


def fold_blocks(blocks: Sequence[ResNetBlock], name: str, layout: Layout) -> tuple[DeployedBlock, ...]:
    """Returns the deployed form of the ResNet blocks of an encoder, in their order."""
    return tuple(DeployedBlock(block, f"{name}/{block.name}", layout) for block in blocks)


class DeployedEncoder(Deployed):
    """The deployed encoder q(z|x), whose last feature maps have `sides` rows and columns."""

    def __init__(self, encoder: Encoder, layout: Layout, sides: tuple[int, int]):
        super().__init__("encoder", layout)
        self.blocks = fold_blocks(encoder.blocks, "encoder", layout)
        self.top = DeployedLinear("encoder/top", to_float64(encoder.top.kernel), to_float64(encoder.top.bias), layout)
        kernel, bias = fold_weight_norm(encoder.last)
        self.last = DeployedLinear(
            "encoder/last", kernel[layout.order_flattened(*sides, encoder.out_channels)], bias, layout
        )

    def infer(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the mean and log-variance of q(z|x), each `[batch, d_z]`, for x in [-1, 1)."""
        for block in self.blocks:
            x = block(x)
        h = self.layout.elu(self.top(x))
        mean, log_variance = tf.split(self.last(tf.reshape(h, [-1, self.last.kernel.shape[0]])), 2, -1)
        return mean, log_variance


class DeployedDequantizer(Deployed):
    """The deployed q(u|x): a network from images to feature maps, and the flow that the feature maps condition."""

    def __init__(self, dequantizer: Dequantizer, layout: Layout):
        super().__init__("dequantizer", layout)
        self.blocks = fold_blocks(dequantizer.encoder.blocks, "dequantizer/encoder", layout)
        self.flow = DeployedFlow(dequantizer.flow, layout, "dequantizer/flow")

    def forward_and_log_det(self, x: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns u from normal noise and x in [-1, 1) (lower edges of bins), and the log-determinant `[batch]`."""
        for block in self.blocks:
            x = block(x)
        log_dets: LogDets = []
        u, log_det = Sigmoid().forward_and_log_det(self.flow.forward(noise, x, log_dets))
        return u, sum_log_dets([*log_dets, log_det])
