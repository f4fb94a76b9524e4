"""Tests of bits/dim, the use of z and outlier scores, on linear Gaussian models with closed forms and on real ones."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.densities import LinearGaussian, counted_batches, gaussian_images
from helpers.models import random_images
from helpers.variants import variant
from scipy import stats

from tfdecouple.errors import DataError, RunError, UserError
from tfdecouple.metrics.bits_per_dim import ELBO, IMPORTANCE_WEIGHTED, BoundEvaluator
from tfdecouple.metrics.latent_use import compute_latent_use, draw_derangement
from tfdecouple.metrics.outliers import compare_outlier_scores, compute_auroc
from tfdecouple.model.outlier_scores import compute_chi_moments
from tfdecouple.randomness import draw_u_noise, draw_z_noise
from tfdecouple.training.workers import make_strategy

# The posterior of the second is far from exact: too wide, and of one pixel only.
EXACT, LOOSE = LinearGaussian(), LinearGaussian(slopes=[0.6, 0.0, 0.0], stddev=0.6)
# The posterior mean of z_0 is the first pixel over its standard deviation: N(0, 1) over images.
SCALE = 38.0
KNOWING = {"slopes": [128 / SCALE, 0.0, 0.0], "stddev": 0.5}


@functools.cache
def evaluator_of(model):
    """The evaluator of a model, with its traces, which take most of the time of a test."""
    return BoundEvaluator(model)


def evaluate(model, images, bound=IMPORTANCE_WEIGHTED, k=1, size=64, **more):
    return evaluator_of(model)(counted_batches(images, size), bound=bound, k=k, **more)


def numbers(result):
    """All numbers in the result of a metric."""
    values = [list(v.values()) if isinstance(v, dict) else v for v in dataclasses.asdict(result).values()]
    return np.hstack([value for value in values if not isinstance(value, str)])


class TestBound:
    @pytest.mark.parametrize(("bound", "k"), [(ELBO, 1), (IMPORTANCE_WEIGHTED, 5)])
    def test_exact_posterior_gives_the_marginal_likelihood_with_any_draws(self, bound, k):
        model, images = EXACT, gaussian_images(20)
        truth = model.quantizer.convert_to_bits_per_dim(-model.log_marginal(images), 3)
        result = evaluate(model, images, bound, k)
        # The draws are float32.
        assert result.bits_per_dim == pytest.approx(truth.mean(), abs=1e-6)
        assert result.standard_error == pytest.approx(truth.std(ddof=1) / math.sqrt(20), abs=1e-6)
        assert result.gain.mean == pytest.approx(0, abs=1e-6)

    def test_elbo_is_above_the_marginal_by_the_kl_to_the_exact_posterior(self):
        model, images = LOOSE, gaussian_images(200)
        marginal = model.quantizer.convert_to_bits_per_dim(-model.log_marginal(images), 3).mean()
        expected = model.quantizer.convert_to_bits_per_dim(-model.log_marginal(images) + model.gap(images), 3).mean()
        result = evaluate(model, images, ELBO, 40)
        assert result.bits_per_dim == pytest.approx(expected, abs=0.02)
        assert expected - marginal > 0.2, "ten times the tolerance"
        mean = model.x(images) @ model.slopes
        kl = ((mean**2 + model.stddev**2 - 1) / 2 - math.log(model.stddev)).mean()
        assert result.kl.mean == pytest.approx(kl, abs=0.03) and 0 < result.kl.standard_error < 0.1

    def test_importance_weighted_bound_falls_with_k_to_the_marginal(self):
        model, images = LOOSE, gaussian_images(300)
        single, double, fourfold = (evaluate(model, images, k=k) for k in (1, 2, 4))
        assert single.bits_per_dim > double.bits_per_dim + 0.05 and double.bits_per_dim > fourfold.bits_per_dim + 0.02
        truth = model.quantizer.convert_to_bits_per_dim(-model.log_marginal(images[:40]), 3).mean()
        many = evaluate(model, images[:40], k=200)
        assert many.bits_per_dim == pytest.approx(truth, abs=0.005)


class TestDrawsOfBounds:
    @pytest.fixture(scope="class")
    def bound(self):
        return evaluate(LOOSE, gaussian_images(10), k=5, size=7)

    @pytest.mark.parametrize(("size", "devices"), [(1, 1), (64, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
    def test_bound_does_not_depend_on_batch_size_and_devices(self, bound, size, devices):
        evaluator = BoundEvaluator(LOOSE, make_strategy(devices) if devices > 1 else None)
        again = evaluator(counted_batches(gaussian_images(10), size), bound=IMPORTANCE_WEIGHTED, k=5)
        assert again.images == bound.images == 10
        np.testing.assert_allclose(numbers(again), numbers(bound), rtol=1e-12)

    def test_bound_ignores_padding_and_depends_on_the_seed(self, bound):
        evaluator, batches = evaluator_of(LOOSE), counted_batches(gaussian_images(10), 7, fill=255)
        assert evaluator(batches, bound=IMPORTANCE_WEIGHTED, k=5) == bound
        assert evaluator(batches, bound=IMPORTANCE_WEIGHTED, k=5, seed=1).kl != bound.kl

    def test_bound_that_is_not_finite_names_the_images_where_it_is_refused(self):
        class Broken(LinearGaussian):
            def bound(self, images, noise):
                first, *rest = super().bound(images, noise)
                for value, bad in ((8, math.inf), (9, math.nan)):
                    first = tf.where(images[:, 0, 0, 0] == value, tf.constant(bad, tf.float64), first)
                return first, *rest

        images, evaluator = gaussian_images(6), BoundEvaluator(Broken(1))
        images[1], images[3] = 8, 9
        # Drawn from a larger split: the fourth is its image 43.
        batches = counted_batches(images, 4).map(lambda batch: {**batch, "index": batch["index"] + 40})
        assert not math.isfinite(evaluator(batches).bits_per_dim)
        with pytest.raises(RunError, match=r"for 2 of 6 images \(number 41, 43\)"):
            evaluator(batches, bound=IMPORTANCE_WEIGHTED, refuse_non_finite=True)


@pytest.mark.usefixtures("eager")
class TestBoundsOfModels:
    def test_elbo_and_importance_weighted_bound_of_one_draw_are_equal_to_the_last_bit(self):
        model, images = variant("coupling"), random_images(5, 4)
        elbo, tighter = (evaluate(model, images, bound, seed=2, size=5) for bound in (ELBO, IMPORTANCE_WEIGHTED))
        assert (tighter.bits_per_dim, tighter.standard_error) == (elbo.bits_per_dim, elbo.standard_error)

    def test_learned_dequantization_has_normal_noise_and_all_three_terms(self):
        model, images = variant("dequantization"), random_images(3, 4)
        index, k, terms = tf.range(3, dtype=tf.int64), 2, []
        for number in range(k):
            draw = 0, number, index
            u = draw_u_noise((4, 4, 3), *draw, normal_noise=True)
            assert np.abs(u).max() > 1
            terms.append(np.stack(model.bound(images, noise=(draw_z_noise(4, *draw), u))[:3]).astype("float64"))
        terms = np.stack(terms)
        result = evaluate(model, images, k=k, size=2)
        nats = -np.logaddexp.reduce(-terms.sum(1)) + math.log(k)
        bits = model.quantizer.convert_to_bits_per_dim(nats, 48).mean()
        assert result.bits_per_dim == pytest.approx(bits, rel=1e-5)
        means = result.reconstruction.mean, result.kl.mean, result.dequantization.mean
        assert means == pytest.approx(terms.mean((0, 2)), rel=1e-4) and means[2] != 0

    def test_bound_of_a_model_with_labels_needs_labels(self):
        batches, model = counted_batches(random_images(3, 4), 3), variant("prior-classes")
        # Where labels are optional, the bound is that of images alone.
        unknown = batches.map(lambda batch: {**batch, "label": tf.fill([3], -1)})
        assert BoundEvaluator(model)(batches) == BoundEvaluator(model)(unknown)
        with pytest.raises(DataError, match="needs the label of each image"):
            BoundEvaluator(variant("classes"))(batches)


class TestUse:
    @pytest.fixture(scope="class")
    def images(self):
        return gaussian_images(600, SCALE)

    @pytest.fixture(scope="class")
    def model(self):
        return LinearGaussian(3, **KNOWING)

    @pytest.fixture(scope="class")
    def use(self, model, images):
        return compute_latent_use(model, counted_batches(images, 512))

    def test_information_has_its_closed_form(self, use):
        expected = math.log(1 + 1 / 0.5**2) / 2
        assert use.mutual_information.mean == pytest.approx(expected, abs=4 * use.mutual_information.standard_error)
        assert 0 < use.mutual_information.standard_error < 0.04
        assert use.information_limit == math.log(600) and use.information_images == 600

    def test_active_units_are_those_whose_posterior_mean_varies(self, use, model, images):
        variance = (model.x(images) @ model.slopes).var(ddof=1)
        assert use.mean_variance == pytest.approx([variance, 0, 0], rel=1e-5)
        assert use.active_units == 1
        # The first pixel has a standard deviation of 38 / 128: a variance below a hundredth.
        dull = LinearGaussian(1, slopes=[0.3, 0, 0], stddev=1.0)
        assert compute_latent_use(dull, counted_batches(images[:100], 100)).active_units == 0

    def test_kl_is_exact_with_the_normal_prior_and_drawn_with_others(self, use, model, images):
        mean = model.x(images) @ model.slopes
        expected = (mean**2 + 0.25 - 1) / 2 - math.log(0.5)
        assert use.prior == "normal" and use.kl_method == "exact"
        assert use.kl.mean == pytest.approx(expected.mean(), rel=1e-5)
        assert use.kl.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(600), rel=1e-5)
        assert use.kl_to_normal == pytest.approx([expected.mean(), 0, 0], rel=1e-5, abs=1e-9)
        # This flow prior is N(0, I), so that the truth is the same.
        drawn = compute_latent_use(LinearGaussian(3, "flow", **KNOWING), counted_batches(images[:200], 200))
        assert drawn.prior == "flow" and drawn.kl_method == "Monte Carlo"
        assert drawn.kl.mean == pytest.approx(sum(drawn.kl_to_normal), abs=5 * drawn.kl.standard_error)
        assert drawn.kl.mean != sum(drawn.kl_to_normal)

    def test_shuffling_costs_have_their_closed_form(self, use, model, images):
        x, mean = model.x(images), model.x(images) @ model.slopes
        # The mean over all pairs of squares without the spread of z, which is the same for both.
        matching = np.square(x - mean[:, None] * model.weights).sum(1).mean()
        all_pairs = np.mean([np.square(x - m * model.weights).sum(1).mean() for m in mean])
        other = (all_pairs * len(x) - matching) / (len(x) - 1)
        expected = (other - matching) / (2 * model.noise**2) / 3 / math.log(2)
        costs = use.shuffling_costs
        assert costs.mean == pytest.approx(expected, abs=4 * costs.standard_error)
        assert 0 < costs.standard_error < expected / 4
        assert costs.mean == pytest.approx(use.shuffled_bits_per_dim.mean - use.bits_per_dim.mean)


class TestDrawsOfUse:
    def test_use_of_z_depends_on_the_seed_and_not_on_batches_and_padding(self):
        done = []

        def use(size, fill=0, seed=0):
            done.clear()
            batches = counted_batches(gaussian_images(10), size, fill=fill)
            model = LinearGaussian(2, "flow", **KNOWING)
            return compute_latent_use(model, batches, samples=2, seed=seed, on_batch=done.append)

        seven = use(7)
        assert done == [7, 10, 17, 20, 27, 30], "the images of all passes"
        assert use(7, fill=255) == seven
        np.testing.assert_allclose(numbers(use(1)), numbers(seven), rtol=1e-5, atol=1e-9)
        other = use(7, seed=1)
        assert other.kl != seven.kl and other.shuffled_bits_per_dim != seven.shuffled_bits_per_dim

    @pytest.mark.parametrize("count", [2, 3, 50])
    def test_derangement_leaves_no_image_its_own_z(self, count):
        partners = [draw_derangement(count, seed) for seed in range(8)]
        for partner in partners:
            assert sorted(partner) == list(range(count))
            assert (partner != np.arange(count)).all()
        assert count == 2 or len({tuple(partner) for partner in partners}) > 1


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", ["dequantization", "prior-classes"])
def test_use_of_z_has_the_kl_and_the_bits_per_dim_of_the_elbo(kind):
    model, batches = variant(kind), counted_batches(random_images(3, 4), 3)
    use, elbo = compute_latent_use(model, batches, seed=4), BoundEvaluator(model)(batches, seed=4)
    assert len(use.kl_to_normal) == len(use.mean_variance) == model.config.latent_dim
    assert use.kl.mean == pytest.approx(elbo.kl.mean, rel=1e-5)
    assert use.bits_per_dim.mean == pytest.approx(elbo.bits_per_dim, rel=1e-5)
    assert use.bits_per_dim.standard_error == pytest.approx(elbo.standard_error, rel=1e-4)
    assert use.shuffling_costs.mean != 0 and use.images == 3


@pytest.mark.usefixtures("eager")
class TestRefusals:
    def test_latent_use_refuses_models_without_posterior_and_single_images(self):
        for kind, message in (("none", "has no z"), ("classes", "function of the label")):
            with pytest.raises(UserError, match=message):
                compute_latent_use(variant(kind), counted_batches(random_images(3, 4), 3))
        with pytest.raises(DataError, match="1 image is too few"):
            compute_latent_use(EXACT, counted_batches(gaussian_images(1), 1))

    def test_latent_use_refuses_values_that_are_not_finite(self):
        class Broken(LinearGaussian):
            def likelihood(self, z):
                return super().likelihood(z * math.nan)

        # Drawn from a larger split, so that the indices begin with 40.
        batches = counted_batches(gaussian_images(4), 4).map(lambda batch: {**batch, "index": batch["index"] + 40})
        for model in (LinearGaussian(slopes=[math.nan, 0, 0]), Broken()):
            with pytest.raises(RunError, match=r"not finite for 4 of 4 images \(number 40, 41, 42, 43\)"):
                compute_latent_use(model, batches)


@pytest.mark.usefixtures("eager")
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
