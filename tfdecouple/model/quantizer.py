"""Pixels, their levels, and the numbers in [-1, 1) that the flow maps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """Turns pixels 0..255 into levels 0..n_bins - 1, levels into x in [-1, 1), and back.

    Level k is the bin from 2k / n_bins - 1 to 2(k + 1) / n_bins - 1 of x. Uniform dequantization (Uria et al., 2013)
    draws x within the bin. Codes are taken at its centre, so that the pixel still comes back if x is off by less than
    half a bin. Methods that only add and multiply take NumPy arrays as well as tensors, of any floating type.

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
        """The width of a bin in x: a power of two, by which float32 multiplies without rounding."""
        return 2 / self.n_bins

    def levels(self, pixels: Any) -> tf.Tensor:
        """Returns the levels of pixels, whole numbers as float32."""
        levels = tf.cast(pixels, tf.float32)
        return levels if self.step == 1 else tf.floor(levels / self.step)

    def edges(self, levels: Any) -> Any:
        """Returns the lower edges of the bins in x, the encoder's input."""
        return levels * self.width - 1

    def within(self, levels: Any, u: Any) -> Any:
        """Returns x at the position u in [0, 1) within each bin."""
        return (levels + u) * self.width - 1

    def centres(self, levels: Any) -> Any:
        """Returns the centres of the bins in x."""
        return self.within(levels, 0.5)

    def places(self, x: Any) -> Any:
        """Returns x in units of levels, from 0 to n_bins: its floor is the level."""
        return (x + 1) * (self.n_bins / 2)

    def pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the pixels, uint8, of x; what lies outside of [-1, 1) is clipped."""
        levels = tf.clip_by_value(tf.floor(self.places(x)), 0, self.n_bins - 1)
        return tf.cast(levels if self.step == 1 else levels * self.step, tf.uint8)

    def quantize(self, pixels: Any) -> tf.Tensor:
        """Returns each pixel as the lowest value of its level, uint8, which is all that the model sees of it."""
        return self.pixels(self.centres(self.levels(pixels)))

    def bits_per_dim(self, nats: Any, dimensions: int) -> Any:
        """Turns -log p(x) in nats per image into bits per colour value of the discrete image.

        -log P(image) is at most the mean of -log p(x) over its bins, less the logarithm of their widths.

        Args:
            nats: -log p(x) of images, any shape.
            dimensions: number of colour values of an image.
        """
        return (nats / dimensions - math.log(self.width)) / math.log(2)
