"""Tests of lossless codecs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.numbered import numbered_images, one_line_error
from PIL import Image

from tfdecouple.data.codecs import lossless_bits_per_dim


@pytest.mark.parametrize("codec", ["webp", "png"])
def test_whole_files_are_counted(codec: str) -> None:
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
def test_all_channels_are_counted(codec: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 4, 300), np.uint8)
    # More channels than one file holds.
    parts = [images[..., :255], images[..., 255:]]
    bits = [part.size * lossless_bits_per_dim(part, codec) for part in parts]
    assert lossless_bits_per_dim(images, codec) == pytest.approx(sum(bits) / images.size)
    for channels in (1, 2, 3, 5):
        noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, channels), np.uint8)
        assert 7.9 < lossless_bits_per_dim(noise, codec) < 14
        assert lossless_bits_per_dim(np.full_like(noise, 7), codec) < 1.5


@pytest.mark.parametrize(
    ("images", "codec", "part"),
    [
        (np.zeros((1, 4, 4, 3), np.uint8), "jpeg", "'jpeg'"),
        (np.zeros((4, 4, 3), np.uint8), "webp", "[4, 4, 3]"),
        (np.zeros((1, 4, 4, 3), np.float32), "webp", "float32"),
        (np.zeros((0, 4, 4, 3), np.uint8), "webp", "[0, 4, 4, 3]"),
    ],
)
def test_wrong_inputs(images: np.ndarray, codec: str, part: str) -> None:
    assert part in one_line_error(lambda: lossless_bits_per_dim(images, codec))
