"""The noise on the images of a step."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SMALL, random_images
from helpers.trainers import BATCH, augmented

from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.training.schedule import with_noise
from tfdecouple.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture(scope="module")
def state():
    return TrainingState(Config(model=SMALL))


def test_noise_is_of_the_update_and_of_the_place_in_the_batch(state):
    images, step = tf.constant(random_images(BATCH)), 3

    def seen(images, **options):
        return augmented(state, images, step, noise=32, noise_steps=4, **options).numpy()

    noisy = seen(images)
    seed = randomness.fold(TrainingConfig().seed, "step", step, "images")
    np.testing.assert_array_equal(noisy, with_noise(images, 32.0, randomness.normal(images.shape, seed)))
    np.testing.assert_array_equal(seen(images[4:], number=1, micro_batches=2), noisy[4:])
    state.updates.assign(2)
    assert 0 < np.abs(seen(images).astype(int) - images).mean() < np.abs(noisy.astype(int) - images).mean()
    state.updates.assign(4)
    np.testing.assert_array_equal(seen(images), images)
