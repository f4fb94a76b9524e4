import numpy as np
import pytest
from scipy import stats

from tfdecouple.metrics.outliers import compare_outlier_scores, compute_auroc


def normals(shift, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(count), shift + rng.standard_normal(count)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_auroc_of_two_normals_has_its_closed_form(shift):
    separation = compare_outlier_scores(*normals(shift, 20_000), resamples=2)
    assert separation["auroc"] == pytest.approx(stats.norm.cdf(shift / np.sqrt(2)), abs=0.01)
    passing = stats.norm.cdf(stats.norm.ppf(0.95) - shift)
    assert separation["false_positives"] == pytest.approx(passing, abs=0.01)


def test_auroc_counts_ties_as_half_and_is_0_or_1_for_separate_scores():
    rng = np.random.default_rng(1)
    inliers, outliers = rng.integers(0, 6, 70), rng.integers(2, 9, 50)
    difference = outliers[:, None] - inliers[None]
    assert compute_auroc(inliers, outliers) == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)))
    inliers, outliers = np.arange(100.0), np.arange(100.0) + 200
    separation = compare_outlier_scores(inliers, outliers, resamples=20)
    assert (separation["auroc"], separation["false_positives"]) == (1.0, 0.0)
    assert separation["auroc_interval"] == (1.0, 1.0)
    assert compare_outlier_scores(outliers, inliers, resamples=20)["auroc"] == 0.0
    half = {"auroc": 0.5, "auroc_interval": (0.5, 0.5)}
    half |= {"false_positives": 1.0, "false_positives_interval": (1.0, 1.0)}
    assert compare_outlier_scores(np.zeros(30), np.zeros(40), resamples=20) == half
    # 95 of the inliers score at most 94: a score of 94 passes, and higher ones do not.
    assert compare_outlier_scores(inliers, np.array([94.0, 94.5, 90.0, 200.0]), resamples=2)["false_positives"] == 0.5


def test_bootstrap_intervals_contain_the_value_and_depend_on_the_seed():
    scores = normals(1.0, 50)
    separation, again, other = (compare_outlier_scores(*scores, seed=seed) for seed in (3, 3, 4))
    assert separation == again != other
    low, high = separation["auroc_interval"]
    assert low < separation["auroc"] < high and 0.05 < high - low < 0.3
