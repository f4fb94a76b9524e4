import numpy as np
import pytest
from helpers.evaluations import MeanColourModel
from scipy import stats

from tfdecouple.direction_finding import find_label_directions, find_number_directions, find_statistic_directions
from tfdecouple.errors import DataError
from tfdecouple.metrics import image_statistics as statistics
from tfdecouple.metrics.image_statistics import CHANGES, compute_brightness
from tfdecouple.runs.latent_directions import CLASSIFIER, DECODED, MEANS


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


DIMENSIONS = 4
COVARIANCE = np.array([[1.0, 0.8, 0, 0], [0.8, 1.0, 0, 0], [0, 0, 0.25, 0], [0, 0, 0, 4.0]])
SHIFT = np.array([1.0, 0.0, 0.5, 0.0])


def classes(count, share=0.5, seed=0, shift=SHIFT):
    """Two normal distributions of one covariance, whose means differ by the shift."""
    rng = np.random.default_rng(seed)
    has = rng.random(count) < share
    z = rng.multivariate_normal(np.full(DIMENSIONS, 3.0), COVARIANCE, count)
    return (z + has[:, None] * shift).astype(np.float32), has


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("share", [0.5, 0.1], ids=["even", "rare"])
def test_label_directions_and_accuracy_have_closed_forms(share):
    training, held_out = classes(20_000, share), classes(5_000, share, seed=1)
    directions = find_label_directions("label", *training, *held_out, seed=0)
    assert [direction.method for direction in directions] == [MEANS, CLASSIFIER]
    # Both go as far as the means lie apart along them, times the standard deviation of the label.
    unit = np.sqrt(share * (1 - share))
    np.testing.assert_allclose(directions[0].vector, unit * SHIFT, atol=0.15 * unit)
    normal = np.linalg.solve(COVARIANCE, SHIFT)
    assert cosine(directions[1].vector, normal) > 0.95
    length = unit * normal @ SHIFT / np.linalg.norm(normal)
    assert np.linalg.norm(directions[1].vector) == pytest.approx(length, rel=0.1)
    best = np.sqrt(SHIFT @ np.linalg.solve(COVARIANCE, SHIFT))
    along = SHIFT @ SHIFT / np.sqrt(SHIFT @ COVARIANCE @ SHIFT)
    for direction, distance in zip(directions, (along, best), strict=True):
        figures = direction.figures
        accuracy = stats.norm.cdf(distance / 2)
        assert figures["accuracy"] == pytest.approx(accuracy, abs=max(4 * figures["standard_error"], 0.02))
        assert figures["auroc"] == pytest.approx(stats.norm.cdf(distance / np.sqrt(2)), abs=0.03)
        assert figures["images_with"] + figures["images_without"] == 20_000
    assert directions[1].figures["accuracy"] > directions[0].figures["accuracy"]


def test_number_directions_and_r2_have_closed_forms():
    numbers, rng = [], np.random.default_rng(2)
    for count in (20_000, 5_000):
        values = 50 + 10 * rng.standard_normal(count)
        z = rng.multivariate_normal(np.zeros(DIMENSIONS), COVARIANCE, count) + (values[:, None] - 50) / 10 * SHIFT
        numbers += [z.astype(np.float32), values]
    slope, ridge = find_number_directions("age", *numbers)
    np.testing.assert_allclose(slope.vector, SHIFT, atol=0.1)
    assert cosine(ridge.vector, np.linalg.solve(COVARIANCE, SHIFT)) > 0.98
    assert slope.figures["deviation"] == pytest.approx(10, rel=0.05)
    signal = SHIFT @ np.linalg.solve(COVARIANCE, SHIFT)
    assert ridge.figures["r2"] == pytest.approx(signal / (1 + signal), abs=0.02)
    along = (SHIFT @ SHIFT) ** 2 / (SHIFT @ COVARIANCE @ SHIFT)
    assert slope.figures["r2"] == pytest.approx(along / (1 + along), abs=0.03)


class TestStatisticDirections:
    @pytest.fixture(scope="class")
    def images(self):
        """Images with more yellow the brighter they are."""
        rng = np.random.default_rng(3)
        light, green = rng.uniform(-30, 30, 300), rng.uniform(-10, 10, 300)
        blue = rng.uniform(-20, 20, 300) - light
        colours = 120 + np.stack([light - green, light + green, blue], 1)
        texture = rng.standard_normal((300, 8, 8, 1)) * rng.uniform(5, 20, (300, 1, 1, 1))
        return np.clip(colours[:, None, None] + texture, 0, 255).astype(np.uint8)

    def test_direction_changes_only_its_own_statistic_though_two_are_correlated(self, images):
        directions = find_statistic_directions(MeanColourModel(), images[:250], images[250:])
        assert [(direction.name, direction.method) for direction in directions] == [(name, DECODED) for name in CHANGES]
        brighter, warmer, contrast = (direction.figures["changes"] for direction in directions[:3])
        for changes, expected in ((brighter, [1, 0, 0]), (warmer, [0, 1, 0]), (contrast, [0, 0, 0])):
            np.testing.assert_allclose(list(changes.values())[:3], expected, atol=0.15)
        # The slope of z per standard deviation of the brightness changes the warmth as well.
        z = images.mean((1, 2), dtype=np.float32)
        values = compute_brightness(images / 255)[:, 0]
        slope, _ = find_number_directions("brightness", z[:250], values[:250], z[250:], values[250:])
        assert slope.vector[0] > 0 > slope.vector[2] and abs(brighter["warmer"]) < 0.15
        assert directions[0].describe_accuracy().startswith("brighter +")

    def test_grey_images_have_no_direction_of_warmth(self, images):
        grey = np.repeat(images[..., :1], 3, -1)
        with pytest.raises(DataError, match="no image is warmer than another"):
            find_statistic_directions(MeanColourModel(), grey, grey)
