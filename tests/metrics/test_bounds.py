"""The bounds on bits/dim, held against densities whose bits/dim is known."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.densities import Density, LinearGaussian, Uniform, counted_batches, gaussian_images
from helpers.models import SMALL, give_effect, random_images
from helpers.variants import variant

from tfdecouple.errors import DataError, NotInitializedError, RunError
from tfdecouple.metrics import Evaluator, bounds
from tfdecouple.metrics.base import Estimate
from tfdecouple.metrics.bounds import ELBO, IMPORTANCE_WEIGHTED, BoundEvaluator
from tfdecouple.metrics.latent_use import measure_latent_use
from tfdecouple.model import DecoupledModel
from tfdecouple.model.noise import u_noise, z_noise
from tfdecouple.training.strategy import make_strategy

STATED = {"split": "test", "averaged_weights": True}


def measure(model, images, bound=IMPORTANCE_WEIGHTED, k=1, size=64, at_once=1, **more):
    evaluator = BoundEvaluator(model, at_once=at_once)
    return evaluator(counted_batches(images, size), bound=bound, k=k, **{**STATED, **more})


def numbers(bound):
    """All figures of a bound, flat."""
    flat = {}
    for name, value in bound.to_dict().items():
        parts = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{part}": number for part, number in parts.items() if isinstance(number, float)}
    return flat


# Its posterior is far from exact: too wide, and it sees one pixel only.
LOOSE = {"slopes": [0.6, 0.0, 0.0], "stddev": 0.6}


class TestLearnedDequantization:
    @pytest.mark.usefixtures("eager")
    def test_bounds_take_normal_noise_and_all_three_terms(self):
        model, images = variant("dequantization"), random_images(3, 4)
        index = tf.range(3, dtype=tf.int64)
        k, terms = 2, []
        for number in range(k):
            which = 0, tf.fill([3], number), index
            u = u_noise((4, 4, 3), *which, normal_noise=True)
            assert np.abs(u).max() > 1
            terms.append(np.stack(model.elbo_from_noise(images, z_noise(4, *which), u)[:3]).astype("float64"))
        bits = model.nats_to_bits_per_dim(np.stack(terms).sum(1).mean(0))
        batches = counted_batches(images, 2)
        measured = BoundEvaluator(model)(batches, bound=ELBO, k=k, **STATED)
        assert measured.bits_per_dim == pytest.approx(bits.mean(), rel=1e-5)
        assert measured.dequantization.mean == pytest.approx(np.mean([each[2] for each in terms]), rel=1e-4)
        assert measured.dequantization.mean != 0
        weights = BoundEvaluator(model)(batches, bound=IMPORTANCE_WEIGHTED, k=k, **STATED)
        tighter = -np.logaddexp.reduce(-np.stack(terms).sum(1)) + math.log(k)
        assert weights.bits_per_dim == pytest.approx(model.nats_to_bits_per_dim(tighter).mean(), rel=1e-5)
        # The use of z is measured over the same draws.
        use = measure_latent_use(model, batches, samples=k, **STATED)
        assert use.bits_per_dim.mean == pytest.approx(measured.bits_per_dim, rel=1e-5)


class TestUniformDensity:
    @pytest.mark.parametrize("bound", [ELBO, IMPORTANCE_WEIGHTED])
    @pytest.mark.parametrize("k", [1, 7])
    def test_costs_exactly_the_bits_of_a_pixel(self, bound, k):
        measured = measure(Uniform(2), gaussian_images(10), bound, k)
        assert measured.bits_per_dim == pytest.approx(8, abs=1e-12)
        assert measured.standard_error == pytest.approx(0, abs=1e-12)
        assert measured.gain.mean == pytest.approx(0, abs=1e-12)
        assert measured.effective_draws == pytest.approx(k)

    @pytest.mark.parametrize("k", [1, 3])
    def test_without_z_and_with_fewer_bits(self, k):
        measured = measure(Uniform(0, n_bits=5), gaussian_images(4), k=k)
        assert measured.bits_per_dim == pytest.approx(5, abs=1e-12)
        assert measured.kl.mean == 0


class TestLinearGaussian:
    def test_exact_posterior_gives_the_marginal_likelihood_with_any_draws(self):
        model, images = LinearGaussian(), gaussian_images(20)
        truth = model.nats_to_bits_per_dim(-model.log_marginal(images))
        for bound, k in [(ELBO, 1), (IMPORTANCE_WEIGHTED, 5)]:
            measured = measure(model, images, bound, k)
            # The draws are float32.
            assert measured.bits_per_dim == pytest.approx(truth.mean(), abs=1e-6)
            assert measured.standard_error == pytest.approx(truth.std(ddof=1) / math.sqrt(20), abs=1e-6)

    def test_elbo_is_above_the_marginal_by_the_kl_to_the_exact_posterior(self):
        model, images = LinearGaussian(**LOOSE), gaussian_images(200)
        expected = model.nats_to_bits_per_dim(-model.log_marginal(images) + model.gap(images)).mean()
        measured = measure(model, images, ELBO, 40)
        assert measured.bits_per_dim == pytest.approx(expected, abs=0.02)
        # The gap is ten times as wide as what is let pass.
        assert expected - model.nats_to_bits_per_dim(-model.log_marginal(images)).mean() > 0.2

    def test_importance_weighted_bound_falls_with_k(self):
        # So it does in expectation: by more than the draws of so many images differ.
        bounds = [measure(LinearGaussian(**LOOSE), gaussian_images(300), k=k).bits_per_dim for k in (1, 2, 4)]
        assert bounds[0] > bounds[1] + 0.05 and bounds[1] > bounds[2] + 0.02

    def test_importance_weighted_bound_comes_down_to_the_marginal(self):
        model, images = LinearGaussian(**LOOSE), gaussian_images(40)
        truth = model.nats_to_bits_per_dim(-model.log_marginal(images)).mean()
        assert measure(model, images, k=200).bits_per_dim == pytest.approx(truth, abs=0.005)

    def test_parts_are_those_of_the_elbo_over_the_same_draws(self):
        model, images = LinearGaussian(**LOOSE), gaussian_images(30)
        elbo, tighter = (measure(model, images, bound, 4) for bound in (ELBO, IMPORTANCE_WEIGHTED))
        assert tighter.reconstruction == elbo.reconstruction and tighter.kl == elbo.kl
        assert elbo.gain == Estimate(0, 0)
        assert tighter.gain.mean == pytest.approx(elbo.bits_per_dim - tighter.bits_per_dim)
        assert tighter.gain.mean > 0.1
        nats = elbo.reconstruction.mean + elbo.kl.mean + elbo.dequantization.mean
        assert elbo.bits_per_dim == pytest.approx(model.nats_to_bits_per_dim(nats))

    def test_noise_of_the_pixels_is_drawn_anew_for_each_draw(self):
        # With the exact posterior of z, what is left to average over is u alone.
        model, images = LinearGaussian(centres=False), gaussian_images(30)
        assert 0 < measure(model, images, k=8).gain.mean < 1e-3

    def test_kl_has_its_closed_form(self):
        model, images = LinearGaussian(**LOOSE), gaussian_images(100)
        mean = model.x(images) @ model.slopes
        expected = ((mean**2 + model.stddev**2 - 1) / 2 - math.log(model.stddev)).mean()
        kl = measure(model, images, ELBO, 40).kl
        assert kl.mean == pytest.approx(expected, abs=0.03)
        assert 0 < kl.standard_error < 0.1

    def test_effective_draws(self):
        model, images = LinearGaussian(**LOOSE), gaussian_images(30)
        assert measure(model, images, k=1).effective_draws == pytest.approx(1)
        assert 1.5 < measure(model, images, k=20).effective_draws < 15


class TestDraws:
    @pytest.fixture(scope="class")
    def measured(self):
        return measure(LinearGaussian(**LOOSE), gaussian_images(10), k=5, size=7)

    @pytest.mark.parametrize("size", [1, 64])
    def test_batch_size_changes_nothing(self, measured, size):
        again = measure(LinearGaussian(**LOOSE), gaussian_images(10), k=5, size=size)
        assert again.images == measured.images == 10
        assert numbers(again) == pytest.approx(numbers(measured), rel=1e-12)

    @pytest.mark.parametrize("at_once", [2, 5, 8])
    def test_draws_at_once_change_nothing(self, measured, at_once):
        again = measure(LinearGaussian(**LOOSE), gaussian_images(10), k=5, at_once=at_once)
        assert numbers(again) == pytest.approx(numbers(measured), rel=1e-12)

    def test_devices_change_nothing(self, measured):
        evaluator = BoundEvaluator(LinearGaussian(**LOOSE), make_strategy(2))
        again = evaluator(counted_batches(gaussian_images(10), 4), bound=IMPORTANCE_WEIGHTED, k=5, **STATED)
        assert numbers(again) == pytest.approx(numbers(measured), rel=1e-12)

    def test_padding_is_not_counted(self, measured):
        batches = counted_batches(gaussian_images(10), 7, fill=255)
        evaluator = BoundEvaluator(LinearGaussian(**LOOSE))
        assert evaluator(batches, bound=IMPORTANCE_WEIGHTED, k=5, **STATED) == measured

    def test_seed_decides_the_draws(self, measured):
        again, other = (measure(LinearGaussian(**LOOSE), gaussian_images(10), k=5, size=7, seed=s) for s in (0, 1))
        assert again == measured
        assert other.kl != measured.kl

    def test_draws_differ_between_numbers_and_between_images(self):
        number, index = tf.constant([0, 0, 1, 1]), tf.constant([0, 1, 0, 1], tf.int64)
        z, u = z_noise(2, 3, number, index).numpy(), u_noise((1, 1, 2), 3, number, index).numpy().reshape(4, 2)
        for noise in (z, u):
            assert len(np.unique(noise)) == noise.size
        assert (u >= 0).all() and (u < 1).all()
        # By number and index, wherever they stand.
        np.testing.assert_array_equal(z_noise(2, 3, number[::-1], index[::-1]), z[::-1])

    def test_one_trace_for_all_seeds_and_numbers_of_draws(self):
        traces = []

        class Traced(Uniform):
            def elbo_from_noise(self, *inputs):
                traces.append(1)
                return super().elbo_from_noise(*inputs)

        evaluator = BoundEvaluator(Traced(1))
        for k, seed in [(1, 0), (3, 1), (2, 5)]:
            evaluator(counted_batches(gaussian_images(10), 4), k=k, seed=seed, **STATED)
        assert len(traces) == 1

    def test_log_weights_are_float64(self):
        class Far(Density):
            """As many nats as a large image has, and weights that differ in what float32 would round away."""

            def elbo_from_noise(self, images, z_noise, u_noise):
                small = 0.01 * tf.cast(z_noise[:, 0], tf.float64)
                return 1e7 + small, tf.zeros_like(small), tf.zeros_like(small)

        drawn = z_noise(1, 0, tf.range(6), tf.zeros(6, tf.int64)).numpy()[:, 0].astype(np.float64)
        expected = 1e7 - math.log(np.mean(np.exp(-0.01 * drawn)))
        measured = measure(Far(1), gaussian_images(1), k=6)
        nats = (measured.bits_per_dim * math.log(2) - math.log(128)) * 3
        assert nats == pytest.approx(expected, abs=1e-6)
        assert abs(expected - 1e7) > 1e-4

    def test_reports_the_images_done(self):
        done = []
        measure(Uniform(1), gaussian_images(10), size=7, on_batch=done.append)
        assert done == [7, 10]

    def test_many_draws_come_in_several_calls(self, monkeypatch):
        whole = measure(LinearGaussian(**LOOSE), gaussian_images(10), k=7)
        monkeypatch.setattr(bounds, "_DRAWS_A_CALL", 3)
        done = []
        again = measure(LinearGaussian(**LOOSE), gaussian_images(10), k=7, on_batch=done.append)
        assert numbers(again) == pytest.approx(numbers(whole), rel=1e-12)
        assert done == [4, 8, 10]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    model = DecoupledModel(SMALL)
    model.initialize(random_images(16))
    return give_effect(model)


@pytest.mark.usefixtures("eager")
class TestModel:
    def test_at_one_draw_both_bounds_are_the_elbo_of_the_evaluator(self, model):
        evaluator = BoundEvaluator(model)
        batches = counted_batches(random_images(5, seed=5), 4)
        elbo, tighter = (evaluator(batches, bound=b, seed=2, **STATED) for b in (ELBO, IMPORTANCE_WEIGHTED))
        known = Evaluator(model)(batches, seed=2)
        assert tighter.bits_per_dim == elbo.bits_per_dim == known.bits_per_dim
        assert tighter.standard_error == elbo.standard_error == known.standard_error
        assert (elbo.reconstruction.mean, elbo.kl.mean) == (known.reconstruction, known.kl)
        # And by more draws it falls.
        assert evaluator(batches, bound=IMPORTANCE_WEIGHTED, k=3, seed=2, **STATED).gain.mean > 1e-4

    def test_model_without_z_has_bounds_over_u(self):
        model = DecoupledModel(dataclasses.replace(SMALL, conditioning="none"))
        model.initialize(random_images(16))
        measured = BoundEvaluator(model)(counted_batches(random_images(4), 4), bound=IMPORTANCE_WEIGHTED, k=3, **STATED)
        assert measured.kl == Estimate(0, 0)
        assert measured.gain.mean > 0

    def test_batches_without_labels(self):
        images = random_images(3, 4)
        batches, model = counted_batches(images, 3), variant("prior-classes")
        # Where labels are optional, the bound is that of images alone.
        unknown = batches.map(lambda batch: {**batch, "label": tf.fill([3], -1)})
        assert Evaluator(model)(batches) == Evaluator(model)(unknown)
        with pytest.raises(DataError, match="needs the label of each image") as error:
            Evaluator(variant("classes"))(batches)
        assert "\n" not in str(error.value)

    def test_model_without_weights_is_refused(self):
        with pytest.raises(NotInitializedError):
            measure(DecoupledModel(dataclasses.replace(SMALL, conditioning="none")), random_images(4))


class TestWhatIsStated:
    def test_result_says_what_it_is(self):
        measured = measure(Uniform(1), gaussian_images(5), k=3, split="validation", averaged_weights=False)
        values = json.loads(json.dumps(measured.to_dict()))
        assert values["bound"] == "importance-weighted" and values["k"] == 3
        assert values["split"] == "validation" and values["images"] == 5 and values["averaged_weights"] is False
        assert set(values["reconstruction"]) == {"mean", "standard_error"}

    def test_standard_error_of_one_image_is_unknown(self):
        assert math.isnan(measure(Uniform(1), gaussian_images(1)).standard_error)

    def test_no_draw_and_no_image_are_refused(self):
        with pytest.raises(DataError, match="k is 0"):
            measure(Uniform(1), gaussian_images(2), k=0)
        with pytest.raises(DataError, match="no images of test"):
            BoundEvaluator(Uniform(1))(counted_batches(gaussian_images(2), 2).take(0), **STATED)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_bound_that_is_not_finite_names_the_images(self, bad):
        class Broken(Uniform):
            def elbo_from_noise(self, images, z_noise, u_noise):
                first, *rest = super().elbo_from_noise(images, z_noise, u_noise)
                return tf.where(images[:, 0, 0, 0] == 9, tf.constant(bad, tf.float64), first), *rest

        images = gaussian_images(6)
        images[3] = 9
        # Drawn from a larger split: the fourth is its image 43.
        batches = counted_batches(images, 4).map(lambda batch: {**batch, "index": batch["index"] + 40})
        with pytest.raises(RunError, match=r"for 1 of 6 images of test \(number 43\)") as error:
            BoundEvaluator(Broken(1))(batches, bound=IMPORTANCE_WEIGHTED, **STATED)
        assert "\n" not in str(error.value)
