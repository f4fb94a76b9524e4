import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import random_images
from scipy import stats

from tfdecouple.metrics.outliers import compare_outlier_scores, compute_auroc
from tfdecouple.model.outlier_scores import compute_chi_moments

pytestmark = pytest.mark.usefixtures("eager")


class TestModelScores:
    def test_outlier_scores_follow_from_the_latents_of_the_bound(self, tiny_model):
        images, rng = random_images(3, seed=5), np.random.default_rng(3)
        z_noise, u_noise = rng.standard_normal((3, 4)).astype("f4"), rng.random((3, 8, 8, 3), "f4")
        scores = tiny_model.outlier_scores(images, noise=(z_noise, u_noise))
        bound = tiny_model.bound(images, noise=(z_noise, u_noise))
        np.testing.assert_array_equal(scores.bits_per_dim, bound.bits_per_dim)
        posterior = tiny_model.posterior(images)
        z = posterior.mean() + posterior.stddev() * z_noise
        np.testing.assert_allclose(scores.prior_nats, -tiny_model.prior().log_prob(z), rtol=1e-5)
        x = tiny_model.quantizer.place_in_bins(tiny_model.quantizer.find_bins(images), u_noise)
        v = tiny_model.flow.forward_and_log_det(x, z)[0].numpy()
        lengths = np.linalg.norm(v.reshape(3, -1), axis=1)
        np.testing.assert_allclose(scores.shell, (lengths - stats.chi.mean(192)) / stats.chi.std(192), rtol=1e-3)
        parts = [part.numpy().reshape(3, -1) for part in tiny_model.flow.split_v(v)]
        parts.append(tiny_model.prior_flow.forward_and_log_det(z)[0].numpy())
        deviations = [(np.square(part).sum(1) - part.shape[1]) / math.sqrt(2 * part.shape[1]) for part in parts]
        np.testing.assert_allclose(scores.typicality, np.sqrt(np.mean(np.square(deviations), 0)), rtol=1e-3)

    def test_split_v_gives_the_channels_that_leave_each_stage(self, tiny_model):
        v = tf.constant(np.random.default_rng(4).standard_normal((1, 8, 8, 3)), tf.float32)
        parts = tiny_model.flow.split_v(v)
        planned = [stage for stage in tiny_model.flow.stages if stage.plan.dropped]
        assert len(parts) == len(planned) + 1
        for part, stage in zip(parts, planned, strict=False):
            assert part.shape == (1, stage.plan.height, stage.plan.width, stage.plan.dropped)
        values = np.concatenate([part.numpy().ravel() for part in parts])
        np.testing.assert_array_equal(np.sort(values), np.sort(v.numpy().ravel()))


@pytest.mark.parametrize("dimensions", [48, 192, 3072, 196_608])
def test_chi_moments_equal_those_of_scipy(dimensions):
    mean, deviation = compute_chi_moments(dimensions)
    assert mean == pytest.approx(stats.chi.mean(dimensions), rel=1e-8)
    # Of large numbers SciPy's own variance is a difference that rounds.
    exact = stats.chi.std(dimensions) if dimensions < 1000 else math.sqrt(0.5 - 1 / (8 * dimensions))
    assert deviation == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_auroc_of_two_normals_has_its_closed_form(shift):
    inliers, outliers = np.random.default_rng(0).standard_normal((2, 20_000))
    separation = compare_outlier_scores(inliers, shift + outliers, resamples=2)
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
