"""What options of training do to a step: free bits, noise on the images, Adamax and the encoder's own rate."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SMALL, give_effect, random_images
from helpers.trainers import BATCH, drawn

from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.training.schedule import with_noise
from tfdecouple.training.state import TrainingState
from tfdecouple.training.step import TrainStep
from tfdecouple.training.strategy import make_strategy

pytestmark = pytest.mark.usefixtures("eager")


class Taken:
    """Some steps of a tiny model, always from the same start on the same images, and what they made of it."""

    def __init__(self, steps=1, devices=1, **training):
        options = {"batch_size": BATCH, "learning_rate": 0.01, "warmup_steps": 0, "ema_decay": 0.9, **training}
        config = Config(model=SMALL, training=TrainingConfig(**options))
        strategy = make_strategy(devices)
        keras.utils.set_random_seed(1)
        with strategy.scope():
            state = TrainingState(config)
        state.model.initialize(random_images(16, seed=9), seed=0)
        give_effect(state.model)
        state.optimizer.start_averages()
        self.start = {name: variable.numpy() for name, variable in state.trainable.items()}
        take, self.results = TrainStep(config, state, strategy), []
        for step in range(steps):
            images = tf.data.Dataset.from_tensor_slices(random_images(BATCH, seed=step))
            batches = images.batch(BATCH // config.training.micro_batches)
            self.results.append(take(list(strategy.experimental_distribute_dataset(batches)), step).read())
        self.weights = {name: variable.numpy() for name, variable in state.trainable.items()}
        self.means = {name: mean.numpy() for name, mean in state.optimizer.means.items()}

    def prior(self):
        """The mean gradients of the prior's weights, which have no other than the KL term's."""
        return [mean for name, mean in self.means.items() if name.startswith("prior_flow/")]


def test_free_bits_have_no_gradient_and_are_reported_all_the_same():
    plain = Taken()
    kl = plain.results[0].kl
    assert kl > 0 and all(mean.any() for mean in plain.prior())
    free = Taken(free_bits=1.1 * kl)
    assert not any(mean.any() for mean in free.prior())
    assert free.results[0][:4] == plain.results[0][:4]
    result, nats = free.results[0], 8 * 8 * 3 * math.log(2)
    assert result.bits_per_dim == pytest.approx((result.reconstruction + result.kl) / nats + 7, rel=1e-5)
    # Above them the gradient is that of the whole term. Each of two devices has half of it.
    costly = Taken(free_bits=0.9 * kl, devices=2)
    for name, mean in plain.means.items():
        np.testing.assert_allclose(costly.means[name], mean, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def state():
    return TrainingState(Config(model=SMALL))


def test_free_bits_are_compared_with_the_mean_over_a_micro_batch(state):
    for micro_batches in (1, 4):
        training = TrainingConfig(batch_size=BATCH, micro_batches=micro_batches, kl_weight=0.25, free_bits=6)
        step = TrainStep(Config(model=SMALL, training=training), state, tf.distribute.get_strategy())
        # A share of the term is a sum over some images through the number of all.
        weights = [float(step._kl_weight(tf.constant(mean / micro_batches))) for mean in (5.9, 6.1)]
        assert weights == [0, 0.25]


def test_noise_is_of_the_update_and_of_the_place_in_the_batch(state):
    images, step = tf.constant(random_images(BATCH)), 3

    def seen(images, **options):
        return drawn(state, images, step, noise=32, noise_steps=4, **options)[0].numpy()

    noisy = seen(images)
    seed = randomness.fold(TrainingConfig().seed, "step", step, "images")
    np.testing.assert_array_equal(noisy, with_noise(images, 32.0, randomness.normal(images.shape, seed)))
    np.testing.assert_array_equal(seen(images[4:], number=1, micro_batches=2), noisy[4:])
    state.updates.assign(2)
    assert 0 < np.abs(seen(images).astype(int) - images).mean() < np.abs(noisy.astype(int) - images).mean()
    state.updates.assign(4)
    np.testing.assert_array_equal(seen(images), images)


def test_adamax_and_a_slow_encoder_take_steps():
    taken = Taken(steps=2, optimizer="adamax", encoder_learning_rate=1e-4)
    assert all(result.applied for result in taken.results)
    moved = {name: np.abs(taken.weights[name] - before).max() for name, before in taken.start.items()}
    largest = {
        encoder: max(value for name, value in moved.items() if name.startswith("encoder/") == encoder)
        for encoder in (True, False)
    }
    # An update of Adamax is at most the rate, but for what rounding adds.
    assert 0 < largest[True] <= 2.1e-4 and 1e-3 < largest[False] <= 0.021
