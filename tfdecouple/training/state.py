"""Everything that changes while a run trains, and that its checkpoints hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import Config
from tfdecouple.model import DecoupledModel
from tfdecouple.runs import averaged_names
from tfdecouple.training.optimizer import Optimizer

# What is averaged over the steps between two rows of the log; checkpoints hold the sums.
WINDOW = (
    "bits_per_dim",
    "reconstruction",
    "kl",
    "dequantization",
    "gradient_norm",
)


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
        window: sums of the figures since the last row of the log, see `figures.means`.
        not_finite: in how many steps each figure was not finite since this was last read; not in checkpoints.
        lost: the largest `StepResult.inversion_error` since then for which a step was not applied; not in checkpoints.
        halted: 1 once `max_skipped_steps` steps in a row were skipped, else 0; not in checkpoints. From then on nothing
            changes any more, however many steps were dispatched before the host knew.
    """

    def __init__(self, config: Config):
        self.model = DecoupledModel(config.model)
        variables = self.model.named_variables()
        self._named = {name: variable.value for name, variable in variables.items()}
        self.trainable = {name: self._named[name] for name, variable in variables.items() if variable.trainable}
        moved = averaged_names(self.model)
        self.moving = {name: v for name, v in self._named.items() if name in moved and name not in self.trainable}
        self.optimizer = Optimizer(config.training, self.trainable, self.moving)
        self.step, self.updates, self.skipped, self.best_step, self.halted = (
            tf.Variable(np.int64(0), trainable=False) for _ in range(5)
        )
        self._training = config.training
        self.best_bits_per_dim = tf.Variable(np.float64(np.inf), trainable=False)
        self.window = tf.Variable(np.zeros(len(WINDOW) + 1), trainable=False)
        self.not_finite = tf.Variable(np.zeros(len(WINDOW), np.int64), trainable=False)
        self.lost = tf.Variable(np.float32(0), trainable=False)

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

    def is_finite(self) -> bool:
        """Returns whether all weights and moving statistics are."""
        return all(np.isfinite(variable.numpy()).all() for variable in self._named.values())

    def count_step(self, figures: tf.Tensor, applied: tf.Tensor, lost: tf.Tensor | float = 0.0) -> None:
        """Counts a step and adds up its figures, in the graph of the step.

        Args:
            figures: those of `figures.WINDOW`, float32.
            applied: whether it was an update; False once training has halted.
            lost: the error of inversion, float32, where it is why the step was no update; else 0.
        """
        goes_on, skipped = tf.equal(self.halted, 0), tf.where(applied, tf.constant(0, tf.int64), self.skipped + 1)
        row = tf.concat([tf.cast(figures, tf.float64), tf.ones([1], tf.float64)], 0)
        self.window.assign_add(tf.where(applied, row, tf.zeros_like(row)))
        self.not_finite.assign_add(tf.cast(goes_on & ~tf.math.is_finite(figures), tf.int64))
        self.lost.assign(tf.where(goes_on, tf.maximum(self.lost, lost), self.lost))
        self.updates.assign_add(tf.cast(applied, tf.int64))
        self.step.assign_add(tf.cast(goes_on, tf.int64))
        self.skipped.assign(tf.where(goes_on, skipped, self.skipped))
        self.halted.assign(tf.cast(~goes_on | (skipped >= self._training.max_skipped_steps), tf.int64))

    def take_window(self) -> dict[str, float]:
        """Reads the means of the figures since the last row of the log, and begins anew."""
        found = means(self.window.numpy())
        self.window.assign(tf.zeros_like(self.window))
        return found

    def take_wrong(self) -> str:
        """Reads why steps were not applied, in words, and begins anew."""
        counts, lost = self.not_finite.numpy(), float(self.lost.numpy())
        reasons = []
        if counts.any():
            names = [name.replace("_", " ") for name, count in zip(WINDOW, counts, strict=True) if count]
            reasons.append(f"{', '.join(names)} not finite")
            self.not_finite.assign(tf.zeros_like(self.not_finite))
        if lost != 0:
            reasons.append(f"inverting came back {lost:.2g} off (training.memory=invert)")
            self.lost.assign(0.0)
        return "; ".join(reasons)

    def note_best(self, step: int, bits_per_dim: float) -> bool:
        """Returns whether an evaluation is the best so far, and remembers the one that is.

        Once patterns are among the training images, weights that never saw any are no rivals: their figures may be the
        better ones, but patterns do not come back from them.
        """
        best, best_step = float(self.best_bits_per_dim.numpy()), int(self.best_step.numpy())
        if self._training.patterns and best_step <= self._training.patterns_after < step:
            best = np.inf
        if not bits_per_dim < best:
            return False
        self.best_bits_per_dim.assign(bits_per_dim)
        self.best_step.assign(step)
        return True


def means(sums: np.ndarray) -> dict[str, float]:
    """Returns the means of the figures by name, NaN where no step was applied.

    >>> means(np.array([7.0, 2.0, 4.0, 0.0, 1.0, 2]))["bits_per_dim"], means(np.zeros(6))["kl"]
    (3.5, nan)

    Args:
        sums: of each of `WINDOW` over the applied steps, and the number of these, `[len(WINDOW) + 1]`.
    """
    *totals, count = sums.tolist()
    return {name: value / count if count else math.nan for name, value in zip(WINDOW, totals, strict=True)}
