"""Everything that changes while a run trains, and that its checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import Config
from tfdecouple.model import DecoupledModel
from tfdecouple.runs import averaged_names
from tfdecouple.training.figures import WINDOW
from tfdecouple.training.optimizer import Adam


class TrainingState:
    """Model, optimizer and counters.

    Create it inside the scope of the strategy that trains.

    Attributes:
        model: the model in training.
        trainable: its trainable weights by name.
        moving: the moving statistics of its batch normalisation by name.
        optimizer: with the moments and the averages.
        step: steps taken, skipped ones included; the position in the data.
        updates: updates applied; the position in the schedule.
        skipped: steps in a row that were skipped.
        best_step, best_bits_per_dim: of the best evaluation so far.
        window: sums of the figures since the last row of the log, see `figures.Window`.
    """

    def __init__(self, config: Config):
        self.model = DecoupledModel(config.model)
        variables = self.model.named_variables()
        self._named = {name: variable.value for name, variable in variables.items()}
        self.trainable = {name: self._named[name] for name, variable in variables.items() if variable.trainable}
        moved = averaged_names(self.model)
        self.moving = {name: v for name, v in self._named.items() if name in moved and name not in self.trainable}
        self.optimizer = Adam(config.training, self.trainable, self.moving)
        self.step, self.updates, self.skipped, self.best_step = (
            tf.Variable(np.int64(0), trainable=False) for _ in range(4)
        )
        self.best_bits_per_dim = tf.Variable(np.float64(np.inf), trainable=False)
        self.window = tf.Variable(np.zeros(len(WINDOW) + 1), trainable=False)

    def groups(self) -> dict[str, Mapping[str, Any]]:
        """Returns all of it by group and name, for a checkpoint."""
        return {
            "model": self._named,
            "means": self.optimizer.means,
            "variances": self.optimizer.variances,
            "averages": self.optimizer.averages,
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

    def count_step(self, applied: tf.Tensor) -> None:
        """Counts a step, in the graph of the step; `applied` says whether it was an update."""
        self.updates.assign_add(tf.cast(applied, tf.int64))
        self.skipped.assign(tf.where(applied, tf.constant(0, tf.int64), self.skipped + 1))
        self.step.assign_add(1)

    def note_best(self, step: int, bits_per_dim: float) -> bool:
        """Returns whether an evaluation is the best so far, and remembers the one that is."""
        if not bits_per_dim < float(self.best_bits_per_dim.numpy()):
            return False
        self.best_bits_per_dim.assign(bits_per_dim)
        self.best_step.assign(step)
        return True
