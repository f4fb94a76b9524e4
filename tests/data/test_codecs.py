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


def test_more_channels_than_a_file_holds_are_counted() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 2048, 2, 9), np.uint8)
    # A WebP file holds 16,383 rows, and so 7 of these channels.
    parts = [images[..., :7], images[..., 7:]]
    bits = [part.size * lossless_bits_per_dim(part, "png") for part in parts]
    assert lossless_bits_per_dim(images, "png") == pytest.approx(sum(bits) / images.size)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("codec", ["webp", "png"])
def test_noise_takes_all_bits_and_flat_images_few(codec: str, channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 24, channels), np.uint8)
    assert 7.9 < lossless_bits_per_dim(noise, codec) < 14
    assert lossless_bits_per_dim(np.full_like(noise, 7), codec) < 3


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
