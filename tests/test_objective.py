"""Tests of the negative evidence lower bound: its terms, its units and its gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY, every_weight_has_a_gradient, random_images
from helpers.variants import (
    SMALLEST,
    VARIANTS,
    equal,
    fresh,
    images_of,
    same_weights,
    variant,
    weights,
)
from tensorflow_probability import distributions as tfd

pytestmark = pytest.mark.usefixtures("eager")


class TestGradients:
    @pytest.mark.parametrize("name", ["none", "base", "additive", "lu", "normal"])
    def test_every_weight_receives_a_gradient(self, name):
        every_weight_learns(fresh(VARIANTS[name]))

    def test_every_weight_receives_a_gradient_through_the_traced_functions(self, traced):
        every_weight_learns(fresh(TINY))

    def test_noise_of_z_reaches_the_posterior(self):
        """The draw of z is reparametrised: both mean and log-variance learn from the reconstruction alone."""
        model, images = fresh(SMALLEST), random_images(4, 4)
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

    def test_seeds_repeat_and_differ(self, small_model):
        images = images_of(small_model)
        once, again, other = (small_model.elbo(images, seed).bits_per_dim for seed in (1, 1, 2))
        equal(once, again)
        assert np.all(once != other)
        equal(small_model.elbo(images, tf.constant([0, 1])).bits_per_dim, once)
        assert np.all(small_model.elbo(images).bits_per_dim != small_model.elbo(images).bits_per_dim)

    def test_noise_of_z_and_of_pixels_are_independent_draws_for_each_image(self, small_model):
        elbo = small_model.elbo(np.repeat(images_of(small_model, 1), 3, 0), seed=1)
        assert len(set(elbo.kl.numpy())) == len(set(elbo.reconstruction.numpy())) == 3

    def test_training_mode_normalises_by_the_batch(self):
        model = fresh(SMALLEST)
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
