"""Directions in z against distributions whose directions are known."""

import numpy as np
import pytest
from scipy import stats

from tfdecouple.metrics.direction_finding import find_label_directions, find_number_directions
from tfdecouple.runs.latent_directions import CLASSIFIER, MEANS

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


class TestOfALabel:
    @pytest.mark.parametrize("share", [0.5, 0.1], ids=["even", "rare"])
    def test_directions_and_their_accuracy_have_closed_forms(self, share):
        training, held_out = classes(20_000, share), classes(5_000, share, seed=1)
        found = find_label_directions("label", *training, *held_out, seed=0)
        assert [one.method for one in found] == [MEANS, CLASSIFIER]
        np.testing.assert_allclose(found[0].vector, SHIFT, atol=0.15)
        # The normal goes as far along itself as the means lie apart.
        normal = np.linalg.solve(COVARIANCE, SHIFT)
        assert cosine(found[1].vector, normal) > 0.95
        assert np.linalg.norm(found[1].vector) == pytest.approx(normal @ SHIFT / np.linalg.norm(normal), rel=0.1)
        best = np.sqrt(SHIFT @ np.linalg.solve(COVARIANCE, SHIFT))
        along = SHIFT @ SHIFT / np.sqrt(SHIFT @ COVARIANCE @ SHIFT)
        for one, distance in zip(found, (along, best), strict=True):
            figures = one.figures
            accuracy = stats.norm.cdf(distance / 2)
            assert figures["accuracy"] == pytest.approx(accuracy, abs=max(4 * figures["standard_error"], 0.02))
            assert figures["auroc"] == pytest.approx(stats.norm.cdf(distance / np.sqrt(2)), abs=0.03)
            assert figures["images_with"] + figures["images_without"] == 20_000
        assert found[1].figures["accuracy"] > found[0].figures["accuracy"]

    def test_normal_keeps_off_a_dimension_that_hardly_varies(self):
        """Though it tells the label better than the others: an image takes no notice of it."""
        (z, has), (held_z, held_has) = classes(3000), classes(3000, seed=1)
        z[:, 3], held_z[:, 3] = 1e-4 * has, 1e-4 * held_has
        _, classifier = find_label_directions("label", z, has, held_z, held_has, seed=0)
        assert abs(classifier.vector[3]) < 0.05 * np.linalg.norm(classifier.vector)
        normal = np.linalg.solve(COVARIANCE, SHIFT)
        assert cosine(classifier.vector, normal) > 0.95

    def test_chance_is_one_half_however_rare_the_label(self):
        training, held_out = classes(3000, 0.1, shift=0), classes(3000, 0.1, seed=1, shift=0)
        for one in find_label_directions("nothing", *training, *held_out, seed=0):
            assert one.figures["accuracy"] == pytest.approx(0.5, abs=5 * one.figures["standard_error"])

    def test_held_out_images_of_one_kind_have_no_accuracy_and_equal_z_no_direction(self):
        z, has = np.ones((40, 3), np.float32), np.arange(40) % 2 == 0
        for one in find_label_directions("label", z, has, z[has], has[has], seed=0):
            assert one.figures["accuracy"] is None and one.figures["auroc"] is None
            np.testing.assert_array_equal(one.vector, 0)


class TestOfANumber:
    @pytest.fixture(scope="class")
    def numbers(self):
        rng = np.random.default_rng(2)
        made = []
        for count in (20_000, 5_000):
            values = 50 + 10 * rng.standard_normal(count)
            z = rng.multivariate_normal(np.zeros(DIMENSIONS), COVARIANCE, count) + (values[:, None] - 50) / 10 * SHIFT
            made += [z.astype(np.float32), values]
        return made

    def test_directions_and_r2_have_closed_forms(self, numbers):
        slope, ridge = find_number_directions("age", *numbers)
        np.testing.assert_allclose(slope.vector, SHIFT, atol=0.1)
        assert cosine(ridge.vector, np.linalg.solve(COVARIANCE, SHIFT)) > 0.98
        assert slope.figures["deviation"] == pytest.approx(10, rel=0.05)
        signal = SHIFT @ np.linalg.solve(COVARIANCE, SHIFT)
        assert ridge.figures["r2"] == pytest.approx(signal / (1 + signal), abs=0.02)
        along = (SHIFT @ SHIFT) ** 2 / (SHIFT @ COVARIANCE @ SHIFT)
        assert slope.figures["r2"] == pytest.approx(along / (1 + along), abs=0.03)

    @pytest.mark.parametrize("count", [9, 0])
    def test_held_out_images_of_one_number_or_of_none_have_no_r2(self, numbers, count):
        z, values, held_z, _ = numbers
        for one in find_number_directions("age", z, values, held_z[:count], np.full(count, 50.0)):
            assert one.figures["r2"] is None and one.figures["held_out"] == count
