import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.densities import LinearGaussian, counted_batches, gaussian_images
from helpers.models import random_images
from helpers.variants import variant

from tfdecouple.errors import DataError, RunError, UserError
from tfdecouple.metrics.bits_per_dim import BoundEvaluator
from tfdecouple.metrics.latent_use import compute_latent_use, draw_derangement

# The posterior mean of z_0 is the first pixel over its standard deviation: N(0, 1) over images.
SCALE = 38.0
KNOWING = {"slopes": [128 / SCALE, 0.0, 0.0], "stddev": 0.5}


def compute(model, images, size=512, **more):
    return compute_latent_use(model, counted_batches(images, size), **more)


def numbers(use):
    parts = [list(value.values()) if isinstance(value, dict) else value for value in dataclasses.asdict(use).values()]
    return np.hstack([part for part in parts if not isinstance(part, str)])


class TestLinearGaussian:
    @pytest.fixture(scope="class")
    def images(self):
        return gaussian_images(600, SCALE)

    @pytest.fixture(scope="class")
    def use(self, images):
        return compute(LinearGaussian(3, **KNOWING), images)

    def test_information_has_its_closed_form(self, use):
        expected = math.log(1 + 1 / 0.5**2) / 2
        assert use.mutual_information.mean == pytest.approx(expected, abs=4 * use.mutual_information.standard_error)
        assert 0 < use.mutual_information.standard_error < 0.04
        assert use.information_limit == math.log(600) and use.information_images == 600
        # Only z_0 depends on the image; the other dimensions are N(0, 1) for every image.
        assert use.information[0] == pytest.approx(use.mutual_information.mean, abs=1e-6)
        assert use.information[1:] == pytest.approx([0, 0], abs=1e-9)

    def test_active_units_are_those_whose_posterior_mean_varies(self, use, images):
        model = LinearGaussian(3, **KNOWING)
        variance = (model.x(images) @ model.slopes).var(ddof=1)
        assert use.mean_variance == pytest.approx([variance, 0, 0], rel=1e-5)
        assert use.active_units == 1
        # The first pixel has a standard deviation of 38 / 128: a variance below a hundredth.
        assert compute(LinearGaussian(1, slopes=[0.3, 0, 0], stddev=1.0), images[:100], 100).active_units == 0

    def test_kl_is_exact_with_the_normal_prior_and_drawn_with_others(self, use, images):
        model = LinearGaussian(3, **KNOWING)
        mean = model.x(images) @ model.slopes
        expected = (mean**2 + 0.25 - 1) / 2 - math.log(0.5)
        assert use.prior == "normal" and use.kl_method == "exact"
        assert use.kl.mean == pytest.approx(expected.mean(), rel=1e-5)
        assert use.kl.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(600), rel=1e-5)
        assert use.kl_to_normal == pytest.approx([expected.mean(), 0, 0], rel=1e-5, abs=1e-9)
        # This flow prior is N(0, I), so that the truth is the same.
        drawn = compute(LinearGaussian(3, "flow", **KNOWING), images[:200], 200)
        assert drawn.prior == "flow" and drawn.kl_method == "Monte Carlo"
        assert drawn.kl.mean == pytest.approx(sum(drawn.kl_to_normal), abs=5 * drawn.kl.standard_error)
        assert drawn.kl.mean != sum(drawn.kl_to_normal)

    def test_shuffling_costs_have_their_closed_form(self, use, images):
        model = LinearGaussian(3, **KNOWING)
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


class TestDraws:
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
    assert len(use.information) == len(use.kl_to_normal) == len(use.mean_variance) == model.config.latent_dim
    assert use.kl.mean == pytest.approx(elbo.kl.mean, rel=1e-5)
    assert use.bits_per_dim.mean == pytest.approx(elbo.bits_per_dim, rel=1e-5)
    assert use.bits_per_dim.standard_error == pytest.approx(elbo.standard_error, rel=1e-4)
    assert use.shuffling_costs.mean != 0
    assert json.loads(json.dumps(dataclasses.asdict(use)))["images"] == 3


@pytest.mark.usefixtures("eager")
class TestRefusals:
    def test_latent_use_refuses_models_without_posterior_and_single_images(self):
        for kind, message in (("none", "has no z"), ("classes", "function of the label")):
            with pytest.raises(UserError, match=message):
                compute_latent_use(variant(kind), counted_batches(random_images(3, 4), 3))
        with pytest.raises(DataError, match="1 image is too few"):
            compute(LinearGaussian(), gaussian_images(1))

    def test_latent_use_refuses_values_that_are_not_finite(self):
        class Broken(LinearGaussian):
            def likelihood(self, z):
                return super().likelihood(z * math.nan)

        # Drawn from a larger split, so that the indices begin with 40.
        batches = counted_batches(gaussian_images(4), 4).map(lambda batch: {**batch, "index": batch["index"] + 40})
        for model in (LinearGaussian(slopes=[math.nan, 0, 0]), Broken()):
            with pytest.raises(RunError, match=r"not finite for 4 of 4 images \(number 40, 41, 42, 43\)"):
                compute_latent_use(model, batches)
