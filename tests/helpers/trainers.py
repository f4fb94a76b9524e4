"""A trainer for tests, which starts with the same weights on any count of devices, and comparisons of its results."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from helpers.models import SMALL, give_effect, random_images
from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.model import step_effects
from tfdecouple.training.optimizer import BufferView
from tfdecouple.training.step import TrainingState, TrainStep
from tfdecouple.training.workers import make_strategy

BATCH = 8
GLOW = dataclasses.replace(SMALL, conditioning="none")


def augment_images(state, images, step, number=0, **training):
    """Augments `images`, the part of a batch on the device with index `number`, as training step `step` would."""
    config, start = TrainingConfig(batch_size=BATCH, **training), number * len(images)
    seed = randomness.derive_seed(config.seed, "step", tf.constant(step))
    place = slice(start, start + len(images))
    return step_effects.augment_images(images, config, state.updates, seed, place, BATCH)


class Trainer:
    """A training state and a `TrainStep` on logical CPU devices, with initial weights that ignore the device count."""

    def __init__(self, devices=1, model=SMALL, **training):
        training = {"batch_size": BATCH, "learning_rate": 0.01, "warmup_steps": 2, "ema_decay": 0.9, **training}
        self.config = Config(model=model, training=TrainingConfig(**{"weight_decay": 0.01, **training}))
        self.strategy = make_strategy(devices)
        keras.utils.set_random_seed(1)
        with self.strategy.scope():
            self.state = TrainingState(self.config)
        self.state.model.initialize(random_images(16, model.image_shape, seed=9), seed=0)
        give_effect(self.state.model)
        self.state.optimizer.start_averages()
        self.step_function = TrainStep(self.state, self.strategy)
        self.steps = 0

    def take(self, count=1):
        """Takes `count` training steps, each on other random images; returns the last `StepResult`, as numbers."""
        model = self.config.model
        for _ in range(count):
            images = random_images(BATCH, model.image_shape, seed=100 + self.steps)
            size = BATCH // self.config.training.micro_batches
            batches = tf.data.Dataset.from_tensor_slices(images).batch(size)
            micro_batches = self.strategy.experimental_distribute_dataset(batches)
            result = self.step_function(list(micro_batches), self.steps)
            self.steps += 1
        return result.fetch_numbers()

    def values(self, device=None):
        """Returns {name: array} of this trainer's variables; `device` is the index of a device whose copies to read."""

        def read(variable):
            if device is not None:
                view = variable if isinstance(variable, BufferView) else None
                variable = self.strategy.experimental_local_results(view._vector if view else variable)[device]
                variable = BufferView(variable, view._part.start, view.shape) if view else variable
            return variable.numpy()

        return {
            f"{group}/{name}": read(variable)
            for group, variables in self.state.group_checkpoint_variables().items()
            for name, variable in variables.items()
        }

    def put(self, values):
        """Assigns `values`, {name: array} from this class's method `values`, to this trainer's variables."""
        for group, variables in self.state.group_checkpoint_variables().items():
            for name, variable in variables.items():
                variable.assign(values[f"{group}/{name}"])


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


def assert_equal(ours, theirs, but=()):
    np.testing.assert_equal(*({name: a for name, a in arrays.items() if name not in but} for arrays in (ours, theirs)))
