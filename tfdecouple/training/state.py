"""The state of a training that its checkpoints hold: model, optimizer and counters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import Config
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.run_folder import list_averaged_weights
from tfdecouple.training.optimizer import Optimizer

# Names of the fields of `step.StepResult` that the log averages over the steps since its last row.
RUNNING_MEANS = (
    "bits_per_dim",
    "reconstruction",
    "kl",
    "dequantization",
    "gradient_norm",
)


class TrainingState:
    """The model, the optimizer and the counters of a training.

    Create it inside the scope of the strategy that trains.

    Attributes:
        model: the model in training.
        trainable: trainable weights of the model by name.
        moving: moving statistics of the model's batch normalisation by name.
        optimizer: the Adam optimizer with its moments and the averaged weights.
        step: number of steps taken, skipped ones included; the position in the data.
        updates: number of applied updates; the position in the schedules.
        skipped: number of skipped steps in a row.
        best_step, best_bits_per_dim: step and bits/dim of the best evaluation on the validation images.
        window: sums of `RUNNING_MEANS` over the applied steps since the last row of the log, and number of these steps.
        not_finite: number of steps in which each of `RUNNING_MEANS` was not finite; not in checkpoints.
        lost: largest inversion error for which a step was not applied; not in checkpoints.
        halted: 1 once `max_skipped_steps` steps in a row were skipped, else 0; not in checkpoints. Later steps, which
            the host may already have dispatched, change nothing.
    """

    def __init__(self, config: Config):
        self.model = DecoupledModel(config.model)
        variables = self.model.named_variables()
        self._named = {name: variable.value for name, variable in variables.items()}
        self.trainable = {name: self._named[name] for name, variable in variables.items() if variable.trainable}
        averaged = list_averaged_weights(self.model)
        self.moving = {name: v for name, v in self._named.items() if name in averaged and name not in self.trainable}
        self.optimizer = Optimizer(config.training, self.trainable, self.moving)
        self.step, self.updates, self.skipped, self.best_step, self.halted = (
            tf.Variable(np.int64(0), trainable=False) for _ in range(5)
        )
        self._training = config.training
        self.best_bits_per_dim = tf.Variable(np.float64(np.inf), trainable=False)
        self.window = tf.Variable(np.zeros(len(RUNNING_MEANS) + 1), trainable=False)
        self.not_finite = tf.Variable(np.zeros(len(RUNNING_MEANS), np.int64), trainable=False)
        self.lost = tf.Variable(np.float32(0), trainable=False)

    def checkpoint_groups(self) -> dict[str, Mapping[str, Any]]:
        """Returns all variables of a checkpoint by group and name; the group "model" holds the weights."""
        counters = ("step", "updates", "skipped", "best_step", "best_bits_per_dim", "window")
        return {
            "model": self._named,
            "means": self.optimizer.means,
            "variances": self.optimizer.variances,
            "averages": self.optimizer.averages,
            "counters": {name: getattr(self, name) for name in counters},
        }

    def is_finite(self) -> bool:
        """Returns whether all weights and moving statistics are finite."""
        return all(np.isfinite(variable.numpy()).all() for variable in self._named.values())

    def count_step(self, result: Any) -> None:
        """Counts a step with a `step.StepResult` of tensors and adds up its metrics, in the graph of the step."""
        metrics = tf.stack([getattr(result, name) for name in RUNNING_MEANS])
        is_finite = tf.math.is_finite(metrics)
        running = tf.equal(self.halted, 0)
        skipped = tf.where(result.applied, tf.constant(0, tf.int64), self.skipped + 1)
        row = tf.concat([tf.cast(metrics, tf.float64), tf.ones([1], tf.float64)], 0)
        self.window.assign_add(tf.where(result.applied, row, tf.zeros_like(row)))
        self.not_finite.assign_add(tf.cast(running & ~is_finite, tf.int64))
        # A step with finite metrics can only have been skipped for its inversion error, so the error is recorded.
        is_lost = running & ~result.applied & tf.reduce_all(is_finite)
        self.lost.assign(tf.where(is_lost, tf.maximum(self.lost, result.inversion_error), self.lost))
        self.updates.assign_add(tf.cast(result.applied, tf.int64))
        self.step.assign_add(tf.cast(running, tf.int64))
        self.skipped.assign(tf.where(running, skipped, self.skipped))
        self.halted.assign(tf.cast(~running | (skipped >= self._training.max_skipped_steps), tf.int64))

    def read_running_means(self) -> dict[str, float]:
        """Returns the mean of each of `RUNNING_MEANS` since the last call, or NaN without any step; resets the sums."""
        *totals, count = self.window.numpy().tolist()
        self.window.assign(tf.zeros_like(self.window))
        return {name: total / count if count else math.nan for name, total in zip(RUNNING_MEANS, totals, strict=True)}

    def read_skip_reasons(self) -> str:
        """Returns a text on why steps since the last call were not applied, and resets the counters of the reasons."""
        counts, lost = self.not_finite.numpy(), float(self.lost.numpy())
        self.not_finite.assign(tf.zeros_like(self.not_finite))
        self.lost.assign(0.0)
        reasons = []
        if counts.any():
            names = [name.replace("_", " ") for name, count in zip(RUNNING_MEANS, counts, strict=True) if count]
            reasons.append(f"{', '.join(names)} not finite")
        if lost != 0:
            reasons.append(f"inverting came back {lost:.2g} off (training.memory=invert)")
        return "; ".join(reasons)

    def update_best(self, step: int, bits_per_dim: float) -> bool:
        """Returns whether an evaluation is the best one so far, and stores its step and bits/dim if so.

        Once patterns are among the training images, evaluations of weights that never saw patterns do not count: their
        bits/dim may be lower, but these weights do not reconstruct patterns exactly.
        """
        best, best_step = float(self.best_bits_per_dim.numpy()), int(self.best_step.numpy())
        if self._training.patterns and best_step <= self._training.patterns_after < step:
            best = np.inf
        if not bits_per_dim < best:
            return False
        self.best_bits_per_dim.assign(bits_per_dim)
        self.best_step.assign(step)
        return True
