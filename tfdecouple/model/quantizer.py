"""The conversion between pixels, their bins, and the values x in [-1, 1) that the flow maps."""

import dataclasses
import math

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """A quantizer that converts pixels 0..255 to bins 0..n_bins - 1, bins to x in [-1, 1), and x to pixels.

    Bin k is the interval of x from 2k / n_bins - 1 to 2(k + 1) / n_bins - 1. Uniform dequantization (Uria et al., 2013)
    draws x within the bin. Images are encoded at the centres of the bins, so that a pixel is recovered if the error of
    x is less than half a bin. Methods that only add and multiply accept NumPy arrays and tensors of any floating type.

    >>> quantizer = Quantizer(n_bits=5)
    >>> quantizer.find_bins(tf.constant([0, 7, 8, 255], tf.uint8)).numpy().tolist()
    [0.0, 0.0, 1.0, 31.0]
    >>> quantizer.round_to_pixels(quantizer.place_at_centres(tf.constant([0.0, 1.0, 31.0]))).numpy().tolist()
    [0, 8, 248]
    """

    n_bits: int

    @property
    def n_bins(self) -> int:
        """The count of bins into which the 256 pixel values are divided, 2**n_bits."""
        return 2**self.n_bits

    @property
    def pixels_per_bin(self) -> int:
        """The count of pixel values in each bin, 256 / n_bins, an int."""
        return 256 // self.n_bins

    @property
    def bin_width(self) -> float:
        """The width of a bin in x, a power of two, so that float32 multiplies by the width without rounding."""
        return 2 / self.n_bins

    def find_bins(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns the bin of each uint8 pixel, a whole number from 0 to n_bins - 1, as a float32 tensor."""
        bins = tf.cast(pixels, tf.float32)
        return bins if self.pixels_per_bin == 1 else tf.floor(bins / self.pixels_per_bin)

    def place_at_edges(self, bins: tf.Tensor) -> tf.Tensor:
        """Returns x in [-1, 1) at the lower edge of each bin, of the shape of `bins`: the input of the encoder."""
        return bins * self.bin_width - 1

    def place_in_bins(self, bins: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """Returns x in [-1, 1) at the position u in [0, 1) within each bin, of the shape of `bins` and u."""
        return (bins + u) * self.bin_width - 1

    def place_at_centres(self, bins: tf.Tensor) -> tf.Tensor:
        """Returns x in [-1, 1) at the centre of each bin, of the shape of `bins`."""
        return self.place_in_bins(bins, 0.5)

    def scale_to_bins(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x in [-1, 1) scaled to the range from 0 to n_bins; rounded down, the result is the bin of x."""
        return (x + 1) * (self.n_bins / 2)

    def round_to_pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns uint8 pixels: for each x the lowest pixel value in its bin; x outside of [-1, 1) is clipped."""
        bins = tf.clip_by_value(tf.floor(self.scale_to_bins(x)), 0, self.n_bins - 1)
        return tf.cast(bins if self.pixels_per_bin == 1 else bins * self.pixels_per_bin, tf.uint8)

    def quantize_pixels(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns each pixel replaced by the lowest value in its bin, uint8; the model only distinguishes bins."""
        return self.round_to_pixels(self.place_at_centres(self.find_bins(pixels)))

    def convert_to_bits_per_dim(self, nats: tf.Tensor, dimensions: int) -> tf.Tensor:
        """Converts -log p(x), in nats per image, to bits per colour value of the image of quantised pixels.

        The bits are an upper bound: -log P(image) is at most the mean of -log p(x) over all x in the bins of the
        pixels, minus the logarithms of the bins' widths. `dimensions` is the count of colour values of an image.
        """
        return (nats / dimensions - math.log(self.bin_width)) / math.log(2)
