import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from helpers.numbered import one_line_error
from PIL import Image

from tfdecouple.data.image_file import crop_and_resize, crop_and_resize_tensor, find_centre_box, read_image

RGB, GREY = (8, 12, 3), (8, 12, 1)


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def saved(path, image, **options):
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return str(path)


class TestFiles:
    @pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGB", "RGBA"])
    @pytest.mark.parametrize(("shape", "converted"), [(RGB, "RGB"), (GREY, "L")])
    def test_image_of_any_mode_is_converted_as_by_pillow(self, tmp_path, mode, shape, converted):
        image = Image.fromarray(noise(8, 12, 3)).convert(mode)
        read = read_image(saved(tmp_path / "image.png", image), shape, 0)
        assert read.shape == shape
        np.testing.assert_array_equal(read.squeeze(), np.asarray(image.convert(converted)))

    @pytest.mark.parametrize("shape", [RGB, GREY])
    def test_image_of_16_bits_keeps_its_upper_8_bits(self, tmp_path, shape):
        values = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
        read = read_image(saved(tmp_path / "image.png", values), shape, 0)
        np.testing.assert_array_equal(read, np.repeat((values >> 8)[..., None], shape[-1], -1))

    def test_cmyk_becomes_rgb_and_exif_orientation_is_applied(self, tmp_path):
        path = saved(tmp_path / "red.jpg", Image.new("CMYK", (12, 8), (0, 255, 255, 0)), quality=100)
        assert np.abs(read_image(path, RGB, 0).astype(int) - (255, 0, 0)).max() < 8
        exif = Image.Exif()
        exif[0x0112] = 6  # Stored lying; to be turned clockwise.
        pixels = noise(12, 8, 3)
        read = read_image(saved(tmp_path / "lying.png", pixels, exif=exif), RGB, 0)
        np.testing.assert_array_equal(read, np.rot90(pixels, -1))

    @pytest.mark.parametrize("channels", [2, 4])
    def test_channels_of_unusual_images_are_resized_independently(self, tmp_path, channels):
        pixels = noise(16, 24, channels)
        path = saved(tmp_path / "image.png", pixels)
        np.testing.assert_array_equal(read_image(path, (16, 24, channels), 0), pixels)
        # Pillow would weigh the others by the last, the alpha channel.
        for k, plane in enumerate(np.moveaxis(read_image(path, (8, 12, channels), 0), -1, 0)):
            resized = Image.fromarray(pixels[..., k]).resize((12, 8), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(plane, resized)

    def test_unusable_image_file_is_named(self, tmp_path):
        path = saved(tmp_path / "image.png", noise(8, 12, 3))
        message = one_line_error(lambda: read_image(path, (8, 12, 4), 0))
        assert "3 channels (R, G, B)" in message and "have 4 (model.image_shape)" in message
        path = saved(tmp_path / "image.tif", np.zeros((12, 12), np.float32))
        message = one_line_error(lambda: read_image(path, RGB, 0))
        assert "mode F" in message and path in message
        assert "/no/such.png" in one_line_error(lambda: read_image("/no/such.png", RGB, 0))


class TestArrays:
    def test_npy_image_may_have_any_number_of_channels(self, tmp_path):
        pixels, path = noise(16, 24, 7), str(tmp_path / "image.npy")
        np.save(path, pixels)
        np.testing.assert_array_equal(read_image(path, (16, 24, 7), 0), pixels)
        np.testing.assert_array_equal(read_image(path, (8, 8, 7), 0), crop_and_resize(pixels, (8, 8, 7), 0))
        content = io.BytesIO(pathlib.Path(path).read_bytes())
        np.testing.assert_array_equal(read_image(path, (16, 24, 7), 0, content), pixels)
        np.save(path, pixels[..., 0])
        np.testing.assert_array_equal(read_image(path, (16, 24, 1), 0), pixels[..., :1])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (noise(8, 12, 3), "uint8 [8, 12, 3], and the model takes uint8 [height, width, 7]"),
            (np.zeros((8, 12, 7), np.float32), "float32"),
            (np.array([{}]), "no array of numbers"),
            (np.zeros((0, 12, 7), np.uint8), "[0, 12, 7]"),
        ],
    )
    def test_npy_file_of_another_shape_or_dtype_is_refused(self, tmp_path, content, message):
        np.save(tmp_path / "image.npy", content)
        assert message in one_line_error(lambda: read_image(str(tmp_path / "image.npy"), (8, 12, 7), 0))

    def test_damaged_npy_file_is_refused(self, tmp_path):
        whole = io.BytesIO()
        np.save(whole, noise(8, 12, 7))
        claims = whole.getvalue().replace(b"(8, 12, 7), }       ", b"(99999, 99999, 7), }")
        assert len(claims) == len(whole.getvalue()) and claims != whole.getvalue()
        for name, content in {"cut": whole.getvalue()[:-1], "no": b"\x93NUMPY", "claims": claims}.items():
            (tmp_path / f"{name}.npy").write_bytes(content)
            one_line_error(lambda name=name: read_image(str(tmp_path / f"{name}.npy"), (8, 12, 7), 0))


class TestFitting:
    @pytest.mark.parametrize("size", [(8, 12), (40, 30), (9, 100), (50, 1)])
    @pytest.mark.parametrize("crop", [0, 7, 100])
    def test_pipeline_and_file_reader_crop_the_same_largest_box(self, tmp_path, size, crop):
        for channels in (1, 3):
            pixels = noise(*size, channels)
            path = saved(tmp_path / "image.png", pixels.squeeze(-1) if channels == 1 else pixels)
            read = read_image(path, (8, 12, channels), crop)
            np.testing.assert_array_equal(crop_and_resize_tensor(tf.constant(pixels), (8, 12, channels), crop), read)
            top, left, rows, columns = find_centre_box(*size, (8, 12, channels), crop)
            assert 0 <= top <= size[0] - rows and 0 <= left <= size[1] - columns and min(rows, columns) >= 1
            # The box has the proportions of the model, as nearly as whole pixels can, and is as large as fits.
            assert crop == 7 or rows == size[0] or columns == size[1]
            assert abs(rows * 12 - columns * 8) < 12 or min(size) == 1
            if size == (8, 12) and crop != 7:
                np.testing.assert_array_equal(read, pixels)

    def test_pipeline_converts_between_grey_and_rgb(self):
        rgb, grey = noise(8, 12, 3), noise(8, 12, 1)
        made = crop_and_resize_tensor(tf.constant(rgb), GREY, 0)
        np.testing.assert_array_equal(made[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
        np.testing.assert_array_equal(crop_and_resize_tensor(tf.constant(grey), RGB, 0), np.repeat(grey, 3, -1))
