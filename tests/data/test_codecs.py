"""Tests of lossless codecs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.numbered import (
    numbered_images,
    one_line_error,
)
from PIL import Image

from tfdecouple.data.codecs import lossless_bits_per_dim


class TestCodecs:
    @pytest.mark.parametrize("codec", ["webp", "png"])
    def test_counts_whole_files(self, codec: str) -> None:
        images = numbered_images(3, 16)
        sizes = []
        for image in images:
            file = io.BytesIO()
            if codec == "png":
                Image.fromarray(image).save(file, "PNG", optimize=True)
            else:
                Image.fromarray(image).save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)
                file.seek(0)
                np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
            sizes.append(len(file.getvalue()))
        assert lossless_bits_per_dim(images, codec) == pytest.approx(8 * sum(sizes) / images.size)

    @pytest.mark.parametrize("codec", ["webp", "png"])
    def test_counts_more_channels_than_one_file_holds(self, codec: str) -> None:
        image = np.random.default_rng(0).integers(0, 256, (1, 64, 4, 300), np.uint8)
        parts = [image[..., :255], image[..., 255:]]
        bits = [part.size * lossless_bits_per_dim(part, codec) for part in parts]
        assert lossless_bits_per_dim(image, codec) == pytest.approx(sum(bits) / image.size)

    def test_noise_and_flat_images(self) -> None:
        assert lossless_bits_per_dim(numbered_images(4, 32)) > 8
        assert lossless_bits_per_dim(np.full((4, 32, 32, 3), 7, np.uint8)) < 0.5

    @pytest.mark.parametrize(
        ("images", "codec", "part"),
        [
            (np.zeros((1, 4, 4, 3), np.uint8), "jpeg", "'jpeg'"),
            (np.zeros((4, 4, 3), np.uint8), "webp", "[4, 4, 3]"),
            (np.zeros((1, 4, 4, 3), np.float32), "webp", "float32"),
            (np.zeros((0, 4, 4, 3), np.uint8), "webp", "[0, 4, 4, 3]"),
        ],
    )
    def test_wrong_inputs(self, images: np.ndarray, codec: str, part: str) -> None:
        assert part in one_line_error(lambda: lossless_bits_per_dim(images, codec))
