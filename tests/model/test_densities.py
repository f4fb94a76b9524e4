import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import assert_gradients_reach_weights, random_images
from helpers.variants import SMALLEST, STAGES, VARIANTS, equal, fresh, images_of, variant
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple.model.codes import interpolate_codes
from tfdecouple.model.quantizer import Quantizer

pytestmark = pytest.mark.usefixtures("eager")


class TestLikelihood:
    def inputs(self, model):
        rng = np.random.default_rng(0)
        images = images_of(model)
        u = rng.random(images.shape, "float32")
        return images, u, 2 * (images + u) / np.float32(256) - 1, rng.standard_normal((3, 4)).astype("float32")

    @pytest.mark.parametrize("name", ["coupling", "none", "base"])
    def test_likelihood_log_prob_is_minus_the_reconstruction_term(self, name):
        model = variant(name)
        images, u, x, noise = self.inputs(model)
        z = None
        if model.config.has_latent:
            posterior = model.posterior(images)
            z = posterior.mean() + posterior.stddev() * noise
        bound = model.bound(images, noise=(noise, u))
        np.testing.assert_allclose(model.likelihood(z).log_prob(x), -bound.reconstruction, rtol=1e-5)

    def test_likelihood_has_the_batch_shape_of_z(self, small_model):
        _, _, x, z = self.inputs(small_model)
        for shape in ((4,), (3, 4), (1, 3, 4), (3, 1, 4)):
            likelihood = small_model.likelihood(z[0] if shape == (4,) else z.reshape(shape))
            assert likelihood.batch_shape == shape[:-1] and likelihood.event_shape == (4, 4, 3)
        likelihood = small_model.likelihood(z)
        samples = likelihood.sample([2, 5], seed=1)
        assert samples.shape == (2, 5, 3, 4, 4, 3) and samples.dtype == tf.float32
        log_prob = likelihood.log_prob(samples)
        assert log_prob.shape == (2, 5, 3)
        np.testing.assert_allclose(log_prob[1, 4], likelihood.log_prob(samples[1, 4]), rtol=1e-4)
        # One image under several z.
        together = likelihood.log_prob(x[0])
        np.testing.assert_allclose(together[2], small_model.likelihood(z[2]).log_prob(x[0]), rtol=1e-5)

    def test_likelihood_equals_a_transformed_distribution_of_the_flow(self, small_model):
        _, _, x, z = self.inputs(small_model)
        base = tfd.Sample(tfd.Normal(tf.zeros(3), tf.ones(3)), (4, 4, 3))
        theirs = tfd.TransformedDistribution(base, tfb.Invert(small_model.flow.as_bijector()))
        ours, options = small_model.likelihood(z), {"bijector_kwargs": {"condition": z}}
        np.testing.assert_allclose(theirs.log_prob(x, **options), ours.log_prob(x), rtol=1e-5)
        equal(theirs.sample(seed=[1, 2], **options), ours.sample(seed=[1, 2]))


def every_weight_learns(model):
    images = images_of(model, 4)
    rng = np.random.default_rng(0)
    z_noise = rng.standard_normal((4, model.config.latent_dim)).astype("float32")
    u_noise = rng.random(images.shape, "float32")
    assert len(model.trainable_variables) > 30
    draws = z_noise, u_noise
    loss = lambda: tf.reduce_mean(model.bound(images, noise=draws, training=True).bits_per_dim)  # noqa: E731
    assert_gradients_reach_weights(model, loss)


PIXELS = np.arange(256, dtype="uint8")


@pytest.mark.parametrize("n_bits", range(1, 9))
class TestPixelBins:
    def test_every_x_of_a_bin_gives_the_same_pixel(self, n_bits):
        quantizer = Quantizer(n_bits)
        bins = quantizer.find_bins(PIXELS)
        expected = PIXELS // quantizer.pixels_per_bin * quantizer.pixels_per_bin
        for u in (0.0, 0.5, 1 - 2**-10):
            pixels = quantizer.round_to_pixels(quantizer.place_in_bins(bins, u))
            assert pixels.dtype == tf.uint8
            np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(quantizer.quantize_pixels(PIXELS), expected)

    def test_bins_cover_the_range_of_x_without_gaps(self, n_bits):
        quantizer = Quantizer(n_bits)
        bins = np.arange(quantizer.n_bins, dtype="float64")
        edges = quantizer.place_at_edges(bins)
        assert edges[0] == -1 and edges[-1] + quantizer.bin_width == 1 and edges.dtype == np.float64
        np.testing.assert_array_equal(quantizer.place_in_bins(bins, 1.0)[:-1], edges[1:])
        np.testing.assert_array_equal(quantizer.place_at_centres(bins), edges + quantizer.bin_width / 2)
        np.testing.assert_array_equal(quantizer.scale_to_bins(edges), bins)


PLACES = [0, 0.25, 0.5, 0.75, 1]


def measure_angles(codes, other):
    codes, other = codes.astype(np.float64), other.astype(np.float64)
    cosine = (codes * other).sum(-1) / np.linalg.norm(codes, axis=-1) / np.linalg.norm(other, axis=-1)
    return np.arccos(np.clip(cosine, -1, 1))


class TestDensities:
    @pytest.mark.parametrize("name", ["base", "additive", "dequantization"])
    def test_every_weight_of_a_model_receives_a_gradient(self, name):
        every_weight_learns(fresh(VARIANTS[name]))

    @pytest.mark.slow
    def test_every_weight_of_a_traced_model_receives_a_gradient(self, traced):
        every_weight_learns(fresh(STAGES))

    def test_reconstruction_term_has_gradients_for_mean_and_variance_of_z(self):
        model, images = fresh(SMALLEST), random_images(4, 4)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.bound(images, noise=(tf.ones([4, 4]), tf.zeros([4, 4, 4, 3]))).reconstruction)
        gradient = tape.gradient(loss, model.encoder.last.bias.value)
        assert np.all(gradient.numpy() != 0)

    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_bits_per_dim_follow_from_the_terms_in_nats(self, of_bits, n_bits):
        model = of_bits(n_bits)
        bound = model.bound(images_of(model), seed=1)
        nats = sum(np.asarray(part, "float64") for part in (bound.reconstruction, bound.kl, bound.dequantization))
        # -log P(image) >= -nats; the image is a cell of sides 2/n_bins in each of 192 directions.
        discrete = nats - 192 * math.log(2 / 2**n_bits)
        np.testing.assert_allclose(bound.bits_per_dim, discrete / (192 * math.log(2)), rtol=1e-5)
        bits = model.quantizer.convert_to_bits_per_dim(nats, 192)
        np.testing.assert_allclose(bits, discrete / (192 * math.log(2)), rtol=1e-12)

    @pytest.mark.parametrize("name", ["coupling", "additive", "normal"])
    def test_kl_of_a_bound_is_the_difference_of_two_log_densities(self, name):
        model, noise = variant(name), np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
        images = images_of(model)
        posterior = model.posterior(images)
        z = posterior.mean() + posterior.stddev() * noise
        kl = model.bound(images, noise=(noise, np.zeros(images.shape, "f4"))).kl
        np.testing.assert_allclose(kl, posterior.log_prob(z) - model.prior().log_prob(z), rtol=1e-3, atol=1e-4)

    def test_x_outside_of_the_range_of_pixels_is_clipped(self):
        x = tf.constant([-9.0, -1.0, -1 + 1.9 / 256, 0.0, 1 - 1e-4, 1.0, 9.0])
        np.testing.assert_array_equal(Quantizer(8).round_to_pixels(x), [0, 0, 0, 128, 255, 255, 255])
        np.testing.assert_array_equal(Quantizer(1).round_to_pixels(x), [0, 0, 0, 128, 128, 128, 128])


class TestInterpolation:
    def test_slerp_turns_at_an_even_speed_and_changes_the_length_linearly(self):
        a, b = np.random.default_rng(0).standard_normal((2, 3, 192)).astype(np.float32)
        b = 1.5 * b
        codes = interpolate_codes(a, b, PLACES, "slerp").numpy()
        for index, place in enumerate(PLACES):
            np.testing.assert_allclose(measure_angles(codes[:, index], a), place * measure_angles(a, b), atol=1e-3)
        lengths, of_a, of_b = (np.linalg.norm(code, axis=-1)[..., None] for code in (codes, a, b))
        places = np.float32(PLACES)
        np.testing.assert_allclose(lengths[..., 0], (1 - places) * of_a + places * of_b, rtol=1e-5)
        for path in ("lerp", "slerp"):
            np.testing.assert_array_equal(interpolate_codes(a, b, [0, 1], path), np.stack([a, b], 1))

    @pytest.mark.parametrize(("a", "b"), [([1, 2], [2, 4]), ([1, 2], [-2, -4]), ([0, 0], [1, 2]), ([0, 0], [0, 0])])
    def test_slerp_of_parallel_codes_is_the_line(self, a, b):
        a, b = np.float32([a]), np.float32([b])
        np.testing.assert_array_equal(interpolate_codes(a, b, PLACES, "slerp"), interpolate_codes(a, b, PLACES))
