"""Tests of lossless codecs."""

import io

import numpy as np
import pytest
from helpers.numbered import numbered_images
from PIL import Image

from tfdecouple.data.codecs import codec_bits_per_dim


@pytest.mark.parametrize("codec", ["webp", "png"])
def test_whole_files_are_counted(codec):
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
    np.testing.assert_allclose(codec_bits_per_dim(images, codec), 8 * np.array(sizes) / images[0].size)


@pytest.mark.parametrize("codec", ["webp", "png"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_noise_takes_all_bits_and_flat_images_few(codec, channels):
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 24, channels), np.uint8)
    assert 7.9 < codec_bits_per_dim(noise, codec).min() < 14
    assert codec_bits_per_dim(np.full_like(noise, 7), codec).max() < 3
