"""Whether z is used: figures held against a model whose information and divergences are known."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
from helpers.densities import LinearGaussian, Uniform, counted_batches, gaussian_images
from helpers.models import SMALL, give_effect, let_z_show, random_images

from tfdecouple.errors import DataError, RunError, UserError
from tfdecouple.metrics import Evaluator, latent_use
from tfdecouple.metrics.latent_use import Posteriors, derangement, information, measure_latent_use
from tfdecouple.model import DecoupledModel

STATED = {"split": "test", "averaged_weights": True}

# The posterior mean of z_0 is that of the first pixel over its standard deviation: N(0, 1) over images.
SCALE = 38.0
KNOWING = {"slopes": [128 / SCALE, 0.0, 0.0], "stddev": 0.5}


def measure(model, images, size=512, **more):
    return measure_latent_use(model, counted_batches(images, size), **{**STATED, **more})


def drawn_batches(count):
    """Batches of images drawn from a larger split, whose indices begin with 40."""
    batches = counted_batches(gaussian_images(count), count)
    return batches.map(lambda batch: {**batch, "index": batch["index"] + 40})


def flat(use):
    values = {}
    for name, value in use.to_dict().items():
        if isinstance(value, dict):
            values |= {f"{name}.{part}": number for part, number in value.items()}
        elif isinstance(value, tuple):
            values |= {f"{name}.{number}": entry for number, entry in enumerate(value)}
        elif isinstance(value, float):
            values[name] = value
    return values


class TestLinearGaussian:
    @pytest.fixture(scope="class")
    def images(self):
        return gaussian_images(600, SCALE)

    @pytest.fixture(scope="class")
    def use(self, images):
        return measure(LinearGaussian(3, **KNOWING), images)

    def test_mutual_information_has_its_closed_form(self, use):
        expected = math.log(1 + 1 / 0.5**2) / 2
        assert use.mutual_information.mean == pytest.approx(expected, abs=4 * use.mutual_information.standard_error)
        assert 0 < use.mutual_information.standard_error < 0.04
        assert use.information_limit == math.log(600) and use.information_images == 600

    def test_information_of_each_dimension(self, use):
        # All that z knows is in z_0; the others are N(0, 1) for every image.
        assert use.information[0] == pytest.approx(use.mutual_information.mean, abs=1e-6)
        assert use.information[1:] == pytest.approx([0, 0], abs=1e-9)

    def test_active_units(self, use, images):
        model = LinearGaussian(3, **KNOWING)
        variance = (model.x(images) @ model.slopes).var(ddof=1)
        assert use.mean_variance == pytest.approx([variance, 0, 0], rel=1e-5)
        assert use.active_units == 1

    @pytest.mark.parametrize(("slope", "active"), [(0.26, 0), (0.40, 1)])
    def test_unit_is_active_above_a_variance_of_a_hundredth(self, images, slope, active):
        # The first pixel has a standard deviation of 38 / 128.
        assert measure(LinearGaussian(1, slopes=[slope, 0, 0], stddev=1.0), images[:200]).active_units == active

    def test_kl_is_exact_with_the_normal_prior(self, use, images):
        model = LinearGaussian(3, **KNOWING)
        mean = model.x(images) @ model.slopes
        expected = (mean**2 + 0.25 - 1) / 2 - math.log(0.5)
        assert use.prior == "normal" and use.kl_method == "exact"
        assert use.kl.mean == pytest.approx(expected.mean(), rel=1e-5)
        assert use.kl.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(600), rel=1e-5)
        assert use.kl_to_normal == pytest.approx([expected.mean(), 0, 0], rel=1e-5, abs=1e-9)

    def test_kl_is_drawn_with_the_flow_prior(self, use, images):
        # Its prior is N(0, I) here too, so that the truth is the same.
        drawn = measure(LinearGaussian(3, "flow", **KNOWING), images)
        assert drawn.prior == "flow" and drawn.kl_method == "Monte Carlo"
        assert drawn.kl != use.kl
        assert drawn.kl.mean == pytest.approx(use.kl.mean, abs=5 * drawn.kl.standard_error)
        assert drawn.kl_to_normal == use.kl_to_normal

    def test_cost_of_shuffling(self, use, images):
        model = LinearGaussian(3, **KNOWING)
        x, mean = model.x(images), model.x(images) @ model.slopes
        # Over all pairs, of squares that lack the spread of z, the same for both.
        own = np.square(x - mean[:, None] * model.weights).sum(1).mean()
        every = np.mean([np.square(x - m * model.weights).sum(1).mean() for m in mean])
        other = (every * len(x) - own) / (len(x) - 1)
        expected = (other - own) / (2 * model.noise**2) / 3 / math.log(2)
        costs = use.shuffling_costs
        assert costs.mean == pytest.approx(expected, abs=4 * costs.standard_error)
        assert 0 < costs.standard_error < expected / 4
        assert costs.mean == pytest.approx(use.shuffled_bits_per_dim.mean - use.bits_per_dim.mean)

    def test_model_that_ignores_z_loses_nothing_by_shuffling(self):
        class Deaf(LinearGaussian):
            def likelihood(self, z):
                return super().likelihood(0 * z)

        assert measure(Deaf(2, **KNOWING), gaussian_images(50)).shuffling_costs.mean == 0

    def test_posterior_that_ignores_the_image_knows_nothing(self):
        use = measure(LinearGaussian(2, slopes=[0, 0, 0], stddev=1.0), gaussian_images(50))
        assert use.mutual_information.mean == pytest.approx(0, abs=1e-12)
        assert use.active_units == 0
        assert use.kl.mean == pytest.approx(0, abs=1e-6)

    def test_information_ends_at_its_limit(self):
        images = np.arange(0, 256, 16, np.uint8).reshape(16, 1, 1, 1).repeat(3, 3)
        use = measure(LinearGaussian(1, slopes=[1, 0, 0], stddev=1e-3), images)
        assert use.mutual_information.mean == pytest.approx(math.log(16), abs=1e-9)
        assert use.mutual_information.standard_error == pytest.approx(0, abs=1e-9)

    def test_information_is_over_so_many_images_and_no_more(self, monkeypatch):
        monkeypatch.setattr(latent_use, "INFORMATION_IMAGES", 8)
        use = measure(LinearGaussian(1, **KNOWING), gaussian_images(50))
        assert (use.images, use.information_images) == (50, 8)
        assert use.information_limit == math.log(8)

    def test_more_draws_are_averaged(self, use, images):
        more = measure(LinearGaussian(3, **KNOWING), images[:50], samples=4)
        less = measure(LinearGaussian(3, **KNOWING), images[:50], samples=1)
        assert more.samples == 4
        # The spread over images shrinks by what is drawn; it would grow fourfold if it were not divided.
        assert more.mutual_information.standard_error < less.mutual_information.standard_error
        assert more.bits_per_dim.mean == pytest.approx(less.bits_per_dim.mean, abs=5 * less.bits_per_dim.standard_error)
        assert sum(more.information) == pytest.approx(sum(less.information), abs=0.2)


class TestDraws:
    @pytest.fixture(scope="class")
    def use(self):
        return measure(LinearGaussian(2, "flow", **KNOWING), gaussian_images(10), size=7, samples=2)

    @pytest.mark.parametrize("size", [1, 64])
    def test_batch_size_changes_nothing(self, use, size):
        again = measure(LinearGaussian(2, "flow", **KNOWING), gaussian_images(10), size=size, samples=2)
        assert again.images == 10
        assert flat(again) == pytest.approx(flat(use), rel=1e-5, abs=1e-9)

    def test_padding_is_not_counted(self, use):
        batches = counted_batches(gaussian_images(10), 7, fill=255)
        assert measure_latent_use(LinearGaussian(2, "flow", **KNOWING), batches, samples=2, **STATED) == use

    def test_seed_decides_the_draws(self, use):
        again, other = (
            measure(LinearGaussian(2, "flow", **KNOWING), gaussian_images(10), size=7, samples=2, seed=seed)
            for seed in (0, 1)
        )
        assert again == use
        assert other.kl != use.kl and other.shuffled_bits_per_dim != use.shuffled_bits_per_dim

    def test_size_of_chunks_changes_nothing(self, monkeypatch):
        rng = np.random.default_rng(0)
        posteriors = Posteriors(rng.normal(size=(20, 3)), rng.uniform(0.1, 1, (20, 3)), np.arange(20))
        z = posteriors.mean + posteriors.stddev * rng.normal(size=(20, 3))
        whole = information(z, posteriors)
        monkeypatch.setattr(latent_use, "_CHUNK_NUMBERS", 7 * 60)
        for one, other in zip(information(z, posteriors), whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)

    @pytest.mark.parametrize("count", [2, 3, 50])
    def test_derangement_leaves_no_image_its_own_z(self, count):
        partners = [derangement(count, seed) for seed in range(8)]
        for partner in partners:
            assert sorted(partner) == list(range(count))
            assert (partner != np.arange(count)).all()
        assert count == 2 or len({tuple(partner) for partner in partners}) > 1

    def test_reports_the_images_done_over_all_passes(self):
        done = []
        measure(LinearGaussian(**KNOWING), gaussian_images(10), size=7, samples=2, on_batch=done.append)
        assert done == [7, 10, 17, 20, 27, 30]


@pytest.mark.usefixtures("eager")
class TestModel:
    @pytest.fixture(scope="class", params=["flow", "normal"])
    def model(self, request):
        keras.utils.set_random_seed(3)
        model = DecoupledModel(dataclasses.replace(SMALL, prior=request.param))
        model.initialize(random_images(16))
        return let_z_show(give_effect(model))

    def test_own_z_gives_the_elbo_of_the_evaluator(self, model):
        batches = counted_batches(random_images(10, seed=5), 8)
        use = measure_latent_use(model, batches, samples=2, seed=4, **STATED)
        known = Evaluator(model)(batches, samples=2, seed=4)
        assert len(use.information) == len(use.kl_to_normal) == len(use.mean_variance) == SMALL.latent_dim
        if model.config.prior == "flow":
            assert use.kl.mean == pytest.approx(known.kl, rel=1e-5)
            assert use.bits_per_dim.mean == pytest.approx(known.bits_per_dim, rel=1e-6)
            assert use.bits_per_dim.standard_error == pytest.approx(known.standard_error, rel=1e-4)
        else:
            # There the KL is exact, and only the other part is drawn.
            nats = known.reconstruction + use.kl.mean
            assert use.bits_per_dim.mean == pytest.approx(model.nats_to_bits_per_dim(nats), rel=1e-6)
            assert use.kl.mean == pytest.approx(sum(use.kl_to_normal))
        assert use.shuffling_costs.mean != 0


class TestWhatIsStated:
    def test_result_is_plain(self):
        use = measure(LinearGaussian(2, **KNOWING), gaussian_images(5), split="validation", averaged_weights=False)
        values = json.loads(json.dumps(use.to_dict()))
        assert values["split"] == "validation" and values["averaged_weights"] is False and values["images"] == 5
        assert len(values["information"]) == 2

    def test_model_without_z_is_refused_in_one_line(self):
        with pytest.raises(UserError, match="no z") as error:
            measure(Uniform(0), gaussian_images(4))
        assert "\n" not in str(error.value)

    def test_too_little_is_refused(self):
        with pytest.raises(DataError, match="1 image of test is too few"):
            measure(LinearGaussian(), gaussian_images(1))
        with pytest.raises(DataError, match="samples is 0"):
            measure(LinearGaussian(), gaussian_images(4), samples=0)

    def test_prior_of_a_model_that_knows_labels_is_its_own(self):
        model = LinearGaussian(2, **KNOWING)
        model.config.has_classes = True
        use = measure(model, gaussian_images(5))
        assert (use.prior, use.kl_method) == ("normal", "Monte Carlo")

    def test_posterior_that_is_not_finite_is_refused(self):
        with pytest.raises(RunError, match=r"not finite for 4 of 4 images \(number 40, 41, 42, 43\)"):
            measure_latent_use(LinearGaussian(slopes=[math.nan, 0, 0]), drawn_batches(4), **STATED)

    def test_likelihood_that_is_not_finite_is_refused(self):
        class Broken(LinearGaussian):
            def likelihood(self, z):
                return super().likelihood(z * math.nan)

        with pytest.raises(RunError, match=r"not finite for 4 of 4 images of test \(number 40, 41, 42, 43\)"):
            measure_latent_use(Broken(), drawn_batches(4), **STATED)
