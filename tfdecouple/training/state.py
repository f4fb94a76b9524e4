"""Everything that changes while a run trains, and that its checkpoints hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import Config
from tfdecouple.model import DecoupledModel
from tfdecouple.runs import averaged_names

# What is averaged over the steps between two rows of the log.
WINDOW = ("bits_per_dim", "reconstruction", "kl", "dequantization", "gradient_norm")


class TrainingState:
    """Model, Adam's moments, averaged weights and counters.

    Create it inside the scope of the strategy that trains.

    Attributes:
        model: the model in training.
        trainable: its trainable weights by name.
        moving: the moving statistics of its batch normalisation by name.
        means, variances: Adam's moments by name.
        averages: averaged weights by name; empty where the run keeps none. Batch normalisation's moving statistics
            are averaged along with the weights that they belong to, by the same rule.
        step: steps taken, skipped ones included; the place in the data.
        updates: updates applied; the place in the schedule.
        skipped: steps in a row that were skipped.
    """

    def __init__(self, config: Config):
        self.config = config
        self.model = DecoupledModel(config.model)
        variables = self.model.named_variables()
        named = {name: variable.value for name, variable in variables.items()}
        trainable = {name for name, variable in variables.items() if variable.trainable}
        self.trainable = {name: variable for name, variable in named.items() if name in trainable}
        covered = averaged_names(self.model)
        self.moving = {name: variable for name, variable in named.items() if name in covered - trainable}
        self.means = {name: _zeros_like(variable) for name, variable in self.trainable.items()}
        self.variances = {name: _zeros_like(variable) for name, variable in self.trainable.items()}
        self.averages: dict[str, tf.Variable] = {}
        if config.training.ema_decay:
            self.averages = {name: _zeros_like(variable) for name, variable in named.items() if name in covered}
        self.step = _counter()
        self.updates = _counter()
        self.skipped = _counter()
        self.best_step = _counter()
        self.best_bits_per_dim = _value(np.inf)
        self.window = _value(np.zeros(len(WINDOW) + 1))
        self._named = named

    def start_averages(self) -> None:
        """Sets the averages to the weights as they are."""
        for name, average in self.averages.items():
            # A copy: an average that shared the memory of its weight would move away from it in the first step.
            average.assign(tf.raw_ops.DeepCopy(x=self._named[name]))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[DecoupledModel]:
        """Lends the model with its averaged weights; the weights in training are back afterwards."""
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, average in self.averages.items():
            variable = self._named[name]
            value = tf.identity(variable)
            variable.assign(average)
            average.assign(value)

    def groups(self) -> dict[str, Mapping[str, Any]]:
        """Returns all of it by group and name, for a checkpoint."""
        return {
            "model": self._named,
            "means": self.means,
            "variances": self.variances,
            "averages": self.averages,
            "counters": {
                "step": self.step,
                "updates": self.updates,
                "skipped": self.skipped,
                "best_step": self.best_step,
                "best_bits_per_dim": self.best_bits_per_dim,
                "window": self.window,
            },
        }

    def model_group(self) -> dict[str, Mapping[str, Any]]:
        """Returns the model's weights alone, for the checkpoint of the best model."""
        return {"model": self._named}


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)


def _counter() -> tf.Variable:
    return tf.Variable(np.int64(0), trainable=False)


def _value(value: Any) -> tf.Variable:
    return tf.Variable(np.float64(value), trainable=False)
