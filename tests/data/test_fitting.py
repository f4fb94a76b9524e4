"""Tests of image files of any size made square and of the model's size."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from helpers.numbered import (
    numbered_images,
    one_line_error,
)
from PIL import Image

from tfdecouple.data.image_file import fit, read_image


class TestImageFile:
    @pytest.fixture
    def rgb(self) -> np.ndarray:
        return numbered_images(1, 12)[0]

    def _saved(self, tmp_path: pathlib.Path, image: Image.Image, name: str = "image.png", **options) -> str:
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    def test_right_size_is_not_touched(self, tmp_path: pathlib.Path, rgb: np.ndarray) -> None:
        np.testing.assert_array_equal(read_image(self._saved(tmp_path, Image.fromarray(rgb)), (12, 12, 3), 0), rgb)

    def test_centre(self, tmp_path: pathlib.Path) -> None:
        image = np.random.default_rng(0).integers(0, 256, (13, 20, 3), np.uint8)
        path = self._saved(tmp_path, Image.fromarray(image))
        np.testing.assert_array_equal(read_image(path, (13, 13, 3), 0), image[:, 3:16])
        np.testing.assert_array_equal(read_image(path, (8, 8, 3), 8), image[2:10, 6:14])
        np.testing.assert_array_equal(read_image(path, (13, 13, 3), 100), image[:, 3:16])

    def test_exif_orientation(self, tmp_path: pathlib.Path, rgb: np.ndarray) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # Stored lying; to be turned clockwise.
        path = self._saved(tmp_path, Image.fromarray(rgb), exif=exif)
        np.testing.assert_array_equal(read_image(path, (12, 12, 3), 0), np.rot90(rgb, -1))

    @pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
    def test_modes_become_rgb(self, tmp_path: pathlib.Path, rgb: np.ndarray, mode: str) -> None:
        image = Image.fromarray(rgb).convert(mode)
        np.testing.assert_array_equal(
            read_image(self._saved(tmp_path, image), (12, 12, 3), 0), np.asarray(image.convert("RGB"))
        )

    def test_cmyk(self, tmp_path: pathlib.Path) -> None:
        path = self._saved(tmp_path, Image.new("CMYK", (12, 12), (0, 255, 255, 0)), "red.jpg", quality=100)
        assert np.abs(read_image(path, (12, 12, 3), 0).astype(int) - (255, 0, 0)).max() < 8

    def test_sixteen_bits_are_scaled(self, tmp_path: pathlib.Path) -> None:
        values = np.linspace(0, 65535, 144).astype(np.uint16).reshape(12, 12)
        path = self._saved(tmp_path, Image.fromarray(values))
        np.testing.assert_array_equal(read_image(path, (12, 12, 3), 0), np.repeat((values >> 8)[..., None], 3, axis=-1))

    def test_float_pixels_are_refused(self, tmp_path: pathlib.Path) -> None:
        path = self._saved(tmp_path, Image.fromarray(np.zeros((12, 12), np.float32)), "image.tif")
        message = one_line_error(lambda: read_image(path, (12, 12, 3), 0))
        assert "mode F" in message and path in message

    def test_missing_file(self) -> None:
        assert "/no/such.png" in one_line_error(lambda: read_image("/no/such.png", (12, 12, 3), 0))


class TestFitting:
    @pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 57), (90, 41), (10, 12)])
    def test_agrees_with_pillow(self, tmp_path: pathlib.Path, height: int, width: int) -> None:
        y, x = np.mgrid[:height, :width]
        image = np.stack([128 + 100 * np.sin(x / 5 + c) * np.cos(y / 7) for c in range(3)], -1).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "image.png")
        wanted = read_image(str(tmp_path / "image.png"), (16, 16, 3), 0).astype(int)
        assert np.abs(fit(tf.constant(image), (16, 16, 3), 0).numpy() - wanted).max() <= 1

    def test_right_size_passes_bit_for_bit(self) -> None:
        image = numbered_images(1, 16)[0]
        np.testing.assert_array_equal(fit(tf.constant(image), (16, 16, 3), 0), image)
        np.testing.assert_array_equal(fit(tf.constant(image), (8, 8, 3), 8), image[4:12, 4:12])
        np.testing.assert_array_equal(fit(tf.constant(image), (16, 16, 3), 100), image)

    def test_grey_is_repeated(self) -> None:
        image = numbered_images(1, 16)[0][..., :1]
        np.testing.assert_array_equal(fit(tf.constant(image), (16, 16, 3), 0), np.repeat(image, 3, axis=-1))
