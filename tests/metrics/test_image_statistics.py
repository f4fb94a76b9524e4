import numpy as np
import pytest
from helpers.evaluations import MeanColourModel

from tfdecouple.errors import DataError
from tfdecouple.metrics import image_statistics as statistics


def flat(value, count=1, side=8):
    return np.full((count, side, side, 3), value, float)


class TestKnownImages:
    def test_statistics_of_plain_images_are_those_worked_out_by_hand(self):
        image = flat(0.0)
        image[..., 0], image[..., 2] = 0.8, 0.2
        np.testing.assert_allclose(statistics.compute_colour(image), [[0.8, 0.2]])
        grey = 0.299 * 0.8 + 0.114 * 0.2
        np.testing.assert_allclose(statistics.compute_brightness(image), [[grey]])
        saturation = np.linalg.norm([0.8 - grey, grey, 0.2 - grey])
        np.testing.assert_allclose(statistics.compute_saturation(image), [[saturation]])
        halves = flat(0.0)
        halves[:, :4] = 1
        np.testing.assert_allclose(statistics.compute_contrast(halves), [[0.5]])

    @pytest.mark.parametrize("degrees", [0, 30, 90, 150])
    def test_orientation_is_that_of_a_grating(self, degrees):
        y, x = np.mgrid[:32, :32] / 32 * 2 * np.pi * 3
        angle = np.deg2rad(degrees)
        wave = 0.5 + 0.4 * np.sin(x * np.cos(angle) + y * np.sin(angle))
        result = statistics.compute_orientation(np.repeat(wave[None, ..., None], 3, -1))[0]
        np.testing.assert_allclose(result, [np.cos(2 * angle), np.sin(2 * angle)], atol=0.06)


    def test_brightest_quadrant_is_found_in_every_corner(self):
        images = flat(0.2, 4)
        for number, (row, column) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
            images[number, row : row + 4, column : column + 4] = 0.9
        np.testing.assert_array_equal(statistics.find_brightest_quadrant(images), [[-1, -1], [1, -1], [-1, 1], [1, 1]])


def images_of(seed, count):
    """Images whose colour, contrast, light and direction are drawn each by itself."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] / 16 - 0.5
    angle, colour = rng.uniform(0, 2 * np.pi, count), rng.uniform(90, 160, (count, 1, 1, 3))
    slope = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    fine = rng.standard_normal((count, 16, 16))
    detail = 40 * rng.uniform(0.3, 1, (count, 1, 1)) * slope + 10 * fine * rng.uniform(0.2, 1, (count, 1, 1))
    return np.clip(colour + detail[..., None], 0, 255).astype(np.uint8)


def test_statistics_in_z_follow_z_in_a_switch_and_the_others_follow_v():
    model = MeanColourModel()
    report = statistics.compute_image_statistics(model, images_of(0, 150), images_of(1, 101), batch_size=25)
    assert (report["train_images"], report["images"], report["dimensions"]) == (150, 101, 3)
    # All batches are of one size.
    assert model.batches == {25}
    for name, result in report["statistics"].items():
        switch = result["switch"]
        of_z = float(name in ("mean colour", "brightness"))
        assert switch["z"]["mean"] == pytest.approx(of_z, abs=0.05), name
        assert switch["v"]["mean"] == pytest.approx(1 - of_z, abs=0.05), name
        assert switch["nearer_to_z"]["mean"] == pytest.approx(of_z, abs=0.06), name
        assert (result["r2"]["z"]["mean"] > 0.99) == of_z, name
        assert 0 <= result["r2"]["z"]["standard_error"] < 0.1
    assert report["statistics"]["brightest quadrant"]["r2"]["v, PCA"]["mean"] > 0.5


def test_image_statistics_of_too_few_images_are_refused():
    with pytest.raises(DataError, match="3 images are too few"):
        statistics.compute_image_statistics(MeanColourModel(), images_of(0, 9), images_of(1, 3), batch_size=9)
