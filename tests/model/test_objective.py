"""Tests of the negative evidence lower bound: its terms, its units and its gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import assert_gradients_reach_weights, random_images
from helpers.variants import (
    SMALLEST,
    STAGES,
    VARIANTS,
    fresh,
    images_of,
    variant,
)

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("name", ["base", "additive", "dequantization"])
def test_every_weight_of_a_model_receives_a_gradient(name):
    every_weight_learns(fresh(VARIANTS[name]))


@pytest.mark.slow
def test_every_weight_of_a_traced_model_receives_a_gradient(traced):
    every_weight_learns(fresh(STAGES))


def test_reconstruction_alone_gives_mean_and_variance_of_z_a_gradient():
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
    assert_gradients_reach_weights(
        model, lambda: tf.reduce_mean(model.elbo_from_noise(images, z_noise, u_noise, training=True).bits_per_dim)
    )


@pytest.mark.parametrize("n_bits", [8, 5, 1])
def test_bits_per_dim_follow_from_the_terms_in_nats(of_bits, n_bits):
    model = of_bits(n_bits)
    elbo = model.elbo(images_of(model), seed=1)
    nats = sum(np.asarray(part, "float64") for part in (elbo.reconstruction, elbo.kl, elbo.dequantization))
    # -log P(image) >= -nats; the image is a cell of sides 2/n_bins in each of 192 directions.
    discrete = nats - 192 * math.log(2 / 2**n_bits)
    np.testing.assert_allclose(elbo.bits_per_dim, discrete / (192 * math.log(2)), rtol=1e-5)
    np.testing.assert_allclose(model.nats_to_bits_per_dim(nats), discrete / (192 * math.log(2)), rtol=1e-12)


@pytest.mark.parametrize("name", ["coupling", "additive", "normal"])
def test_kl_of_a_bound_is_the_difference_of_two_log_densities(name):
    model, noise = variant(name), np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    images = images_of(model)
    posterior = model.posterior(images)
    z = posterior.mean() + posterior.stddev() * noise
    kl = model.elbo_from_noise(images, noise, np.zeros(images.shape, "f4")).kl
    np.testing.assert_allclose(kl, posterior.log_prob(z) - model.prior.log_prob(z), rtol=1e-3, atol=1e-4)
