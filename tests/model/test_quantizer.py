"""Tests of the quantizer: pixels to levels to x and back, and bits per dimension."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.model.quantizer import Quantizer

PIXELS = np.arange(256, dtype="uint8")


@pytest.mark.parametrize("n_bits", range(1, 9))
class TestEveryNumberOfBits:
    def test_levels_are_whole_numbers_below_n_bins(self, n_bits):
        levels = Quantizer(n_bits).levels(PIXELS)
        assert levels.dtype == tf.float32
        np.testing.assert_array_equal(levels, PIXELS // (256 // 2**n_bits))

    def test_pixels_come_back_from_all_of_their_bin(self, n_bits):
        quantizer = Quantizer(n_bits)
        levels = quantizer.levels(PIXELS)
        expected = PIXELS // quantizer.step * quantizer.step
        for u in (0.0, 0.5, 1 - 2**-10):
            pixels = quantizer.pixels(quantizer.within(levels, u))
            assert pixels.dtype == tf.uint8
            np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(quantizer.quantize(PIXELS), expected)

    def test_bins_tile_x(self, n_bits):
        quantizer = Quantizer(n_bits)
        levels = np.arange(quantizer.n_bins, dtype="float64")
        edges = quantizer.edges(levels)
        assert edges[0] == -1 and edges[-1] + quantizer.width == 1 and edges.dtype == np.float64
        np.testing.assert_array_equal(quantizer.within(levels, 1.0)[:-1], edges[1:])
        np.testing.assert_array_equal(quantizer.centres(levels), edges + quantizer.width / 2)
        np.testing.assert_array_equal(quantizer.places(edges), levels)


def test_x_outside_of_the_range_is_clipped():
    x = tf.constant([-9.0, -1.0, -1 + 1.9 / 256, 0.0, 1 - 1e-4, 1.0, 9.0])
    np.testing.assert_array_equal(Quantizer(8).pixels(x), [0, 0, 0, 128, 255, 255, 255])
    np.testing.assert_array_equal(Quantizer(1).pixels(x), [0, 0, 0, 128, 128, 128, 128])
