"""Tests of variational dequantisation: its flow in float64, the network to its map, its start, and its place."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import get_case, list_layers
from helpers.models import give_effect
from helpers.variants import VARIANTS, images_of, variant

from tfdecouple import randomness
from tfdecouple.layers import Coupling, LocalConvNet
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode

pytestmark = pytest.mark.usefixtures("eager")

TWO_LEVELS = dataclasses.replace(VARIANTS["dequantization"], dequantization_map_channels=2)


def test_map_conditions_each_coupling_and_reaches_each_pixel():
    layer, noise, local = get_case("dequantizing-flow")
    nets = [each for each in list_layers(layer) if isinstance(each, LocalConvNet)]
    assert len(nets) == sum(isinstance(each, Coupling) for each in list_layers(layer)) == 13
    # The map is squeezed with the image: four times the channels a level.
    assert sorted({net.condition_size for net in nets}) == [3, 12, 48]
    u = layer.forward_and_log_det(noise, local)[0]
    corner = local + 0.5 * tf.one_hot(0, 4, dtype="float64")[None, :, None, None]
    assert np.all(np.abs(layer.forward_and_log_det(noise, corner)[0] - u).max((0, 2, 3)) > 0)


@pytest.mark.parametrize("training", [False, True])
def test_dequantizer_computes_equal_noise_in_shards(training):
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


def test_dequantizer_starts_near_the_uniform_distribution():
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


def test_learned_u_depends_on_noise_and_image_and_is_the_third_term():
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
    u, log_q = model.dequantize(images[:0], noise[:0])
    assert u.shape == (0, 4, 4, 3) and log_q.shape == (0,)
