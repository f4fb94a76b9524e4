"""The encoder of z, and the ResNet blocks of which it and that of the dequantisation are made."""

from __future__ import annotations

import dataclasses
import math

from tfdecouple.architecture.weights import Shape, Weights, batch_norm, under, weight_norm
from tfdecouple.levels import BlockPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetPlan:
    """A row of ResNet blocks.

    Attributes:
        image_shape: height, width and channels of the images.
        blocks: in their order.
    """

    image_shape: tuple[int, int, int]
    blocks: tuple[BlockPlan, ...]

    def sides(self, block: BlockPlan) -> tuple[int, int]:
        """Returns height and width of a block's input."""
        height, width, _ = self.image_shape
        return height // block.reduction, width // block.reduction

    def out_sides(self, block: BlockPlan) -> tuple[int, int]:
        """Returns height and width of a block's output."""
        height, width, _ = self.image_shape
        return height // block.out_reduction, width // block.out_reduction

    def block_weights(self, block: BlockPlan) -> Weights:
        """Returns `{name: shape}` of a block's weights."""

        def kernel(size: int, channels: int) -> Shape:
            # Of a transposed convolution Keras has the outputs first.
            ends = (block.planes, channels) if block.transposed else (channels, block.planes)
            return (size, size, *ends)

        weights = {
            "convolution_1/kernel": kernel(3, block.channels),
            **batch_norm("norm_1", block.planes),
            "convolution_2/kernel": kernel(3, block.planes),
            **batch_norm("norm_2", block.planes),
        }
        if block.shortcut:
            weights["shortcut_convolution/kernel"] = kernel(1, block.channels)
            weights |= batch_norm("shortcut_norm", block.planes)
        return weights

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        weights: Weights = {}
        for block in self.blocks:
            weights |= under(block.name, self.block_weights(block))
        return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderPlan(ResNetPlan):
    """The encoder: ResNet blocks, a 1x1 convolution, and a dense layer to mean and log-variance of z (paper B.1).

    Attributes:
        out_channels: of the 1x1 convolution, whose output is flattened.
        latent_dim: size of z.
    """

    out_channels: int
    latent_dim: int

    @property
    def features(self) -> int:
        """How many numbers the dense layer reads."""
        return math.prod(self.out_sides(self.blocks[-1])) * self.out_channels

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        weights = super().weights()
        weights["top/kernel"] = (1, 1, self.blocks[-1].planes, self.out_channels)
        weights["top/bias"] = (self.out_channels,)
        return weights | weight_norm((self.features, 2 * self.latent_dim))
