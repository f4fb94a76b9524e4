"""Tests of the negative evidence lower bound: its terms, its units and its gradients."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import all_layers
from helpers.models import every_weight_has_a_gradient, random_images
from helpers.variants import (
    SMALLEST,
    STAGES,
    VARIANTS,
    fresh,
    images_of,
    variant,
)

from tfdecouple import randomness
from tfdecouple.layers import ActNorm
from tfdecouple.model import DecoupledModel
from tfdecouple.model.objective import negative_elbo
from tfdecouple.model.quantizer import Quantizer

pytestmark = pytest.mark.usefixtures("eager")


class TestGradients:
    @pytest.mark.parametrize("name", ["base", "additive", "dequantization"])
    def test_every_weight_receives_a_gradient(self, name):
        every_weight_learns(fresh(VARIANTS[name]))

    @pytest.mark.slow
    def test_every_weight_receives_a_gradient_through_the_traced_functions(self, traced):
        every_weight_learns(fresh(STAGES))

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

    @pytest.mark.parametrize("name", ["coupling", "additive", "normal"])
    def test_kl_is_the_difference_of_two_log_densities(self, name):
        model, noise = variant(name), np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
        images = images_of(model)
        posterior = model.posterior(images)
        z = posterior.mean() + posterior.stddev() * noise
        kl = model.elbo_from_noise(images, noise, np.zeros(images.shape, "f4")).kl
        np.testing.assert_allclose(kl, posterior.log_prob(z) - model.prior.log_prob(z), rtol=1e-3, atol=1e-4)


class Humps:
    """All levels alike, and within each bin the density of Beta(2, 2): 6 u (1 - u), in the place of a flow."""

    def __init__(self, quantizer):
        self.quantizer = quantizer

    def forward_and_log_det(self, x, z):
        places = self.quantizer.places(x)
        u = places - tf.floor(places)
        log_p = tf.reduce_sum(tf.math.log(6 * u * (1 - u) / 2), [1, 2, 3])
        # Of v = 0 the log density is known.
        return tf.zeros_like(x), log_p + 24 * math.log(2 * math.pi)


class TestDequantization:
    def test_its_density_counts_once_and_with_the_right_sign(self):
        """The sigmoid of noise of deviation 1.12 is nearly Beta(2, 2): the bound is tight but for 0.0034 nats a number.

        By quadrature; log q(u|x) itself is 0.1314 nats a number, by which the bound would be off without it.
        """
        quantizer, k = Quantizer(2), 2000
        dequantizer = DecoupledModel(VARIANTS["dequantization"]).dequantizer
        rng = np.random.default_rng(0)
        dequantizer.flow.start(randomness.make_seed(0))
        for layer in (layer for layer in all_layers(dequantizer.flow) if isinstance(layer, ActNorm)):
            layer.bias.assign(tf.zeros_like(layer.bias))
        first = dequantizer.flow.levels[0][0].steps[0].sequence[0]
        first.log_scale.assign(first.log_scale + math.log(1.12 / 1.75))
        networks = types.SimpleNamespace(
            quantizer=quantizer, flow=Humps(quantizer), encoder=None, code_net=None, dequantizer=dequantizer
        )
        elbo, _ = negative_elbo(
            networks,
            tf.constant(rng.integers(0, 4, (k, 4, 4, 3)), tf.float32),
            tf.zeros([k, 0]),
            rng.standard_normal((k, 4, 4, 3)).astype("float32"),
        )
        # Every level has the probability 1/4.
        bits = 2 + 0.0034030 / math.log(2)
        assert np.mean(elbo.bits_per_dim) == pytest.approx(bits, abs=0.002)
        assert np.mean(elbo.dequantization) == pytest.approx(48 * 0.131447, abs=0.15)
