import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import random_images
from PIL import ExifTags, Image, ImageCms

from tfdecouple.model.any_size import shrink_images
from tfdecouple.registry import PICTURES
from tfdecouple.visualization import plots
from tfdecouple.visualization.full_size import read_photograph
from tfdecouple.visualization.grids import WIDTH, draw_grid
from tfdecouple.visualization.guided_filter import change_at_full_size, shrink_photograph
from tfdecouple.visualization.pictures import PictureInputs, draw_pictures

SHAPE = (16, 16, 3)


def smooth_photograph(height, width, seed=0):
    """Soft colours with fine noise on them, uint8 `[height, width, 3]`."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(60, 190, (6, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(soft) + rng.integers(-20, 21, (height, width, 1))).clip(0, 255).astype(np.uint8)


def shrink(pixels):
    return np.asarray(Image.fromarray(pixels).resize(SHAPE[1::-1], Image.Resampling.BOX))


@pytest.mark.parametrize("shape", [(70, 45, 3), (5, 7, 1), (16, 16, 3), (1, 300, 3)], ids=str)
def test_photograph_is_shrunk_to_the_pixels_that_the_encoder_gets(shape, eager):
    photograph = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = shrink_images(tf.constant(photograph[None]), *SHAPE[:2])[0]
    np.testing.assert_array_equal(shrink_photograph(photograph, *SHAPE[:2]), expected)


class TestChange:
    def test_uniform_change_of_colours_is_repeated_at_full_size(self):
        photograph = smooth_photograph(200, 37)
        small = shrink(photograph)
        gains = np.array([[0.7, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, -0.1, 0.9]])
        expected, after = ((pixels @ gains.T + (30, -10, 5)).clip(0, 255) for pixels in (photograph, small))
        result = change_at_full_size(photograph, small, after.round().astype(np.uint8))
        assert result.shape == photograph.shape and result.dtype == np.uint8
        assert np.abs(result - expected).mean() < 3
        assert np.abs(photograph - expected).mean() > 15

    def test_unchanged_image_returns_the_photograph_unchanged(self):
        photograph = smooth_photograph(120, 80)
        small = shrink(photograph)
        assert np.abs(change_at_full_size(photograph, small, small).astype(int) - photograph).max() <= 1
        np.testing.assert_array_equal(change_at_full_size(small, small, 255 - small), 255 - small)

    def test_noise_of_a_smooth_photograph_does_not_grow(self):
        rng = np.random.default_rng(0)
        dusk = np.linspace([20, 40, 90], [60, 90, 150], 200)[:, None] + rng.normal(0, 2, (200, 160, 3))
        photograph = dusk.round().astype(np.uint8)
        small = shrink(photograph)
        # Blue becomes orange, and the colours differ four times as much.
        after = (4.0 * (small - small.mean((0, 1)))[..., ::-1] + (180, 120, 70)).clip(0, 255).astype(np.uint8)
        limited, unlimited = (change_at_full_size(photograph, small, after, option) for option in (False, True))
        steps = (np.diff(pixels.astype(float), axis=1) for pixels in (photograph, limited, unlimited))
        noise = [np.std(step, axis=(0, 1)).max() for step in steps]
        assert noise[1] < 1.2 * noise[0] and noise[2] > 1.5 * noise[0]
        assert np.abs(limited.mean((0, 1)) - after.mean((0, 1))).max() < 6

    @pytest.mark.parametrize("offset", [90, -90])
    def test_values_beyond_black_and_white_are_compressed_in_order(self, offset):
        ramp = np.linspace(0, 255, 256).round().astype(np.uint8)
        photograph = np.broadcast_to(ramp[None, :, None], (64, 256, 3))
        small = shrink(photograph)
        after = (small + float(offset)).clip(0, 255).astype(np.uint8)
        limited, clipped = (change_at_full_size(photograph, small, after, unlimited) for unlimited in (False, True))
        assert (np.diff(limited[32, :, 0].astype(int)) >= 0).all()
        assert np.isin(limited, (0, 255)).mean() < 0.1 < 0.2 < np.isin(clipped, (0, 255)).mean()


def written(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return str(path)


class TestPhotograph:
    def test_photograph_is_turned_upright_and_keeps_its_transparency(self, tmp_path):
        pixels = np.dstack([smooth_photograph(20, 30), np.arange(600).reshape(20, 30) % 256]).astype(np.uint8)
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[0x0112] = 6
        photograph = read_photograph(written(tmp_path, image, "a.png", exif=exif), 3, 2048)
        upright = np.rot90(pixels, -1)
        np.testing.assert_array_equal(photograph.pixels, upright[..., :3])
        with Image.open(io.BytesIO(photograph.encode_photograph(255 - photograph.pixels, ".png"))) as again:
            np.testing.assert_array_equal(np.asarray(again)[..., 3], upright[..., 3])
            assert 0x0112 not in again.getexif()

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp"])
    def test_result_keeps_format_exif_and_resolution_without_the_orientation(self, tmp_path, name):
        image = Image.fromarray(smooth_photograph(30, 50))
        exif = image.getexif()
        exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "Camera"
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.ExposureTime: 0.25, ExifTags.Base.ExifImageWidth: 50}
        exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
        path = written(tmp_path, image, name, exif=exif.tobytes(), dpi=(300, 300))
        photograph = read_photograph(path, 3, 2048)
        content = photograph.encode_photograph(photograph.pixels, name[1:])
        with Image.open(io.BytesIO(content)) as result, Image.open(path) as first:
            result.load()
            assert result.format == first.format
            if not name.endswith("webp"):
                assert result.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            if name.endswith("bmp"):
                return
            again = result.getexif()
            assert result.size == (30, 50) and again.get(ExifTags.Base.Orientation, 1) == 1
            assert again[ExifTags.Base.Make] == "Camera"
            exposure = again.get_ifd(ExifTags.IFD.Exif)
            assert exposure[ExifTags.Base.ExposureTime] == 0.25 and exposure[ExifTags.Base.ExifImageWidth] == 30
            assert again.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"

    def test_result_keeps_the_colour_profile_and_its_colours(self, tmp_path):
        # A profile whose red and blue are exchanged: colours that are shown depend on the profile.
        content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        red, blue = content.find(b"rXYZ"), content.find(b"bXYZ")
        content[red : red + 1], content[blue : blue + 1] = b"b", b"r"
        image = Image.fromarray(smooth_photograph(20, 30))
        photograph = read_photograph(written(tmp_path, image, "a.png", icc_profile=bytes(content)), 3, 2048)
        assert np.abs(photograph.pixels[..., ::-1].astype(int) - np.asarray(image)).max() <= 3
        with Image.open(io.BytesIO(photograph.encode_photograph(photograph.pixels, ".png"))) as result:
            assert result.info["icc_profile"] == bytes(content)
            assert np.abs(np.asarray(result).astype(int) - np.asarray(image)).max() <= 4

    def test_damaged_metadata_do_not_lose_the_result(self, tmp_path):
        image = Image.fromarray(smooth_photograph(20, 30))
        path = written(tmp_path, image, "a.jpg")
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\xff" * 40
        start, rest = b"\xff\xd8", (tmp_path / "a.jpg").read_bytes()[2:]
        (tmp_path / "a.jpg").write_bytes(start + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + rest)
        photograph = read_photograph(path, 3, 2048)
        photograph.metadata["dpi"] = ("no", "number")
        assert Image.open(io.BytesIO(photograph.encode_photograph(photograph.pixels, ".jpg"))).size == (30, 20)


def tile(picture, left, top, size, factor):
    """The image at a place of a picture, each of whose pixels must be a square of one colour."""
    pixels = np.asarray(picture)[top : top + size * factor, left : left + size * factor]
    small = pixels[::factor, ::factor]
    np.testing.assert_array_equal(pixels, small.repeat(factor, 0).repeat(factor, 1))
    return small


class TestGrid:
    @pytest.mark.parametrize("group", [(0, 0), (1, 3)])
    def test_grid_shows_every_image_at_its_place_enlarged_by_a_whole_factor(self, group):
        images = random_images(8).reshape(2, 4, 8, 8, 3)
        picture = draw_grid(images, group=group)
        # Images of 8 pixels and gaps of 2 are enlarged by the whole factor that makes them about as wide as all grids.
        factor, gap = WIDTH // (4 * 10), 2
        pixels = np.asarray(picture).astype(int)
        covered = np.zeros(pixels.shape[:2], bool)
        for row in range(2):
            for column in range(4):
                gaps = [place // size if size else 0 for place, size in zip((row, column), group, strict=True)]
                top = gap + row * (8 * factor + gap) + gaps[0] * 3 * gap
                left = gap + column * (8 * factor + gap) + gaps[1] * 3 * gap
                np.testing.assert_array_equal(tile(picture, left, top, 8, factor), images[row, column])
                covered[top : top + 8 * factor, left : left + 8 * factor] = True
        assert (pixels[~covered] == 255).all()

    @pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 1, 2])])
    def test_grid_shows_the_first_channels_of_unusual_images(self, channels, shown):
        images = random_images(2, (8, 8, channels)).reshape(1, 2, 8, 8, channels)
        picture = draw_grid(images)
        np.testing.assert_array_equal(tile(picture, 2, 2, 8, WIDTH // 20), images[0, 0][..., shown])

    def test_grid_keeps_the_size_of_large_images_unless_a_side_is_given(self):
        images = random_images(2, size=400).reshape(1, 2, 400, 400, 3)
        picture = draw_grid(images)
        np.testing.assert_array_equal(tile(picture, 404, 2, 400, 1), images[0, 1])
        images = random_images(2, size=8).reshape(1, 2, 8, 8, 3)
        means = images.reshape(1, 2, 4, 2, 4, 2, 3).mean((3, 5))
        picture = draw_grid(images, side=5, width=0)
        for column in range(2):
            shown = tile(picture, 2 + column * 6, 2, 4, 1)
            np.testing.assert_allclose(shown, means[0, column], atol=0.5)
        assert draw_grid(images, side=8).size == draw_grid(images).size


def test_two_images_suffice_for_all_pictures_of_an_evaluation(tiny_model, eager):
    pictures, exact = draw_pictures(PictureInputs(tiny_model, random_images(2), most=4))
    assert set(pictures) == {"reconstructions", "samples", "interpolation", "switch"} and exact == 2
    assert PICTURES["switch"](PictureInputs(tiny_model, random_images(1))) is None


def test_principal_components_have_the_largest_variances():
    codes = np.random.default_rng(0).standard_normal((500, 3)) * [1, 5, 3] + 7
    points, shares = plots.project_to_components(codes)
    np.testing.assert_allclose(np.abs(np.corrcoef(points.T, codes[:, 1:].T)[[0, 1], [2, 3]]), 1, atol=0.01)
    np.testing.assert_allclose(shares, [25 / 35, 9 / 35], atol=0.05)
    np.testing.assert_allclose(plots.project_to_components(codes[:, :1])[1], [1, 0])
