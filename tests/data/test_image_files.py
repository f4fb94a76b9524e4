import io
import os
import pathlib
import subprocess
import types
import warnings

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import random_images
from helpers.numbered import one_line_error, write_images
from helpers.places import ROOT
from helpers.program_inputs import SIZE, load_program, make_png_header, write_picture_files
from helpers.refusals import message_of
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data.batches import load_images
from tfdecouple.data.image_file import MOST_PIXELS, crop_and_resize, crop_and_resize_tensor, find_centre_box, read_image
from tfdecouple.data.sources import open_source
from tfdecouple.data.tfds import decode_tfds_image
from tfdecouple.errors import DataError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))

# Formats that Pillow writes, and by default opens whatever the ending of the name is.
OTHERS = ("EPS", "PDF", "ICO", "ICNS", "TGA", "SGI", "PCX", "DDS", "IM", "JPEG2000", "SPIDER", "AVIF")


def written(path, content):
    path.write_bytes(content)
    return str(path)


def refusal(path):
    message = message_of(DataError, lambda: read_image(path, (8, 8, 3), 0))
    assert path in message
    return message


class TestFormats:
    @pytest.mark.parametrize("kind", OTHERS)
    def test_file_of_a_rare_format_is_refused_and_starts_no_program(self, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
        content = io.BytesIO()
        try:
            PICTURE.save(content, kind)
        except (KeyError, OSError, ValueError) as error:
            pytest.skip(f"this Pillow does not write {kind}: {error}")
        assert "no image of the formats BMP" in refusal(written(tmp_path / "x.JPG", content.getvalue()))
        if kind in ("EPS", "PDF"):
            for ending in ("eps", "any", "tif", "ppm"):
                assert "no image of the formats" in refusal(written(tmp_path / f"x.{ending}", content.getvalue()))

    @pytest.mark.parametrize(
        ("kind", "ending"),
        [(kind, ending) for kind in ("PNG", "WEBP", "BMP", "GIF", "JPEG", "PPM", "TIFF") for ending in ("JPEG", "any")],
    )
    def test_common_format_is_read_whatever_the_ending_of_its_name(self, tmp_path, kind, ending):
        path = tmp_path / f"x.{ending}"
        PICTURE.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
        read = read_image(str(path), (8, 8, 3), 0)
        assert read.shape == (8, 8, 3)
        if kind not in ("JPEG", "GIF"):
            assert np.array_equal(read, np.asarray(PICTURE))


class TestPixels:
    @pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
    def test_image_of_too_many_pixels_is_refused_in_one_line(self, tmp_path, width, height):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            message = refusal(written(tmp_path / "x.png", make_png_header(width, height)))
        assert f"more than {MOST_PIXELS:,}" in message

    def test_jpeg_of_too_many_pixels_is_decoded_at_half_its_size(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tfdecouple.data.image_file.MOST_PIXELS", 1000)
        path, pixels = tmp_path / "x.jpg", np.full((40, 40, 3), 90, np.uint8)
        Image.fromarray(pixels).save(path)
        assert read_image(str(path), (0, 0, 3), 0).shape == (20, 20, 3)
        Image.fromarray(np.full((80, 80, 3), 90, np.uint8)).save(path)
        assert "more than 1,000" in refusal(str(path))


class TestPipes:
    @pytest.mark.parametrize("path", ["x.png", "x.npy", "/dev/zero", "/"])
    def test_pipe_device_or_folder_is_refused_without_waiting(self, tmp_path, path):
        if not path.startswith("/"):
            os.mkfifo(tmp_path / path)
        with pytest.raises(DataError, match="no regular file"):
            read_image(str(tmp_path / path), (8, 8, 3), 0)

    @pytest.mark.parametrize("cache_gib", [0.0, 1.0])
    def test_pipe_among_images_is_skipped_on_request(self, tmp_path, cache_gib):
        for split in ("train", "validation", "test"):
            write_images(tmp_path / split, [np.asarray(PICTURE)] * 3)
        os.mkfifo(tmp_path / "train" / "001a.png")
        (tmp_path / "train" / "001b.png").symlink_to("/dev/zero")
        config = DataConfig(source=f"folder:{tmp_path}", cache_gib=cache_gib, on_bad_image="skip")
        source = open_source(config, (8, 8, 3))
        images, _ = load_images(source, "train", 3)
        assert len(images) == 3 and np.array_equal(images[2], np.asarray(PICTURE))
        assert source.skipped == 2


@pytest.mark.parametrize("name", ["export/client.py", "examples/tf_serving/client.py"])
def test_client_refuses_an_image_of_too_many_pixels_and_starts_no_program(tmp_path, monkeypatch, name):
    module, shape = load_program(ROOT / name), 3 if name.startswith("export") else (8, 8, 3)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
    PICTURE.save(eps := io.BytesIO(), "EPS")
    large = [(make_png_header(side, side), "pixels") for side in (12_000, 20_000)]
    for content, word in [(eps.getvalue(), "image"), *large]:
        # The error of which its `main` makes one line.
        with pytest.raises(getattr(module, "Problem", Exception), match=word), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            module.read_picture(written(tmp_path / "x.png", content), shape)


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


def to_npy(array):
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


WHOLE = to_npy(noise(8, 12, 7))


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
            (to_npy(noise(8, 12, 3)), "uint8 [8, 12, 3], and the model takes uint8 [height, width, 7]"),
            (to_npy(np.zeros((8, 12, 7), np.float32)), "float32"),
            (to_npy(np.array([{}])), "no array of numbers"),
            (to_npy(np.zeros((0, 12, 7), np.uint8)), "[0, 12, 7]"),
            (WHOLE[:-1], ""),
            (b"\x93NUMPY", ""),
            # The header claims more than there is.
            (WHOLE.replace(b"(8, 12, 7), }       ", b"(99999, 99999, 7), }"), ""),
        ],
    )
    def test_npy_file_that_is_damaged_or_of_another_shape_or_dtype_is_refused(self, tmp_path, content, message):
        assert content != WHOLE
        path = written(tmp_path / "image.npy", content)
        assert message in one_line_error(lambda: read_image(path, (8, 12, 7), 0))


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


@pytest.fixture(scope="module")
def picture_files(tmp_path_factory):
    return write_picture_files(tmp_path_factory.mktemp("files"))


def assert_same(pixels, right, name):
    np.testing.assert_array_equal(pixels.reshape(right.shape), right, err_msg=name)


def test_resizing_filter_is_bilinear_with_antialiasing():
    """By its definition, in float64 and rounded once: an independent statement of what the card promises."""
    image = random_images(1, 61)[0]
    for size in (7, SIZE, 90):
        scale = len(image) / size
        centres = (np.arange(size)[:, None] + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs(np.arange(len(image)) + 0.5 - centres) / max(scale, 1))
        weights /= weights.sum(1, keepdims=True)
        right = np.einsum("yi,xj,ijc->yxc", weights, weights, image.astype(np.float64))
        # The filter rounds to whole numbers twice, so a value is off by at most one half for each time.
        assert np.abs(crop_and_resize(image, (size, size, 3), 0) - right).max() < 1.001


@pytest.mark.parametrize("crop", [0, 20])
def test_python_clients_read_images_as_training_does(picture_files, crop):
    served = load_program(ROOT / "examples" / "tf_serving" / "client.py")
    client = load_program(ROOT / "export" / "client.py")
    for name, path in picture_files.items():
        # Squares of RGB, and grey rectangles.
        for shape in ((SIZE, SIZE, 3), (SIZE, 12, 1)):
            right = read_image(str(path), shape, crop)
            of_shape = types.SimpleNamespace(shape=shape, crop=crop)
            assert_same(client.Model.crop_and_resize(of_shape, client.read_picture(path, shape[-1])), right, name)
            assert_same(served.read_picture(path, shape, crop), right, name)


def test_tensorflow_datasets_are_read_as_image_files_are(picture_files):
    """All but what TFDS' own features do not hold, such as palettes, and EXIF data, which it does not heed."""
    tfds = pytest.importorskip("tensorflow_datasets")
    colours = ("exact.png", "odd.png", "tall.png", "one.png", "photograph.jpg", "photograph_444.jpg", "progressive.jpg")
    for names, channels in ((colours, 3), (("grey.png", "grey.jpg"), 1)):
        feature = tfds.features.Image(shape=(None, None, channels))
        encoded = tf.data.Dataset.from_tensor_slices([picture_files[name].read_bytes() for name in names])

        def read(content, feature=feature):
            return crop_and_resize_tensor(decode_tfds_image(content, feature), (SIZE, SIZE, 3), 0)

        read_images = encoded.map(read, tf.data.AUTOTUNE).as_numpy_iterator()
        for name, pixels in zip(names, read_images, strict=True):
            assert_same(pixels, read_image(str(picture_files[name]), (SIZE, SIZE, 3), 0), name)
