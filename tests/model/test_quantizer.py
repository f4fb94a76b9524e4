"""Tests of the quantizer: pixels to bins to x and back, and bits per dimension."""

import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.model.quantizer import Quantizer

PIXELS = np.arange(256, dtype="uint8")


@pytest.mark.parametrize("n_bits", range(1, 9))
class TestEveryNumberOfBits:
    def test_bins_of_pixels_are_whole_numbers_below_n_bins(self, n_bits):
        bins = Quantizer(n_bits).find_bins(PIXELS)
        assert bins.dtype == tf.float32
        np.testing.assert_array_equal(bins, PIXELS // (256 // 2**n_bits))

    def test_every_x_of_a_bin_gives_the_same_pixel(self, n_bits):
        quantizer = Quantizer(n_bits)
        bins = quantizer.find_bins(PIXELS)
        expected = PIXELS // quantizer.pixels_per_bin * quantizer.pixels_per_bin
        for u in (0.0, 0.5, 1 - 2**-10):
            pixels = quantizer.round_to_pixels(quantizer.place_in_bins(bins, u))
            assert pixels.dtype == tf.uint8
            np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(quantizer.quantize_pixels(PIXELS), expected)

    def test_bins_cover_the_range_of_x_without_gaps(self, n_bits):
        quantizer = Quantizer(n_bits)
        bins = np.arange(quantizer.n_bins, dtype="float64")
        edges = quantizer.place_at_edges(bins)
        assert edges[0] == -1 and edges[-1] + quantizer.bin_width == 1 and edges.dtype == np.float64
        np.testing.assert_array_equal(quantizer.place_in_bins(bins, 1.0)[:-1], edges[1:])
        np.testing.assert_array_equal(quantizer.place_at_centres(bins), edges + quantizer.bin_width / 2)
        np.testing.assert_array_equal(quantizer.scale_to_bins(edges), bins)


def test_x_outside_of_the_range_of_pixels_is_clipped():
    x = tf.constant([-9.0, -1.0, -1 + 1.9 / 256, 0.0, 1 - 1e-4, 1.0, 9.0])
    np.testing.assert_array_equal(Quantizer(8).round_to_pixels(x), [0, 0, 0, 128, 255, 255, 255])
    np.testing.assert_array_equal(Quantizer(1).round_to_pixels(x), [0, 0, 0, 128, 128, 128, 128])
