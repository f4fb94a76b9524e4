import numpy as np
import pytest
from helpers.models import random_images

from tfdecouple.registry import PICTURES
from tfdecouple.visualization import plots
from tfdecouple.visualization.grids import WIDTH, draw_grid
from tfdecouple.visualization.pictures import PictureInputs, draw_pictures

pytestmark = pytest.mark.usefixtures("eager_file")


def factor_of(columns):
    """The whole factor that makes so many images of 8 pixels, and a gap of 2 each, about as wide as all grids."""
    return WIDTH // (columns * 10)


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
        factor, gap = factor_of(4), 2
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
        np.testing.assert_array_equal(tile(picture, 2, 2, 8, factor_of(2)), images[0, 0][..., shown])

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


def test_two_images_suffice_for_all_pictures_of_an_evaluation(tiny_model):
    pictures, exact = draw_pictures(PictureInputs(tiny_model, random_images(2), most=4))
    assert set(pictures) == {"reconstructions", "samples", "interpolation", "switch"} and exact == 2
    assert PICTURES["switch"](PictureInputs(tiny_model, random_images(1))) is None


def test_principal_components_have_the_largest_variances():
    codes = np.random.default_rng(0).standard_normal((500, 3)) * [1, 5, 3] + 7
    points, shares = plots.project_to_components(codes)
    np.testing.assert_allclose(np.abs(np.corrcoef(points.T, codes[:, 1:].T)[[0, 1], [2, 3]]), 1, atol=0.01)
    np.testing.assert_allclose(shares, [25 / 35, 9 / 35], atol=0.05)
    np.testing.assert_allclose(plots.project_to_components(codes[:, :1])[1], [1, 0])
