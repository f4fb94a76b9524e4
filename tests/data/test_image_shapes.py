"""Images of any number of channels and of any proportions: from files, data sets and photographs to batches."""

from __future__ import annotations

import io
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from helpers.numbered import one_line_error
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data import load_images, open_source, training_batches
from tfdecouple.data.batches import augment
from tfdecouple.data.codecs import codec_bits_per_dim
from tfdecouple.data.image_file import centre_box, fit, fit_pixels, read_image, resize_said
from tfdecouple.data.splits import MemorySplit, Source

GREY = (8, 12, 1)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def saved(path: pathlib.Path, image: Image.Image | np.ndarray) -> str:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path)
    return str(path)


class TestFiles:
    @pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGB", "RGBA"])
    def test_grey_is_what_pillow_makes_of_any_file(self, tmp_path: pathlib.Path, mode: str) -> None:
        image = Image.fromarray(noise(8, 12, 3)).convert(mode)
        read = read_image(saved(tmp_path / "image.png", image), GREY, 0)
        np.testing.assert_array_equal(read[..., 0], np.asarray(image.convert("L")))
        assert read.shape == GREY

    def test_sixteen_bits_become_their_upper_eight(self, tmp_path: pathlib.Path) -> None:
        values = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
        read = read_image(saved(tmp_path / "image.png", values), GREY, 0)
        np.testing.assert_array_equal(read[..., 0], values >> 8)

    @pytest.mark.parametrize("channels", [2, 4])
    def test_other_channels_are_kept_and_none_counts_for_another(self, tmp_path: pathlib.Path, channels: int) -> None:
        pixels = noise(16, 24, channels)
        path = saved(tmp_path / "image.png", pixels)
        np.testing.assert_array_equal(read_image(path, (16, 24, channels), 0), pixels)
        # Pillow would weigh the others by the last, as what is opaque.
        each = [Image.fromarray(pixels[..., one]).resize((12, 8), Image.Resampling.BILINEAR) for one in range(channels)]
        np.testing.assert_array_equal(read_image(path, (8, 12, channels), 0), np.stack(list(map(np.asarray, each)), -1))

    def test_files_of_other_channels_are_refused(self, tmp_path: pathlib.Path) -> None:
        path = saved(tmp_path / "image.png", noise(8, 12, 3))
        assert "it has 3 channels (R, G, B), and the model's images have 4 (model.image_shape)" in one_line_error(
            lambda: read_image(path, (8, 12, 4), 0)
        )

    def test_arrays_of_any_number_of_channels(self, tmp_path: pathlib.Path) -> None:
        pixels = noise(16, 24, 7)
        np.save(tmp_path / "image.npy", pixels)
        path = str(tmp_path / "image.npy")
        np.testing.assert_array_equal(read_image(path, (16, 24, 7), 0), pixels)
        np.testing.assert_array_equal(read_image(path, (8, 8, 7), 0), fit_pixels(pixels, (8, 8, 7), 0))
        content = io.BytesIO(pathlib.Path(path).read_bytes())
        np.testing.assert_array_equal(read_image(path, (16, 24, 7), 0, content), pixels)
        np.save(tmp_path / "flat.npy", pixels[..., 0])
        np.testing.assert_array_equal(read_image(str(tmp_path / "flat.npy"), (16, 24, 1), 0), pixels[..., :1])

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (noise(8, 12, 3), "uint8 [8, 12, 3], and the model takes uint8 [height, width, 7]"),
            (np.zeros((8, 12, 7), np.float32), "float32"),
            (np.array([{}]), "Python objects"),
            (np.zeros((0, 12, 7), np.uint8), "[0, 12, 7]"),
        ],
    )
    def test_arrays_that_are_no_images_of_the_model(
        self, tmp_path: pathlib.Path, content: np.ndarray, said: str
    ) -> None:
        np.save(tmp_path / "image.npy", content)
        assert said in one_line_error(lambda: read_image(str(tmp_path / "image.npy"), (8, 12, 7), 0))

    def test_arrays_that_claim_much_or_are_cut_short_or_pipes(self, tmp_path: pathlib.Path) -> None:
        whole = io.BytesIO()
        np.save(whole, noise(8, 12, 7))
        claims = whole.getvalue().replace(b"(8, 12, 7), }       ", b"(99999, 99999, 7), }")
        assert len(claims) == len(whole.getvalue()) and claims != whole.getvalue()
        for name, content in {"cut": whole.getvalue()[:-1], "no": b"\x93NUMPY", "claims": claims}.items():
            (tmp_path / f"{name}.npy").write_bytes(content)
            one_line_error(lambda name=name: read_image(str(tmp_path / f"{name}.npy"), (8, 12, 7), 0))
        os.mkfifo(tmp_path / "pipe.npy")
        assert "no regular file" in one_line_error(lambda: read_image(str(tmp_path / "pipe.npy"), (8, 12, 7), 0))


class TestProportions:
    @pytest.mark.parametrize("size", [(8, 12), (40, 30), (9, 100), (100, 9), (1, 50), (50, 1)])
    @pytest.mark.parametrize("crop", [0, 7])
    def test_pipeline_and_files_cut_out_the_same(
        self, tmp_path: pathlib.Path, size: tuple[int, int], crop: int
    ) -> None:
        for channels in (1, 3):
            pixels = noise(*size, channels)
            read = read_image(
                saved(tmp_path / "image.png", pixels.squeeze(-1) if channels == 1 else pixels), (8, 12, channels), crop
            )
            np.testing.assert_array_equal(fit(tf.constant(pixels), (8, 12, channels), crop), read)
            top, left, rows, columns = centre_box(*size, (8, 12, channels), crop)
            assert 0 <= top <= size[0] - rows and 0 <= left <= size[1] - columns and min(rows, columns) >= 1
            # In the proportions of the model, as nearly as whole pixels are, and as large as fits.
            assert crop or rows == size[0] or columns == size[1]
            assert abs(rows * 12 - columns * 8) < 12 or min(size) == 1
            if size == (8, 12) and not crop:
                np.testing.assert_array_equal(read, pixels)

    def test_grey_and_colours_become_each_other_in_a_pipeline(self) -> None:
        colours, grey = noise(8, 12, 3), noise(8, 12, 1)
        made = fit(tf.constant(colours), GREY, 0)
        np.testing.assert_array_equal(made[..., 0], np.asarray(Image.fromarray(colours).convert("L")))
        np.testing.assert_array_equal(fit(tf.constant(grey), (8, 12, 3), 0), np.repeat(grey, 3, -1))

    def test_augmentation_of_rectangles(self) -> None:
        image = noise(*GREY)
        made = [
            augment(tf.constant(image), tf.constant([n, 0], tf.int64), horizontal_flip=True, pad_and_crop=2)
            for n in range(40)
        ]
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        crops = [padded[y : y + 8, x : x + 12] for y in range(5) for x in range(5)]
        allowed = {one.tobytes() for crop in crops for one in (crop, crop[:, ::-1])}
        assert {one.numpy().tobytes() for one in made} <= allowed and len({one.numpy().tobytes() for one in made}) > 9


class TestSources:
    @pytest.mark.parametrize("cache_gib", [1.0, 0.0])
    def test_folder_of_grey_rectangles(self, tmp_path: pathlib.Path, cache_gib: float) -> None:
        images = {f"{number}.png": noise(8, 12, 1)[..., 0] + np.uint8(number) for number in range(5)}
        for name, image in images.items():
            saved(tmp_path / name, image)
        np.save(tmp_path / "5.npy", noise(8, 12, 1))
        source = open_source(DataConfig(source=f"folder:{tmp_path}", cache_gib=cache_gib), GREY)
        assert source.image_shape == GREY and sum(source.sizes.values()) == 6
        for split, size in source.sizes.items():
            for number, image in enumerate(load_images(source, split, size)[0]):
                key = source.key(split, number)
                np.testing.assert_array_equal(image[..., 0], images.get(key, noise(8, 12, 1)[..., 0]))
        batch = next(iter(training_batches(source, DataConfig(pad_and_crop=7), batch_size=2, seed=1)))
        assert batch["image"].shape == (2, *GREY)
        message = one_line_error(lambda: training_batches(source, DataConfig(pad_and_crop=8), batch_size=2, seed=1))
        assert "pad_and_crop is 8; it must be below the shorter side of the images, 8" in message

    def test_photographs_in_grey_and_as_rectangles(self) -> None:
        data = DataConfig(photographs=("coffee",), photograph_crops=8)
        grey, colours = (load_images(open_source(data, (16, 24, channels)), "test", 8)[0] for channels in (1, 3))
        assert grey.shape == (8, 16, 24, 1) and colours.shape == (8, 16, 24, 3)
        # Of the same places: made grey before or after it is resized, a pixel differs by rounding alone.
        after = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in colours])
        assert np.abs(grey[..., 0].astype(int) - after).max() <= 2 and grey.std() > 10
        assert "have 3 channels, or 1" in one_line_error(lambda: open_source(data, (16, 24, 4)))
        assert "a side of 400 pixels" in one_line_error(
            lambda: open_source(DataConfig(photograph_crops=8), (8, 400, 3))
        )

    def test_split_of_grey_rectangles(self) -> None:
        split = MemorySplit(1, "all", lambda: (noise(1, 8, 12, 1), np.zeros(1, np.int32)))
        source = Source(name="x", title="x", label_names=(), image_shape=GREY, splits={"test": split})
        assert load_images(source, "test", 1)[0].shape == (1, *GREY)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("codec", ["webp", "png"])
def test_codecs_count_all_channels(codec: str, channels: int) -> None:
    images = noise(2, 16, 24, channels)
    bits = codec_bits_per_dim(images, codec)
    assert bits.shape == (2,) and np.all((bits > 7.9) & (bits < 14))
    assert np.all(codec_bits_per_dim(np.full_like(images, 7), codec) < 3)


@pytest.mark.parametrize(
    ("channels", "of"), [(1, "8-bit grey;"), (3, "8-bit RGB;"), (5, "8-bit pixels, each channel by itself;")]
)
def test_files_say_what_is_resized(channels: int, of: str) -> None:
    assert f"Pillow's Image.resize(size, BILINEAR) on {of}" in resize_said((8, 12, channels))
