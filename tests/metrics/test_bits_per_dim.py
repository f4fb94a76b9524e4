import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.densities import LinearGaussian, counted_batches, gaussian_images
from helpers.models import SMALL, random_images
from helpers.variants import variant

from tfdecouple.errors import DataError, NotInitializedError, RunError
from tfdecouple.layers import ActNorm, InvertibleLinear
from tfdecouple.metrics.bits_per_dim import ELBO, IMPORTANCE_WEIGHTED, BoundEvaluator
from tfdecouple.metrics.metric import Estimate
from tfdecouple.model import DecoupledModel
from tfdecouple.randomness import draw_u_noise, draw_z_noise
from tfdecouple.training.workers import make_strategy

# The posterior of the second is far from exact: too wide, and of one pixel only.
EXACT, LOOSE = LinearGaussian(), LinearGaussian(slopes=[0.6, 0.0, 0.0], stddev=0.6)


@functools.cache
def evaluator_of(model):
    """The evaluator of a model, with its traces, which take most of the time of a test."""
    return BoundEvaluator(model)


def evaluate(model, images, bound=IMPORTANCE_WEIGHTED, k=1, size=64, **more):
    return evaluator_of(model)(counted_batches(images, size), bound=bound, k=k, **more)


def numbers(bound):
    flat = {}
    for name, value in dataclasses.asdict(bound).items():
        parts = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{part}": number for part, number in parts.items() if isinstance(number, float)}
    return flat


class TestLinearGaussian:
    @pytest.mark.parametrize(("bound", "k"), [(ELBO, 1), (IMPORTANCE_WEIGHTED, 5)])
    def test_exact_posterior_gives_the_marginal_likelihood_with_any_draws(self, bound, k):
        model, images = EXACT, gaussian_images(20)
        truth = model.quantizer.convert_to_bits_per_dim(-model.log_marginal(images), 3)
        result = evaluate(model, images, bound, k)
        # The draws are float32.
        assert result.bits_per_dim == pytest.approx(truth.mean(), abs=1e-6)
        assert result.standard_error == pytest.approx(truth.std(ddof=1) / math.sqrt(20), abs=1e-6)
        assert result.effective_draws == pytest.approx(k, rel=1e-5) and result.gain.mean == pytest.approx(0, abs=1e-6)

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
        assert single.effective_draws == pytest.approx(1)
        assert 1.1 < double.effective_draws < fourfold.effective_draws < many.effective_draws < 150


class TestDraws:
    @pytest.fixture(scope="class")
    def bound(self):
        return evaluate(LOOSE, gaussian_images(10), k=5, size=7)

    @pytest.mark.parametrize(("size", "devices"), [(1, 1), (64, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
    def test_bound_does_not_depend_on_batch_size_and_devices(self, bound, size, devices):
        evaluator = BoundEvaluator(LOOSE, make_strategy(devices) if devices > 1 else None)
        again = evaluator(counted_batches(gaussian_images(10), size), bound=IMPORTANCE_WEIGHTED, k=5)
        assert again.images == bound.images == 10
        assert numbers(again) == pytest.approx(numbers(bound), rel=1e-12)

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
class TestModel:
    def test_elbo_and_importance_weighted_bound_of_one_draw_are_equal_to_the_last_bit(self):
        model, images = variant("coupling"), random_images(5, 4)
        elbo, tighter = (evaluate(model, images, bound, seed=2, size=5) for bound in (ELBO, IMPORTANCE_WEIGHTED))
        assert (tighter.bits_per_dim, tighter.standard_error) == (elbo.bits_per_dim, elbo.standard_error)

    def test_identity_flow_gives_the_bits_of_a_standard_normal(self):
        model = DecoupledModel(dataclasses.replace(SMALL, conditioning="none"))

        def become_identity(layer, x, condition):
            if isinstance(layer, ActNorm):
                layer.log_scale.assign(tf.zeros_like(layer.log_scale))
            elif isinstance(layer, InvertibleLinear):
                layer.kernel.assign(tf.eye(layer.kernel.shape[0]))
            return layer.forward_and_log_det(x, condition)[0]

        images = random_images(32, seed=7)
        with pytest.raises(NotInitializedError):
            evaluate(model, images)
        x = (images.astype(np.float64) + 0.5) / 128 - 1
        model.flow.visit_layers(tf.constant(x, tf.float32), None, become_identity)
        model.initialized.assign(True)
        result = evaluate(model, images)
        # The expectation over u in [0, 1) of -log2 of the normal density times the width 2/256 of a pixel's bin.
        squares = np.mean(x**2) + (1 / 128) ** 2 / 12
        expected = (squares / 2 + math.log(2 * math.pi) / 2) / math.log(2) + math.log2(256 / 2)
        assert result.bits_per_dim == pytest.approx(expected, abs=3e-4)
        assert result.kl == Estimate(0, 0)

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
