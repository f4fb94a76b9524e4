"""The conversion between pixels, their levels (bins), and the numbers x in [-1, 1) that the flow maps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """A quantizer that converts pixels 0..255 to levels 0..n_bins - 1, levels to x in [-1, 1), and x to pixels.

    Level k is the bin from 2k / n_bins - 1 to 2(k + 1) / n_bins - 1 of x. Uniform dequantization (Uria et al., 2013)
    draws x within the bin. Images are encoded at the centres of the bins, so that a pixel is recovered if x is off by
    less than half a bin. Methods that only add and multiply accept NumPy arrays and tensors of any floating type.

    >>> quantizer = Quantizer(5)
    >>> quantizer.levels(tf.constant([0, 7, 8, 255], tf.uint8)).numpy().tolist()
    [0.0, 0.0, 1.0, 31.0]
    >>> quantizer.pixels(quantizer.centres(tf.constant([0.0, 1.0, 31.0]))).numpy().tolist()
    [0, 8, 248]

    Attributes:
        n_bits: bits per colour value, 1 to 8.
    """

    n_bits: int

    @property
    def n_bins(self) -> int:
        """The number of levels."""
        return 2**self.n_bits

    @property
    def step(self) -> int:
        """The number of pixel values that share a level."""
        return 256 // self.n_bins

    @property
    def width(self) -> float:
        """The width of a bin in x, a power of two, so that float32 multiplies by the width without rounding."""
        return 2 / self.n_bins

    def levels(self, pixels: Any) -> tf.Tensor:
        """Returns the level of each pixel, a whole number in float32."""
        levels = tf.cast(pixels, tf.float32)
        return levels if self.step == 1 else tf.floor(levels / self.step)

    def edges(self, levels: Any) -> Any:
        """Returns x at the lower edge of each level's bin, the encoder's input."""
        return levels * self.width - 1

    def within(self, levels: Any, u: Any) -> Any:
        """Returns x at the position u in [0, 1) within each level's bin."""
        return (levels + u) * self.width - 1

    def centres(self, levels: Any) -> Any:
        """Returns x at the centre of each level's bin."""
        return self.within(levels, 0.5)

    def places(self, x: Any) -> Any:
        """Returns x in units of levels, from 0 to n_bins; rounded down, the result is the level."""
        return (x + 1) * (self.n_bins / 2)

    def pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the pixels of x as uint8; values of x outside of [-1, 1) are clipped."""
        levels = tf.clip_by_value(tf.floor(self.places(x)), 0, self.n_bins - 1)
        return tf.cast(levels if self.step == 1 else levels * self.step, tf.uint8)

    def quantize(self, pixels: Any) -> tf.Tensor:
        """Returns each pixel replaced by the lowest value of its level, uint8: the model distinguishes levels only."""
        return self.pixels(self.centres(self.levels(pixels)))

    def bits_per_dim(self, nats: Any, dimensions: int) -> Any:
        """Returns bits per colour value of the discrete images, given -log p(x) in nats per image.

        The bits are an upper bound: -log P(image) is at most the mean of -log p(x) in its bins, minus their log-widths.

        Args:
            nats: -log p(x) of each image, of any shape.
            dimensions: number of colour values of an image.
        """
        return (nats / dimensions - math.log(self.width)) / math.log(2)
