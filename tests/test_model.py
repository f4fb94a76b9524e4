"""Tests of DecoupledModel: its densities, its start from data, and that images come back from their codes exactly."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY, every_weight_has_a_gradient, give_effect, random_images, walk_with
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.config import ModelConfig
from tfdecouple.errors import DataError, ExactnessWarning, InversionError, NotInitializedError, UserError
from tfdecouple.layers import ActNorm, Coupling, net_precision
from tfdecouple.model import Codes, DecoupledModel, far_from_training

# Smaller still: two levels, the last of 2 x 2 pixels.
SMALL = ModelConfig(
    image_size=4,
    latent_dim=4,
    steps=(1, 1),
    hidden_channels=(4, 4),
    alpha=0.8,
    encoder_channels=(4,),
    encoder_out_channels=2,
    prior_steps=1,
    prior_hidden=4,
    prior_alpha=0.8,
)
# With a part that leaves, for what changes the layer before it; the last level has 1 x 1 pixels.
PARTS = dataclasses.replace(SMALL, steps=(1, (1,), 1), hidden_channels=(4, 4, 4))
VARIANTS = {
    "coupling": SMALL,
    "none": dataclasses.replace(SMALL, conditioning="none"),
    "base": dataclasses.replace(SMALL, conditioning="base", base_hidden=5),
    "additive": dataclasses.replace(
        PARTS, transform="additive", multiscale_transform="additive", prior_transform="additive"
    ),
    "base-additive": dataclasses.replace(SMALL, conditioning="base", base_hidden=5, transform="additive"),
    "lu": dataclasses.replace(PARTS, linear="lu"),
    "normal": dataclasses.replace(SMALL, prior="normal"),
    "alpha-1": dataclasses.replace(PARTS, alpha=1.0, prior_alpha=1.0),
}


pytestmark = pytest.mark.usefixtures("eager")


def fresh(config):
    """A model of its own: initialised, every weight with an effect, z that differs from image to image."""
    model = DecoupledModel(config)
    model.initialize(random_images(16, config.image_size))
    if model.encoder is not None:
        give_effect(model.encoder.blocks[-1], scale=0.5)
        model.encoder.last.gain.assign_add(np.full(model.encoder.last.gain.shape, 0.5))
    return give_effect(model)


@functools.cache
def variant(name):
    """A model that tests share. Do not change it."""
    return fresh(VARIANTS[name])


@pytest.fixture
def traced(eager):
    """Traced functions after all, for what is called often enough."""
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def model(traced):
    """The model that most tests share. Do not change it."""
    return variant("coupling")


@pytest.fixture
def of_bits(tiny_model, traced, monkeypatch):
    """The tiny model at some number of bits, on which no weight depends."""

    def choose(n_bits):
        monkeypatch.setattr(tiny_model, "config", dataclasses.replace(TINY, n_bits=n_bits))
        return tiny_model

    return choose


def images_of(model, count=3, seed=1):
    return random_images(count, model.config.image_size, seed)


def weights(model):
    return {name: variable.numpy() for name, variable in model.named_variables().items()}


def same_weights(model, before):
    return all(np.array_equal(value, before[name]) for name, value in weights(model).items())


def one_line(error, call):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def equal(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


class TestGradients:
    @pytest.mark.parametrize("name", ["none", "base", "additive", "lu", "normal"])
    def test_every_weight_receives_a_gradient(self, name):
        every_weight_learns(fresh(VARIANTS[name]))

    def test_every_weight_receives_a_gradient_through_the_traced_functions(self, traced):
        every_weight_learns(fresh(TINY))

    def test_noise_of_z_reaches_the_posterior(self):
        """The draw of z is reparametrised: both mean and log-variance learn from the reconstruction alone."""
        model, images = fresh(SMALL), random_images(4, 4)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.elbo_from_noise(images, tf.ones([4, 4]), tf.zeros([4, 4, 4, 3])).reconstruction)
        gradient = tape.gradient(loss, model.encoder.last.bias.value)
        assert np.all(gradient.numpy() != 0)


def every_weight_learns(model):
    images = images_of(model, 4)
    rng = np.random.default_rng(0)
    z_noise = rng.standard_normal((4, model.config.latent_dim)).astype("float32")
    u_noise = rng.random(images.shape, "float32")
    assert len(model.trainable_variables) > 30
    every_weight_has_a_gradient(
        model, lambda: tf.reduce_mean(model.elbo_from_noise(images, z_noise, u_noise, training=True).bits_per_dim)
    )


def checkerboard(count, size):
    board = 255 * (np.indices((size, size)).sum(0) % 2)
    return np.repeat(board[None, :, :, None], 3, -1).repeat(count, 0).astype("uint8")


IMAGES = {
    "random": lambda count: random_images(count, seed=3),
    "black": lambda count: np.zeros((count, 8, 8, 3), "uint8"),
    "white": lambda count: np.full((count, 8, 8, 3), 255, "uint8"),
    "extreme noise": lambda count: 255 * np.random.default_rng(0).integers(0, 2, (count, 8, 8, 3), dtype="uint8"),
    "checkerboard": lambda count: checkerboard(count, 8),
}


def quantised(images, n_bits):
    """Level k of a pixel comes back as k * 256/n_bins."""
    step = 256 // 2**n_bits
    return images // step * step


class TestExactness:
    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_images_come_back_from_their_codes(self, of_bits, n_bits):
        model, images = of_bits(n_bits), np.concatenate([make(3) for make in IMAGES.values()])
        decoded = model.decode(*model.encode(images, verify=True))
        assert decoded.dtype == tf.uint8
        expected = quantised(images, n_bits)
        for number, kind in enumerate(IMAGES):
            part = slice(3 * number, 3 * number + 3)
            np.testing.assert_array_equal(decoded[part], expected[part], err_msg=kind)

    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_quantize_images_gives_the_images_that_the_model_sees(self, of_bits, n_bits):
        images = random_images(3)
        equal(of_bits(n_bits).quantize_images(images), quantised(images, n_bits))

    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    @pytest.mark.parametrize("count", [1, 64])
    def test_batches_of_any_size_come_back(self, of_bits, n_bits, count):
        model = of_bits(n_bits)
        images = np.concatenate([make(13) for make in IMAGES.values()])[:count]
        assert len(images) == count
        equal(model.decode(*model.encode(images)), quantised(images, n_bits))

    @pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("coupling", "base")])
    def test_every_variant_gives_back_its_images(self, name):
        model = variant(name)
        images = images_of(model, 8)
        equal(model.decode(*model.encode(images, verify=True)), images)

    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_below_8_bits_images_of_a_level_have_the_same_code(self, of_bits, n_bits):
        images = random_images(1)
        same, other = quantised(images, n_bits), images ^ 0x80
        v = of_bits(n_bits).encode(np.concatenate([images, same, other])).v
        np.testing.assert_allclose(v[0], v[1], rtol=1e-5, atol=1e-5)
        assert np.abs(v[0] - v[2]).max() > 0.1

    def test_levels_are_whole_numbers_below_n_bins(self, of_bits):
        pixels = np.arange(256, dtype="uint8").reshape(1, 256)
        equal(of_bits(5).levels_of(pixels)[0], np.arange(256) // 8)
        equal(of_bits(1).levels_of(pixels)[0], np.arange(256) // 128)

    def test_pixels_are_clipped_to_the_range(self, of_bits):
        x = tf.constant([-9.0, -1.0, -1 + 1.9 / 256, 0.0, 1 - 1e-4, 1.0, 9.0])
        equal(of_bits(8).pixels(x), [0, 0, 0, 128, 255, 255, 255])
        equal(of_bits(1).pixels(x), [0, 0, 0, 128, 128, 128, 128])

    def test_encoding_is_deterministic_and_calling_the_model_encodes(self, model):
        images = images_of(model)
        for a, b, c in zip(model.encode(images), model.encode(images), model(images), strict=True):
            equal(a, b)
            equal(a, c)

    def test_code_is_posterior_mean_and_flow_of_bin_centres(self, model):
        images = images_of(model)
        codes = model.encode(images)
        equal(codes.z, model.posterior(images).mean())
        x = 2 * (images + np.float32(0.5)) / 256 - 1
        np.testing.assert_allclose(codes.v, model.flow.forward_and_log_det(x, codes.z)[0], rtol=1e-5, atol=1e-5)
        assert isinstance(codes, Codes) and codes.z.shape == (3, 4) and codes.v.shape == (3, 4, 4, 3)


def lossy(gain, shift):
    """A model with alpha = 1 whose first coupling shrinks what is bright and leaves what is dark."""
    model = DecoupledModel(dataclasses.replace(SMALL, alpha=1.0))
    model.initialize(random_images(16, 4))
    step = model.flow.levels[0][0].steps[0]
    step.sequence[1].kernel.assign(np.eye(3))
    net = step.sequence[2].net
    for variable in (net.condition_kernel, net.condition_bias):
        variable.assign(np.zeros(variable.shape))
    first = np.zeros(net.first.shape)
    first[1, 1] = 1
    net.first.assign(first)
    net.second.assign(np.eye(4)[None, None])
    net.last.direction.assign(np.ones(net.last.direction.shape))
    net.last.gain.assign([0.0, -gain])
    net.last.bias.assign([shift, 0.0])
    return model


class TestLostImages:
    @pytest.mark.parametrize(
        ("gain", "shift", "lost"),
        # Bright images shrink to 0, or below the rounding of a large shift; or dark ones shrink to 0.
        [(1000.0, 0.0, [1, 3, 5]), (8.0, 1000.0, [1, 3, 5]), (-1000.0, 0.0, [0, 2, 4])],
        ids=["underflow", "rounding", "underflow of dark ones"],
    )
    def test_verify_names_exactly_the_images_that_are_lost(self, gain, shift, lost):
        model = lossy(gain, shift)
        black, white = np.zeros((1, 4, 4, 3), "uint8"), np.full((1, 4, 4, 3), 255, "uint8")
        dark = random_images(1, 4) // 8
        images = np.concatenate([black, white, dark, white, black, white])
        codes = model.encode(images)
        assert np.all(np.isfinite(codes.v))
        x = model.flow.inverse_and_log_det(codes.v, codes.z)[0]
        assert np.flatnonzero(np.any((model.pixels(x) != images) | ~np.isfinite(x), (1, 2, 3))).tolist() == lost
        message = one_line(InversionError, lambda: model.encode(images, verify=True))
        assert message.startswith(f"image {', '.join(map(str, lost))} of the batch") and "alpha" in message
        # Those that are not lost pass by themselves.
        kept = np.setdiff1d(range(6), lost)
        v = model.encode(images[kept], verify=True).v
        np.testing.assert_allclose(v, codes.v.numpy()[kept], rtol=1e-4, atol=1e-5)

    def test_images_far_from_the_training_are_named(self):
        rng = np.random.default_rng(0)
        near = rng.integers(120, 136, (16, 4, 4, 3), dtype="uint8")
        far = (255 * rng.integers(0, 2, (1, 4, 4, 3))).astype("uint8")
        model = DecoupledModel(SMALL)
        model.initialize(near)
        images = np.concatenate([near[:1], far, near[1:2]])
        with pytest.warns(ExactnessWarning, match="^image 1 of the batch is far from"):
            codes = model.encode(images)
        assert far_from_training(codes.v).tolist() == [False, True, False]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.encode(near)
            # What was decoded again and came back needs no warning.
            model.encode(images, verify=True)

    def test_many_lost_images_are_counted(self):
        images = np.full((12, 4, 4, 3), 255, "uint8")
        message = one_line(InversionError, lambda: lossy(1000.0, 0.0).encode(images, verify=True))
        assert "image 0, 1, 2, 3, 4, 5, 6, 7 and 4 more" in message

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("flow/level_1_part_0_step_0/coupling_alternate_first/net/last_bias", math.inf),
            ("flow/level_1_part_0_step_0/linear/kernel", math.nan),
        ],
    )
    def test_broken_weights_are_an_error_everywhere(self, name, value):
        model = fresh(SMALL)
        images = images_of(model)
        codes = model.encode(images)
        variable = model.named_variables()[name]
        variable.assign(np.full(variable.shape, value))
        assert "image 0, 1, 2 of the batch" in one_line(InversionError, lambda: model.encode(images))
        assert "image 0, 1, 2 of the batch" in one_line(InversionError, lambda: model.decode(*codes))
        one_line(InversionError, lambda: model.sample(2, seed=0))

    def test_broken_encoder_is_an_error(self):
        model = fresh(SMALL)
        model.encoder.last.bias.assign(np.full(8, math.nan))
        one_line(InversionError, lambda: model.encode(images_of(model)))

    def test_only_the_broken_image_is_named(self, model):
        z, v = (np.array(code) for code in model.encode(images_of(model)))
        v[1, 0, 0, 0] = math.nan
        assert "image 1 of the batch" in one_line(InversionError, lambda: model.decode(z, v))


class TestPrior:
    def test_shapes(self, model):
        prior = model.prior
        assert prior.event_shape == [4] and prior.batch_shape == [] and prior.dtype == tf.float32
        z = prior.sample([2, 3], seed=1)
        assert z.shape == (2, 3, 4) and prior.log_prob(z).shape == (2, 3) and prior.log_prob(z[0, 0]).shape == ()

    def test_log_prob_is_that_of_the_noise_and_the_flows_log_det(self, model):
        z = tf.random.stateless_normal([5, 4], [0, 1])
        noise, log_det = model.prior_flow.forward_and_log_det(z)
        expected = tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(noise), -1) + log_det
        np.testing.assert_allclose(model.prior.log_prob(z), expected, rtol=1e-5)
        np.testing.assert_allclose(model.z_from_noise(noise), z, rtol=1e-4, atol=1e-5)
        assert np.abs(noise - z).max() > 0.1

    def test_normal_prior_is_standard(self):
        model, z = variant("normal"), tf.random.stateless_normal([5, 4], [0, 1])
        np.testing.assert_allclose(
            model.prior.log_prob(z), tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(z), -1), rtol=1e-6
        )
        equal(model.z_from_noise(z), z)
        assert model.prior_flow is None

    def test_density_integrates_to_1(self):
        model = fresh(dataclasses.replace(SMALL, latent_dim=2))
        side = np.linspace(-12, 12, 241, dtype="float32")
        grid = np.stack(np.meshgrid(side, side), -1)
        density = np.exp(model.prior.log_prob(grid).numpy().astype("float64"))
        assert density.sum() * float(side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-4)

    def test_seeds_repeat_a_draw(self, model):
        prior = model.prior
        equal(prior.sample(3, seed=[1, 2]), prior.sample(3, seed=[1, 2]))
        assert np.any(prior.sample(3, seed=[1, 2]) != prior.sample(3, seed=[1, 3]))


class TestPosterior:
    @pytest.mark.parametrize("name", ["coupling", "base", "normal"])
    def test_it_is_the_encoders_gaussian(self, name):
        model = variant(name)
        images = images_of(model)
        posterior = model.posterior(images)
        assert posterior.batch_shape == [3] and posterior.event_shape == [4]
        mean, log_variance = model.encoder(2 * images.astype("float32") / 256 - 1)
        np.testing.assert_allclose(posterior.mean(), mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(posterior.variance(), np.exp(log_variance), rtol=1e-5)
        assert posterior.sample(5, seed=1).shape == (5, 3, 4)


class TestLikelihood:
    def inputs(self, model):
        rng = np.random.default_rng(0)
        images = images_of(model)
        u = rng.random(images.shape, "float32")
        return images, u, 2 * (images + u) / np.float32(256) - 1, rng.standard_normal((3, 4)).astype("float32")

    @pytest.mark.parametrize("name", ["coupling", "none", "base"])
    def test_log_prob_is_minus_the_reconstruction_of_the_bound(self, name):
        model = variant(name)
        images, u, x, noise = self.inputs(model)
        z = None
        if model.config.has_latent:
            posterior = model.posterior(images)
            z = posterior.mean() + posterior.stddev() * noise
        elbo = model.elbo_from_noise(images, noise, u)
        np.testing.assert_allclose(model.likelihood(z).log_prob(x), -elbo.reconstruction, rtol=1e-5)

    def test_batch_shape_is_that_of_z_and_samples_lead(self, model):
        _, _, x, z = self.inputs(model)
        for shape in ((4,), (3, 4), (1, 3, 4), (3, 1, 4)):
            likelihood = model.likelihood(z[0] if shape == (4,) else z.reshape(shape))
            assert likelihood.batch_shape == shape[:-1] and likelihood.event_shape == (4, 4, 3)
        likelihood = model.likelihood(z)
        samples = likelihood.sample([2, 5], seed=1)
        assert samples.shape == (2, 5, 3, 4, 4, 3) and samples.dtype == tf.float32
        log_prob = likelihood.log_prob(samples)
        assert log_prob.shape == (2, 5, 3)
        np.testing.assert_allclose(log_prob[1, 4], likelihood.log_prob(samples[1, 4]), rtol=1e-4)
        # One image under several z.
        together = likelihood.log_prob(x[0])
        np.testing.assert_allclose(together[2], model.likelihood(z[2]).log_prob(x[0]), rtol=1e-5)

    def test_transformed_distribution_of_the_flow_is_the_same(self, model):
        _, _, x, z = self.inputs(model)
        base = tfd.Sample(tfd.Normal(tf.zeros(3), tf.ones(3)), (4, 4, 3))
        theirs = tfd.TransformedDistribution(base, tfb.Invert(model.flow.as_bijector()))
        np.testing.assert_allclose(
            theirs.log_prob(x, bijector_kwargs={"condition": z}), model.likelihood(z).log_prob(x), rtol=1e-5
        )
        draw = theirs.sample(seed=[1, 2], bijector_kwargs={"condition": z})
        equal(draw, model.likelihood(z).sample(seed=[1, 2]))

    def test_samples_are_codes_that_the_flow_maps_back_to_noise(self, model):
        z = tf.zeros([4000, 4])
        v = model.flow.forward_and_log_det(model.likelihood(z).sample(seed=3), z)[0]
        assert abs(float(tf.reduce_mean(v))) < 0.02 and abs(float(tf.math.reduce_std(v)) - 1) < 0.02

    @pytest.mark.parametrize("name", ["coupling", "base-additive"])
    def test_conditioning_by_z_changes_the_density(self, name):
        model = variant(name)
        _, _, x, z = self.inputs(model)
        log_prob = model.likelihood(np.stack([z, z + 1])).log_prob(x)
        assert np.all(np.abs(log_prob[0] - log_prob[1]) > 1e-3)


class TestElbo:
    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_bits_per_dim_is_the_formula(self, of_bits, n_bits):
        model = of_bits(n_bits)
        elbo = model.elbo(images_of(model), seed=1)
        nats = sum(np.asarray(part, "float64") for part in (elbo.reconstruction, elbo.kl, elbo.dequantization))
        # -log P(image) >= -nats; the image is a cell of sides 2/n_bins in each of 192 directions.
        discrete = nats - 192 * math.log(2 / 2**n_bits)
        np.testing.assert_allclose(elbo.bits_per_dim, discrete / (192 * math.log(2)), rtol=1e-5)
        np.testing.assert_allclose(model.nats_to_bits_per_dim(nats), discrete / (192 * math.log(2)), rtol=1e-12)

    @pytest.mark.parametrize("name", ["coupling", "none", "base", "normal"])
    def test_parts_have_one_float32_number_per_image(self, name):
        model = variant(name)
        elbo = model.elbo(images_of(model, 5), seed=1)
        assert all(part.shape == (5,) and part.dtype == tf.float32 for part in elbo)
        assert np.all(elbo.dequantization == 0)
        assert np.all(elbo.kl == 0) == (name == "none")

    @pytest.mark.parametrize("name", ["coupling", "additive", "lu", "normal"])
    def test_kl_is_the_difference_of_two_log_densities(self, name):
        model, noise = variant(name), np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
        images = images_of(model)
        posterior = model.posterior(images)
        z = posterior.mean() + posterior.stddev() * noise
        kl = model.elbo_from_noise(images, noise, np.zeros(images.shape, "f4")).kl
        np.testing.assert_allclose(kl, posterior.log_prob(z) - model.prior.log_prob(z), rtol=1e-3, atol=1e-4)

    def test_kl_under_a_normal_prior_is_the_known_one_on_average(self):
        model, count = variant("normal"), 4000
        images = np.repeat(images_of(model, 1), count, 0)
        kl = model.elbo(images, seed=1).kl.numpy()
        posterior = tfd.MultivariateNormalDiag(*(f(model.posterior(images[:1])) for f in (_mean, _stddev)))
        exact = posterior.kl_divergence(tfd.MultivariateNormalDiag(tf.zeros(4), tf.ones(4))).numpy()[0]
        assert abs(kl.mean() - exact) < 5 * kl.std() / math.sqrt(count)

    def test_seeds_repeat_and_differ(self, model):
        images = images_of(model)
        once, again, other = (model.elbo(images, seed).bits_per_dim for seed in (1, 1, 2))
        equal(once, again)
        assert np.all(once != other)
        equal(model.elbo(images, tf.constant([0, 1])).bits_per_dim, once)
        assert np.all(model.elbo(images).bits_per_dim != model.elbo(images).bits_per_dim)

    def test_noise_of_z_and_of_pixels_are_independent_draws_for_each_image(self, model):
        elbo = model.elbo(np.repeat(images_of(model, 1), 3, 0), seed=1)
        assert len(set(elbo.kl.numpy())) == len(set(elbo.reconstruction.numpy())) == 3

    def test_training_mode_normalises_by_the_batch(self):
        model = fresh(SMALL)
        images, noise = images_of(model), np.zeros((3, 4), "f4")
        before = weights(model)
        inference = model.elbo_from_noise(images, noise, np.zeros(images.shape, "f4"))
        assert same_weights(model, before)
        training = model.elbo_from_noise(images, noise, np.zeros(images.shape, "f4"), training=True)
        assert np.any(training.kl != inference.kl)
        changed = {name.rpartition("/")[2] for name, value in weights(model).items() if np.any(value != before[name])}
        assert changed == {"moving_mean", "moving_variance"}


def _mean(distribution):
    return distribution.mean()


def _stddev(distribution):
    return distribution.stddev()


class TestBaseConditioning:
    """The paper's Table 3 baseline: z only whitens the code of the unconditional flow."""

    def test_v_is_the_plain_flows_code_whitened_by_z(self):
        model = variant("base-additive")
        plain = DecoupledModel(dataclasses.replace(model.config, conditioning="none"))
        values = weights(model)
        for key, variable in plain.named_variables().items():
            variable.assign(values[key])
        images = images_of(model)
        z, v = model.encode(images)
        h = plain.encode(images).v
        zero = tf.zeros_like(h)
        mean = model.flow.whitening.inverse_and_log_det(zero, z)[0]
        scale = model.flow.whitening.inverse_and_log_det(zero + 1, z)[0] - mean
        np.testing.assert_allclose(v, (h - mean) / scale, rtol=1e-3, atol=1e-4)
        # p(x|z) is the Gaussian of that mean and scale, seen through the plain flow.
        x = 2 * (images + np.float32(0.5)) / 256 - 1
        gaussian = tf.reduce_sum(tfd.Normal(mean, scale).log_prob(h), [1, 2, 3])
        expected = gaussian + plain.flow.forward_and_log_det(x)[1]
        np.testing.assert_allclose(model.likelihood(z).log_prob(x), expected, rtol=1e-3)

    def test_couplings_do_not_see_z(self):
        names = variant("base").named_variables()
        assert not any("condition_kernel" in name for name in names)
        assert any(name.startswith("flow/whitening/") for name in names)


class TestWithoutZ:
    def test_codes_have_no_z_and_decode_takes_none(self):
        model = variant("none")
        images = images_of(model)
        codes = model.encode(images)
        assert codes.z is None and model.encoder is None and model.prior_flow is None
        equal(model.decode(None, codes.v), images)

    def test_likelihood_of_none_is_the_density_of_images(self):
        model = variant("none")
        likelihood = model.likelihood(None)
        assert likelihood.batch_shape == [] and likelihood.event_shape == (4, 4, 3)
        samples = likelihood.sample([2, 3], seed=1)
        assert likelihood.log_prob(samples).shape == (2, 3)
        assert model.likelihood().log_prob(samples[0, 0]).shape == ()

    def test_sampling_and_interpolation_work(self):
        model = variant("none")
        a, b = images_of(model, 2, 1), images_of(model, 2, 2)
        assert model.sample(3, seed=1).shape == (3, 4, 4, 3)
        grid = model.interpolate(a, b, [0, 1], [0, 1])
        equal(grid[:, 0], grid[:, 1])
        equal(grid[:, 0, 0], a)
        equal(grid[:, 0, 1], b)

    @pytest.mark.parametrize(
        "call",
        [
            lambda model, images: model.posterior(images),
            lambda model, images: model.prior,
            lambda model, images: model.switch(images, images),
            lambda model, images: model.likelihood(np.zeros((3, 4))),
            lambda model, images: model.decode(np.zeros((3, 4)), np.zeros(images.shape)),
        ],
        ids=["posterior", "prior", "switch", "likelihood of z", "decode of z"],
    )
    def test_what_needs_z_is_refused_in_one_line(self, call):
        model = variant("none")
        assert "no z" in one_line(UserError, lambda: call(model, images_of(model)))


class TestSample:
    def test_shape_and_type(self, model):
        images = model.sample(5, seed=1)
        assert images.shape == (5, 4, 4, 3) and images.dtype == tf.uint8
        assert len(np.unique(images)) > 20
        assert model.sample(0).shape == (0, 4, 4, 3)

    def test_seed_repeats_and_none_does_not(self, model):
        equal(model.sample(3, seed=1), model.sample(3, seed=1))
        equal(model.sample(3, seed=1), model.sample(3, seed=tf.constant([0, 1])))
        assert np.any(model.sample(3, seed=1) != model.sample(3, seed=2))
        assert np.any(model.sample(3) != model.sample(3))

    def test_temperature_scales_v_and_leaves_z(self, model):
        z = model.z_from_noise(randomness.normal([4, 4], randomness.fold(7, "z")))
        v = randomness.normal([4, 4, 4, 3], randomness.fold(7, "v"))
        for temperature in (0.0, 0.7, 1.0):
            equal(model.sample(4, temperature, seed=7), model.decode(z, temperature * v))
        assert np.any(model.sample(4, 0.7, seed=7) != model.sample(4, 1.0, seed=7))

    def test_result_does_not_depend_on_the_size_of_chunks(self, model, monkeypatch):
        whole = model.sample(10, seed=1)
        monkeypatch.setattr("tfdecouple.model._CHUNK", 3)
        equal(model.sample(10, seed=1), whole)

    def test_a_quantised_model_samples_its_levels(self, of_bits):
        images = of_bits(1).sample(4, seed=1)
        assert set(np.unique(images)) == {0, 128}


class TestSwitchAndInterpolate:
    def test_switch_takes_z_of_one_and_v_of_the_other(self, model):
        a, b = images_of(model, 3, 1), images_of(model, 3, 2)
        ab, ba = model.switch(a, b)
        equal(ab, model.decode(model.encode(a).z, model.encode(b).v))
        equal(ba, model.decode(model.encode(b).z, model.encode(a).v))
        assert np.any(ab != b) and np.any(ba != a)

    def test_switching_an_image_with_itself_changes_nothing(self, model):
        a = images_of(model)
        for image in model.switch(a, a):
            equal(image, a)

    def test_corners_are_the_images_and_their_switches(self, model):
        a, b = images_of(model, 3, 1), images_of(model, 3, 2)
        grid = model.interpolate(a, b, [0, 0.5, 1], [0, 1])
        assert grid.shape == (3, 3, 2, 4, 4, 3) and grid.dtype == tf.uint8
        equal(grid[:, 0, 0], a)
        equal(grid[:, 2, 1], b)
        ab, ba = model.switch(a, b)
        equal(grid[:, 2, 0], ba)  # z of b, v of a
        equal(grid[:, 0, 1], ab)  # z of a, v of b

    def test_places_between_are_between_the_codes(self, model):
        a, b = images_of(model, 2, 1), images_of(model, 2, 2)
        (z_a, v_a), (z_b, v_b) = model.encode(a), model.encode(b)
        grid = model.interpolate(a, b, [0.25, 0.5], [0.75])
        equal(grid[:, 0, 0], model.decode(0.75 * z_a + 0.25 * z_b, 0.25 * v_a + 0.75 * v_b))
        equal(grid[:, 1, 0], model.decode(0.5 * z_a + 0.5 * z_b, 0.25 * v_a + 0.75 * v_b))

    def test_result_does_not_depend_on_the_size_of_chunks(self, model, monkeypatch):
        a, b = images_of(model, 2, 1), images_of(model, 2, 2)
        whole = model.interpolate(a, b, [0, 0.3, 1], [0, 0.6, 1])
        monkeypatch.setattr("tfdecouple.model._CHUNK", 5)
        equal(model.interpolate(a, b, [0, 0.3, 1], [0, 0.6, 1]), whole)

    def test_unequal_numbers_of_images_are_refused(self, model):
        one_line(DataError, lambda: model.interpolate(images_of(model, 2), images_of(model, 3), [0], [0]))

    @pytest.mark.parametrize("counts", [(2, 3), (1, 3)])
    def test_switch_of_unequal_numbers_of_images_is_refused(self, model, counts):
        one_line(DataError, lambda: model.switch(*(images_of(model, count) for count in counts)))


class TestInitialize:
    @pytest.mark.parametrize("name", ["coupling", "none", "additive"])
    def test_every_actnorm_gives_mean_0_and_deviation_1(self, name):
        config = VARIANTS[name]
        model, images = DecoupledModel(config), random_images(32, 4)
        give_effect(model)
        model.initialize(images, seed=3)
        norms = []

        def look(leaf, x, z):
            if isinstance(leaf, ActNorm):
                y = np.reshape(leaf.forward_and_log_det(x)[0], [-1, x.shape[-1]])
                np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
                np.testing.assert_allclose(y.std(0, ddof=1), 1, atol=1e-3)
                norms.append(leaf)

        z = None
        if config.has_latent:
            z = randomness.normal([32, 4], randomness.fold(3, "initialize"))
            walk_with(model.prior_flow, z, None, look)
        walk_with(model.flow, 2 * images.astype("float32") / 256 - 1, z, look)
        assert len(norms) == sum(name.endswith("/log_scale") for name in model.named_variables())

    @pytest.mark.parametrize("name", ["coupling", "none", "base", "additive"])
    def test_couplings_start_as_the_identity(self, name):
        model = DecoupledModel(VARIANTS[name])
        give_effect(model)
        model.initialize(random_images(32, 4))
        changes = []

        def look(leaf, x, z):
            y, log_det = leaf.forward_and_log_det(x, z)
            if isinstance(leaf, Coupling):
                np.testing.assert_allclose(y, x, atol=1e-6)
                np.testing.assert_allclose(log_det, np.zeros(2), atol=1e-5)
            else:
                changes.append(log_det)

        x, z = 2 * random_images(2, 4).astype("float32") / 256 - 1, np.ones((2, 4), "float32")
        v = walk_with(model.flow, x, z, look)
        total, log_det = model.flow.forward_and_log_det(x, z)
        np.testing.assert_allclose(total, v, atol=1e-5)
        np.testing.assert_allclose(log_det, sum(changes), rtol=1e-5)
        # Without an effect of the couplings or the whitening, z does nothing yet.
        np.testing.assert_allclose(model.flow.forward_and_log_det(x, z + 1)[0], total, atol=1e-5)

    @pytest.mark.parametrize("training", [False, True])
    def test_posterior_starts_exactly_standard(self, training):
        model = DecoupledModel(SMALL)
        give_effect(model)
        model.initialize(random_images(32, 4))
        for part in model.encoder(2 * random_images(4, 4, 7).astype("float32") / 256 - 1, training=training):
            equal(part, np.zeros((4, 4)))
        assert np.all(model.posterior(random_images(4, 4)).stddev() == 1)

    def test_it_repeats_and_depends_on_the_images(self):
        model = DecoupledModel(SMALL)
        model.initialize(random_images(16, 4))
        first = weights(model)
        model.initialize(random_images(16, 4), force=True)
        assert same_weights(model, first)
        model.initialize(random_images(16, 4, seed=9), force=True)
        assert not same_weights(model, first)

    @pytest.mark.parametrize("value", [0, 255])
    def test_constant_images_give_finite_weights_and_an_exact_model(self, value):
        model, images = DecoupledModel(SMALL), np.full((4, 4, 4, 3), value, "uint8")
        model.initialize(images)
        assert all(np.all(np.isfinite(array)) for array in weights(model).values())
        both = np.concatenate([images, random_images(2, 4)])
        equal(model.decode(*model.encode(both, verify=True)), both)

    def test_one_image_is_enough(self):
        model, image = DecoupledModel(SMALL), random_images(1, 4)
        model.initialize(image)
        assert all(np.all(np.isfinite(array)) for array in weights(model).values())
        equal(model.decode(*model.encode(image, verify=True)), image)


USES = {
    "encode": lambda model, images: model.encode(images),
    "call": lambda model, images: model(images),
    "decode": lambda model, images: model.decode(np.zeros((3, 4)), np.zeros(images.shape)),
    "sample": lambda model, images: model.sample(2),
    "elbo": lambda model, images: model.elbo(images),
    "posterior": lambda model, images: model.posterior(images).mean(),
    "likelihood": lambda model, images: model.likelihood(np.zeros((3, 4))).log_prob(np.zeros(images.shape, "f4")),
    "switch": lambda model, images: model.switch(images, images),
    "interpolate": lambda model, images: model.interpolate(images, images, [0], [0]),
}


class TestUninitialised:
    @pytest.mark.parametrize("use", USES)
    def test_use_is_refused_and_changes_nothing(self, use):
        model = blank()
        before = weights(model)
        with pytest.raises(NotInitializedError) as caught:
            USES[use](model, images_of(model))
        # Keras adds lines of its own where one calls the model itself.
        assert "initialize" in str(caught.value) and ("\n" not in str(caught.value) or use == "call")
        assert same_weights(model, before) and not before["initialized"]

    def test_it_is_refused_in_a_traced_function_too(self):
        model = blank()
        with pytest.raises(NotInitializedError):
            tf.function(model.encode)(tf.constant(images_of(model)))

    @pytest.mark.parametrize("use", USES)
    def test_use_of_an_initialised_model_changes_no_weight(self, model, use):
        before = weights(model)
        USES[use](model, images_of(model))
        assert same_weights(model, before) and before["initialized"]


@functools.cache
def blank():
    return DecoupledModel(SMALL)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("images", "word"),
        [
            (np.zeros((2, 4, 4, 3), "float32"), "float32"),
            (np.zeros((2, 4, 4, 3), "int32"), "int32"),
            (np.zeros((2, 4, 4, 3), "uint8").tolist(), "int32"),
            (np.zeros((4, 4, 3), "uint8"), "(4, 4, 3)"),
            (np.zeros((2, 8, 8, 3), "uint8"), "(2, 8, 8, 3)"),
            (np.zeros((2, 4, 4, 1), "uint8"), "(2, 4, 4, 1)"),
            (np.zeros((2, 4, 8, 3), "uint8"), "(2, 4, 8, 3)"),
        ],
    )
    @pytest.mark.parametrize("method", ["encode", "elbo", "posterior", "initialize", "diagnose"])
    def test_images_of_another_type_or_shape_are_refused(self, model, images, word, method):
        assert word in one_line(DataError, lambda: getattr(model, method)(images))

    def test_missing_or_misshapen_z_is_refused(self, model):
        v = np.zeros((2, 4, 4, 3))
        assert "needs z" in one_line(UserError, lambda: model.decode(None, v))
        assert "needs z" in one_line(UserError, lambda: model.likelihood(None))
        assert "(2, 5)" in one_line(UserError, lambda: model.decode(np.zeros((2, 5)), v))
        assert "(2, 5)" in one_line(UserError, lambda: model.likelihood(np.zeros((2, 5))))

    @pytest.mark.parametrize("shape", [(4, 4, 3), (2, 8, 8, 3), (2, 4, 4, 1)])
    def test_misshapen_v_is_refused(self, model, shape):
        assert str(shape) in one_line(UserError, lambda: model.decode(np.zeros((2, 4)), np.zeros(shape)))

    @pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 1, 4)])
    def test_z_that_does_not_go_with_v_is_refused(self, model, shape):
        one_line(UserError, lambda: model.decode(np.zeros(shape), np.zeros((2, 4, 4, 3))))

    def test_no_images_give_no_codes(self, model):
        codes = model.encode(np.zeros((0, 4, 4, 3), "uint8"))
        assert codes.z.shape == (0, 4) and codes.v.shape == (0, 4, 4, 3)


# Every option off its default but those that exclude each other.
ODD = ModelConfig(
    image_size=8,
    n_bits=6,
    latent_dim=5,
    conditioning="base",
    steps=(1, (1,), 1),
    hidden_channels=(3, 4, 5),
    factors=(3,),
    transform="additive",
    multiscale_transform="additive",
    alpha=0.5,
    linear="lu",
    encoder_channels=(3, 4),
    encoder_out_channels=3,
    prior_steps=1,
    prior_hidden=5,
    prior_transform="additive",
    prior_alpha=0.25,
    base_hidden=6,
)


class TestSaving:
    @pytest.mark.parametrize("config", [ODD, VARIANTS["none"]])
    def test_keras_file_keeps_config_weights_and_flag(self, config, tmp_path):
        model = fresh(config)
        path = tmp_path / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path)
        assert type(again) is DecoupledModel and again.config == config
        # Equal, and of the same types: tuples are not lists.
        assert repr(again.config) == repr(config)
        assert list(weights(again)) == list(weights(model)) and same_weights(again, weights(model))
        again.require_initialized()
        images = images_of(model)
        for ours, theirs in zip(tf.nest.flatten(model(images)), tf.nest.flatten(again(images)), strict=True):
            equal(ours, theirs)
        equal(again.decode(*again.encode(images)), quantised(images, config.n_bits))
        equal(model.sample(2, seed=1), again.sample(2, seed=1))

    def test_a_model_that_was_not_initialised_stays_so(self, tmp_path):
        model = DecoupledModel(SMALL)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert same_weights(again, weights(model))
        with pytest.raises(NotInitializedError):
            again.sample(1)

    def test_the_odd_config_is_off_the_defaults(self):
        same = {f.name for f in dataclasses.fields(ODD) if getattr(ODD, f.name) == getattr(ModelConfig(), f.name)}
        assert same == {"prior"}  # "normal" would leave the other options of the prior without effect

    def test_config_is_plain_json(self):
        values = json.loads(json.dumps(blank().get_config()))
        assert DecoupledModel.from_config(values).config == SMALL

    def test_weights_file_fits_another_model_of_the_config(self, model, tmp_path):
        other = DecoupledModel(SMALL)
        model.save_weights(tmp_path / "model.weights.h5")
        other.load_weights(tmp_path / "model.weights.h5")
        assert same_weights(other, weights(model))

    def test_names_of_weights_depend_on_the_config_alone(self):
        names = list(blank().named_variables())
        assert list(DecoupledModel(SMALL, name="other").named_variables()) == names
        assert len(set(names)) == len(names) == len(blank().variables)
        assert "flow/level_0_part_0_step_0/actnorm_1/bias" in names and "initialized" in names


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


class TestPrecision:
    @pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"], indirect=True)
    def test_model_computes_in_float32_under_any_policy(self, policy):
        model = fresh(SMALL)
        images = images_of(model)
        codes = model.encode(images, verify=True)
        equal(model.decode(*codes), images)
        assert {array.dtype for array in (*codes, *model.elbo(images, seed=1))} == {tf.float32}
        assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
        # To the last bit what the same weights give under the ordinary policy.
        keras.config.set_dtype_policy("float32")
        for ours, theirs in zip(codes, model.encode(images), strict=True):
            equal(ours, theirs)

    def test_half_precision_of_the_nets_is_rough_but_near(self, model):
        images, noise = images_of(model), np.zeros((3, 4), "f4")
        exact = model.elbo_from_noise(images, noise, np.zeros(images.shape, "f4"))
        with net_precision("bfloat16"):
            rough = model.elbo_from_noise(images, noise, np.zeros(images.shape, "f4"))
        assert all(part.dtype == tf.float32 for part in rough)
        assert np.all(rough.reconstruction != exact.reconstruction)
        np.testing.assert_allclose(rough.bits_per_dim, exact.bits_per_dim, atol=0.05)
        # The encoder and the prior are not part of it.
        equal(rough.kl, exact.kl)

    def test_encode_and_decode_around_it_stay_exact(self, model):
        images = images_of(model)
        codes = model.encode(images)
        with net_precision("bfloat16"):
            rough = model.encode(images)
        assert np.any(rough.v != codes.v)
        equal(model.encode(images).v, codes.v)
        equal(model.decode(*codes), images)


class TestDiagnose:
    def test_a_fresh_model_is_healthy(self):
        model = DecoupledModel(SMALL)
        model.initialize(random_images(16, 4))
        signs = model.diagnose(random_images(4, 4))
        assert signs["smallest_scale"] == pytest.approx(1) and signs["worst_condition"] == pytest.approx(1, abs=1e-4)

    @pytest.mark.parametrize("network", ["flow", "prior_flow"])
    def test_it_sees_the_smallest_scale_and_the_worst_matrix(self, network):
        model = DecoupledModel(dataclasses.replace(SMALL, alpha=1.0, prior_alpha=1.0))
        model.initialize(random_images(16, 4))
        step = model.flow.levels[0][0].steps[0] if network == "flow" else model.prior_flow.sequence[0]
        bias = step.sequence[2].net.last.bias
        bias.assign(np.where(np.arange(bias.shape[0]) >= bias.shape[0] // 2, -10.0, 0.0))
        kernel = step.sequence[1].kernel
        kernel.assign(np.diag([50.0] + [1.0] * (kernel.shape[0] - 1)))
        signs = model.diagnose(random_images(4, 4))
        assert signs["smallest_scale"] == pytest.approx(2 / (1 + math.exp(10)), rel=1e-4)
        assert signs["worst_condition"] == pytest.approx(50, rel=1e-4)
