"""What changes from update to update: the learning rate, the weight of the KL term, and the noise on images."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SMALL, random_images
from helpers.trainers import BATCH, augmented

from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.training.schedule import add_noise, kl_weight, learning_rate, noise_deviation
from tfdecouple.training.state import TrainingState


@pytest.mark.parametrize("warmup", [0, 1, 50])
def test_rises_linearly_and_then_decays_exponentially(warmup):
    config = TrainingConfig(learning_rate=1e-3, warmup_steps=warmup, decay_rate=0.999997)
    for update in (0, 1, 49, 50, 51, 10**6):
        rising = np.float64(1e-7) + (np.float64(1e-3) - 1e-7) * update / max(warmup, 1)
        falling = np.float64(1e-3) * np.float64(0.999997) ** (update - warmup)
        rate = learning_rate(config, tf.constant(update, tf.int64))
        assert rate.dtype == tf.float32
        np.testing.assert_allclose(rate, rising if update < warmup else falling, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "expected"), [(0, [0.4, 0.4, 0.4, 0.4]), (4, [0.0, 0.1, 0.4, 0.4])])
def test_weight_of_the_kl_rises_linearly_and_stays(warmup, expected):
    config = TrainingConfig(kl_weight=0.4, kl_warmup_steps=warmup)
    weights = [kl_weight(config, tf.constant(update, tf.int64)) for update in (0, 1, 5, 100)]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_noise_falls_along_a_cosine_and_is_gone():
    config = TrainingConfig(noise=32, noise_steps=8)
    found = [noise_deviation(config, tf.constant(update, tf.int64)) for update in (0, 2, 4, 6, 8, 100)]
    expected = [32, 16 + 16 * np.sqrt(0.5), 16, 16 - 16 * np.sqrt(0.5), 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[4] == found[5] == 0


def test_images_with_noise_are_images():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    normal = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    noisy = add_noise(images, tf.constant(20.0), normal).numpy()
    assert noisy.dtype == np.uint8
    np.testing.assert_array_equal(noisy, np.clip(np.round(images + np.float32(20) * normal), 0, 255))
    np.testing.assert_array_equal(add_noise(images, tf.constant(0.0), normal), images)


@pytest.fixture(scope="module")
def state():
    return TrainingState(Config(model=SMALL))


@pytest.mark.usefixtures("eager")
def test_noise_is_of_the_update_and_of_the_place_in_the_batch(state):
    images, step = tf.constant(random_images(BATCH)), 3

    def seen(images, **options):
        return augmented(state, images, step, noise=32, noise_steps=4, **options).numpy()

    noisy = seen(images)
    seed = randomness.derive_seed(TrainingConfig().seed, "step", step, "images")
    np.testing.assert_array_equal(noisy, add_noise(images, 32.0, randomness.draw_normal(images.shape, seed)))
    np.testing.assert_array_equal(seen(images[4:], number=1, micro_batches=2), noisy[4:])
    state.updates.assign(2)
    assert 0 < np.abs(seen(images).astype(int) - images).mean() < np.abs(noisy.astype(int) - images).mean()
    state.updates.assign(4)
    np.testing.assert_array_equal(seen(images), images)
