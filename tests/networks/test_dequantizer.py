"""Tests of variational dequantisation: its flow in float64, the network to its map, its start, and its place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import THREE_LEVELS, list_layers
from helpers.models import give_effect
from helpers.variants import VARIANTS, images_of, variant

from tfdecouple import randomness
from tfdecouple.errors import UserError
from tfdecouple.layers import Coupling, LocalConvNet
from tfdecouple.networks.dequantizer import Dequantizer, DequantizingFlow, LocalResNet
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode

pytestmark = pytest.mark.usefixtures("eager")

TWO_LEVELS = dataclasses.replace(VARIANTS["dequantization"], dequantization_map_channels=2)


def flow_of(config):
    """A flow in float64 whose every weight has an effect, with noise and maps for it."""
    layer = DequantizingFlow(config, dtype="float64")
    layer.build()
    give_effect(layer, scale=0.2)
    rng = np.random.default_rng(0)
    noise = tf.constant(rng.standard_normal((2, *config.image_shape)))
    local = tf.constant(rng.standard_normal((2, 4, 4, config.dequantization_map_channels)))
    return layer, noise, local


class TestFlow:
    def test_map_conditions_each_coupling_and_reaches_each_pixel(self):
        layer, noise, local = flow_of(THREE_LEVELS)
        nets = [one for one in list_layers(layer) if isinstance(one, LocalConvNet)]
        assert len(nets) == sum(isinstance(one, Coupling) for one in list_layers(layer)) == 13
        # Squeezed beside the image: four times the channels a level.
        assert sorted({net.condition_size for net in nets}) == [3, 12, 48]
        u = layer.forward_and_log_det(noise, local)[0]
        corner = local + 0.5 * tf.one_hot(0, 4, dtype="float64")[None, :, None, None]
        changed = np.abs(np.asarray(layer.forward_and_log_det(noise, corner)[0] - u)).max((0, 2, 3))
        assert np.all(changed > 0)

    @pytest.mark.parametrize(
        ("local", "words"),
        [
            (None, "conditional: pass condition=a map of shape"),
            (np.zeros((2, 2)), "must be .batch, height, width, channels. with the same batch, height and width"),
            (np.zeros((2, 2, 4, 2)), "with the same batch, height and width"),
            (np.zeros((3, 4, 4, 2)), "with the same batch, height and width"),
            (np.zeros((2, 4, 4, 3)), "it needs .batch, height, width, 2."),
        ],
        ids=["none", "vector", "size", "batch", "channels"],
    )
    def test_a_map_that_does_not_fit_is_refused(self, local, words):
        layer, noise, _ = flow_of(TWO_LEVELS)
        with pytest.raises(UserError, match=words) as error:
            layer.forward_and_log_det(noise, local)
        assert "\n" not in str(error.value)


def test_map_network_halves_and_then_doubles_the_sides():
    network = LocalResNet((3, 5), 2)
    network.build((None, 8, 8, 3))
    ups = [block for block in network.blocks if block.transposed]
    assert [(block.planes, block.strides) for block in ups] == [(5, 1), (3, 2), (3, 1), (2, 2)]
    assert network(np.zeros((2, 8, 8, 3), "float32")).shape == (2, 8, 8, 2)


class TestDequantizer:
    @pytest.mark.parametrize("training", [False, True])
    def test_dequantizer_gives_equal_results_in_shards(self, training):
        layer = Dequantizer(TWO_LEVELS)
        layer.build()
        give_effect(layer)
        rng = np.random.default_rng(0)
        x, noise = (rng.standard_normal((3, 4, 4, 3)).astype("float32") for _ in range(2))
        whole = layer(x, noise, training=training)
        Execution(layer.encoder)
        Execution(layer.flow)
        with RunMode(shards=2).apply():
            parts = layer(x, noise, training=training)
        for ours, theirs in zip(parts, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_dequantizer_starts_near_the_uniform_distribution(self):
        layer = Dequantizer(TWO_LEVELS)
        layer.build()
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((500, 4, 4, 3)).astype("float32")
        layer.flow.initialize_from_noise(randomness.make_seed(0))
        u, log_det = layer(np.zeros((500, 4, 4, 3), "float32"), noise)
        log_q = -0.5 * (np.square(noise) + np.log(2 * np.pi)).sum((1, 2, 3)) - np.asarray(log_det)
        # By quadrature: 0.00951 nats a number; noise of standard deviation 1 would give 0.193.
        assert 0.0095 - 0.003 < log_q.mean() / 48 < 0.0095 + 0.003
        assert abs(np.mean(u) - 0.5) < 0.01 and abs(np.var(u) - 1 / 12) < 0.005


class TestVerb:
    def test_learned_u_depends_on_noise_and_image_and_is_the_third_term(self):
        model, rng = variant("dequantization"), np.random.default_rng(0)
        images, noise = images_of(model), rng.standard_normal((3, 4, 4, 3)).astype("float32")
        u, log_q = model.dequantize(images, noise)
        assert np.all((u > 0) & (u < 1)) and np.ptp(log_q) > 0
        other, _ = model.dequantize(255 - images, noise)
        assert np.max(np.abs(other - u)) > 1e-3
        z_noise = rng.standard_normal((3, 4)).astype("float32")
        elbo = model.elbo_from_noise(images, z_noise, noise)
        np.testing.assert_allclose(elbo.dequantization, log_q, rtol=1e-5)
        posterior = model.posterior(images)
        z = posterior.mean() + posterior.stddev() * z_noise
        x = 2 * (images.astype("float32") + u) / 256 - 1
        np.testing.assert_allclose(elbo.reconstruction, -model.likelihood(z).log_prob(x), rtol=1e-4)

    def test_dequantize_of_no_images_returns_empty_arrays(self):
        model = variant("dequantization")
        u, log_q = model.dequantize(np.zeros((0, 4, 4, 3), "uint8"), np.zeros((0, 4, 4, 3)))
        assert u.shape == (0, 4, 4, 3) and log_q.shape == (0,)
