"""Grids of images: the place of every pixel, and the pictures of an evaluation."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers.models import SMALL, give_effect, random_images
from PIL import Image

from tfdecouple.model import DecoupledModel
from tfdecouple.visualization import tiles
from tfdecouple.visualization.grids import (
    draw_interpolation_grid,
    draw_reconstruction_grid,
    draw_switch_grid,
    interpolate_pairs,
    reconstruct_images,
)
from tfdecouple.visualization.pictures import PictureInputs, count_shown, save_pictures
from tfdecouple.visualization.tiles import arrange_rows, draw_grid

pytestmark = pytest.mark.usefixtures("eager_file")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    model = DecoupledModel(SMALL)
    model.initialize(random_images(16))
    return give_effect(model)


def factor_of(columns):
    """The whole factor that makes so many images of 8 pixels, and a gap of 2 each, about as wide as all grids."""
    return tiles.WIDTH // (columns * 10)


def tile(picture, left, top, size, factor):
    """The image at a place of a picture, each of whose pixels must be a square of one colour."""
    pixels = np.asarray(picture)[top : top + size * factor, left : left + size * factor]
    small = pixels[::factor, ::factor]
    np.testing.assert_array_equal(pixels, small.repeat(factor, 0).repeat(factor, 1))
    return small


class TestGrid:
    @pytest.mark.parametrize("group", [(0, 0), (1, 3)])
    def test_puts_every_image_at_its_place_enlarged_by_a_whole_factor(self, group):
        images = random_images(8).reshape(2, 4, 8, 8, 3)
        picture = draw_grid(images, group=group)
        factor, gap = factor_of(4), 2
        pixels = np.asarray(picture).astype(int)
        covered = np.zeros(pixels.shape[:2], bool)
        for row in range(2):
            for column in range(4):
                wide = [place // every if every else 0 for place, every in zip((row, column), group, strict=True)]
                top = gap + row * (8 * factor + gap) + wide[0] * 3 * gap
                left = gap + column * (8 * factor + gap) + wide[1] * 3 * gap
                np.testing.assert_array_equal(tile(picture, left, top, 8, factor), images[row, column])
                covered[top : top + 8 * factor, left : left + 8 * factor] = True
        assert (pixels[~covered] == 255).all()

    @pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (4, [0, 1, 2]), (5, [0, 1, 2])])
    def test_of_other_channels_the_first_are_shown(self, channels, shown):
        images = random_images(2, (8, 8, channels)).reshape(1, 2, 8, 8, channels)
        picture = draw_grid(images)
        np.testing.assert_array_equal(tile(picture, 2, 2, 8, factor_of(2)), images[0, 0][..., shown])

    def test_large_images_keep_their_size_unless_a_side_is_given(self):
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

    def test_caption_stands_below_and_changes_nothing_above(self):
        images = random_images(4).reshape(2, 2, 8, 8, 3)
        caption = "What these images show, in more words than a line can hold. " * 3
        plain, captioned = draw_grid(images), draw_grid(images, caption)
        assert captioned.width == plain.width
        assert captioned.height > plain.height + 30
        pixels = np.asarray(captioned)
        np.testing.assert_array_equal(pixels[: plain.height], np.asarray(plain))
        caption = pixels[plain.height :]
        assert (caption < 100).any()
        # No word runs out of the picture.
        assert (caption[:, -2:] == 255).all()

    def test_labels_stand_beside_the_images_and_change_none(self):
        images = random_images(6).reshape(2, 3, 8, 8, 3)
        plain = np.asarray(draw_grid(images))
        labelled = np.asarray(draw_grid(images, row_labels=["0.5", "wide label"], column_labels=["a", "b", "c"]))
        margin, header = labelled.shape[1] - plain.shape[1], labelled.shape[0] - plain.shape[0]
        assert margin > 40 and header == tiles.LINE
        np.testing.assert_array_equal(labelled[header:, margin:], plain)
        assert (labelled[:header, margin:] < 100).any() and (labelled[header:, :margin] < 100).any()
        assert (labelled[:header, :margin] == 255).all()

    def test_rows_are_filled_up_with_white(self):
        images = random_images(5)
        rows = arrange_rows(images, 3)
        np.testing.assert_array_equal(rows.reshape(6, 8, 8, 3)[:5], images)
        assert rows.shape == (2, 3, 8, 8, 3) and (rows[1, 2] == 255).all()


class LossyModel:
    """A model that reconstructs all images but one, and whose switch halves the levels."""

    def encode(self, images, *_):
        return images, images

    def decode(self, z, v):
        back = np.array(v)
        back[3, 0, 0, 0] ^= 1
        return back

    def switch(self, a, b, *_):
        return a // 2, b // 2


class LargeModel(LossyModel):
    """A model of 256 pixels that is exact and counts the images that it makes."""

    config = dataclasses.replace(SMALL, image_shape=(256, 256, 3))

    def __init__(self):
        self.asked = 0

    def decode(self, z, v):
        self.asked += len(v)
        return np.array(v)

    def switch(self, a, b, *_):
        self.asked += 2 * len(a)
        return a, b

    def sample(self, count, temperature, seed):
        self.asked += count
        return random_images(count, size=256)

    def interpolate(self, a, b, alphas, betas, *_):
        self.asked += len(alphas) * len(betas)
        return np.broadcast_to(a, (1, len(alphas), len(betas), *a.shape[1:]))


class TestPictures:
    def test_of_large_images_are_few_and_small(self, tmp_path):
        most, model = count_shown((256, 256, 3)), LargeModel()
        assert save_pictures(PictureInputs(model, random_images(most, size=256), most=most), tmp_path, "a-") == 4
        # Of small images 40, 50, 36 and 40.
        assert model.asked == 4 + 10 + 9 + 4
        for path in tmp_path.iterdir():
            with Image.open(path) as picture:
                assert picture.width < 800, path
        # Of noise, which no file holds in less than its 3 bytes a pixel.
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2.5e6

    def test_reconstructions_are_counted_and_shown_below_their_images(self):
        images = random_images(12)
        decoded, exact = reconstruct_images(LossyModel(), images)
        assert exact == 11
        picture = draw_reconstruction_grid(images, decoded, exact)
        factor = factor_of(10)
        side = 8 * factor + 2
        np.testing.assert_array_equal(tile(picture, 2, 2, 8, factor), images[0])
        np.testing.assert_array_equal(tile(picture, 2, 2 + side, 8, factor), images[0])
        lost = tile(picture, 2 + 3 * side, 2 + side, 8, factor)
        np.testing.assert_array_equal(np.argwhere(lost != images[3]), [[0, 0, 0]])

    def test_switch_has_the_images_left_and_the_switched_right(self):
        a, b = random_images(4, seed=1), random_images(4, seed=2)
        picture = draw_switch_grid(LossyModel(), a, b, columns=2)
        factor = factor_of(4)
        side = 8 * factor + 2
        # Right of a is what has the v of a, ba; right of b what has the v of b, ab.
        for place, expected in {(0, 0): a[0], (0, 1): b[0] // 2, (1, 0): b[0], (1, 1): a[0] // 2}.items():
            shown = tile(picture, 2 + place[1] * side, 2 + place[0] * side, 8, factor)
            np.testing.assert_array_equal(shown, expected, err_msg=str(place))

    def test_interpolation_has_the_images_in_its_corners(self, model):
        a, b = random_images(2)
        places = (0, 0.2, 0.4, 0.6, 0.8, 1)
        picture = draw_interpolation_grid(interpolate_pairs(model, a[None], b[None], places), places)
        factor = factor_of(6)
        side = 8 * factor + 2
        # Beside the images stand the labels of the rows, and above them a line of labels of the columns.
        left, top = picture.width - 6 * side, 2 + tiles.LINE
        np.testing.assert_array_equal(tile(picture, left, top, 8, factor), a)
        np.testing.assert_array_equal(tile(picture, left + 5 * side, top + 5 * side, 8, factor), b)

    @pytest.mark.parametrize(("count", "names"), [(1, set()), (3, {"switch"})])
    def test_few_images_are_enough(self, model, tmp_path, count, names):
        assert save_pictures(PictureInputs(model, random_images(count)), tmp_path, "a-") == count
        expected = {"reconstructions", "samples", "interpolation"} | names
        assert {path.name for path in tmp_path.iterdir()} == {f"a-{name}.png" for name in expected}
        for path in tmp_path.iterdir():
            with Image.open(path) as picture:
                picture.load()
