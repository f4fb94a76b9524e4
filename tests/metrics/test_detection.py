"""AUROC and false positives against closed forms, and intervals against what they are to hold."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from tfdecouple.metrics.outliers import auroc, detection

SHIFTS = (0.0, 0.5, 2.0)


def normals(shift, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(count), shift + rng.standard_normal(count)


class TestClosedForms:
    @pytest.mark.parametrize("shift", SHIFTS)
    def test_two_normal_distributions(self, shift):
        found = detection(*normals(shift, 40_000), resamples=50)
        assert found.auroc == pytest.approx(stats.norm.cdf(shift / np.sqrt(2)), abs=0.01)
        passing = stats.norm.cdf(stats.norm.ppf(0.95) - shift)
        assert found.false_positives == pytest.approx(passing, abs=0.01)

    def test_is_the_share_of_pairs_ties_by_half(self):
        rng = np.random.default_rng(1)
        known, outliers = rng.integers(0, 6, 70), rng.integers(2, 9, 50)
        difference = outliers[:, None] - known[None]
        assert auroc(known, outliers) == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)))
        assert auroc(outliers, known) == pytest.approx(1 - auroc(known, outliers))

    def test_ends(self):
        known, outliers = np.arange(100.0), np.arange(100.0) + 200
        found = detection(known, outliers, resamples=20)
        assert (found.auroc, found.false_positives) == (1.0, 0.0) and found.auroc_interval == (1.0, 1.0)
        assert detection(outliers, known, resamples=20).auroc == 0.0
        assert dataclasses.asdict(detection(np.zeros(30), np.zeros(40), resamples=20)) == {
            "auroc": 0.5,
            "auroc_interval": (0.5, 0.5),
            "false_positives": 1.0,
            "false_positives_interval": (1.0, 1.0),
        }

    def test_threshold_is_what_95_of_100_known_images_pass(self):
        known = np.arange(100.0)
        # 95 of them are at most 94; what is 94 passes, and what is above does not.
        assert detection(known, np.array([94.0, 94.5, 90.0, 200.0]), resamples=2).false_positives == 0.5


class TestIntervals:
    def test_hold_the_truth_about_as_often_as_they_say(self):
        truth = stats.norm.cdf(0.5 / np.sqrt(2))
        found = [detection(*normals(0.5, 60, seed), seed=seed, resamples=200) for seed in range(100)]
        held = np.mean([low <= truth <= high for low, high in (one.auroc_interval for one in found)])
        assert 0.87 <= held <= 1

    def test_width_is_that_of_the_known_error(self):
        # Hanley and McNeil (1982) give the error of the area of exponential scores, which are near to it.
        known, outliers = normals(1.0, 400)
        found = detection(known, outliers)
        area = found.auroc
        first, second = area / (2 - area), 2 * area**2 / (1 + area)
        error = np.sqrt((area * (1 - area) + 399 * (first - area**2) + 399 * (second - area**2)) / 400**2)
        low, high = found.auroc_interval
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)

    def test_the_seed_decides(self):
        scores = normals(1.0, 50)
        assert detection(*scores, seed=3) == detection(*scores, seed=3) != detection(*scores, seed=4)
