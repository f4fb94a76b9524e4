"""The state of a training, as checkpoints hold it: the model, the optimizer and counters."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import Config
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.run_folder import list_averaged_weights
from tfdecouple.training.optimizer import Optimizer

# Fields of `StepResult`. A row of training metrics in the log has their means over the steps since the row before it.
RUNNING_MEANS = (
    "bits_per_dim",
    "reconstruction",
    "kl",
    "dequantization",
    "gradient_norm",
)


class TrainingState:
    """The model, the optimizer and the counters of a training; create the state inside `strategy.scope()`.

    Attributes:
        training: the options of the training.
        trainable: trainable weights of the model by name.
        moving: moving statistics of batch normalisation by name.
        step: number of steps, including skipped ones; it determines which images come next.
        updates: number of applied updates; it determines the learning rate and the other schedules.
        skipped: number of skipped steps in a row.
        best_step, best_bits_per_dim: step and bits/dim of the best evaluation on the validation images.
        window: a vector: sums of `RUNNING_MEANS` over the applied steps since the last row of the log, then the number
            of these steps.
        not_finite: a vector: in how many steps each of `RUNNING_MEANS` was not finite; not in checkpoints.
        refused_error: largest inversion error (with `training.memory=invert`) of steps that were skipped because of
            this error; not in checkpoints.
        halted: 1 once `max_skipped_steps` steps in a row were skipped, else 0; not in checkpoints. Later steps, which
            the host may already have dispatched, then change nothing.
    """

    def __init__(self, config: Config):
        self.model, self.training = DecoupledModel(config.model), config.training
        variables = self.model.named_variables()
        self._named = {name: variable.value for name, variable in variables.items()}
        self.trainable = {name: self._named[name] for name, variable in variables.items() if variable.trainable}
        averaged = list_averaged_weights(self.model)
        self.moving = {name: v for name, v in self._named.items() if name in averaged and name not in self.trainable}
        self.optimizer = Optimizer(config.training, self.trainable, self.moving)
        self.step, self.updates, self.skipped, self.best_step, self.halted = (
            tf.Variable(np.int64(0), trainable=False) for _ in range(5)
        )
        self.best_bits_per_dim = tf.Variable(np.float64(np.inf), trainable=False)
        self.window = tf.Variable(np.zeros(len(RUNNING_MEANS) + 1), trainable=False)
        self.not_finite = tf.Variable(np.zeros(len(RUNNING_MEANS), np.int64), trainable=False)
        self.refused_error = tf.Variable(np.float32(0), trainable=False)

    def group_checkpoint_variables(self) -> dict[str, Mapping[str, Any]]:
        """Returns the variables for a checkpoint, a dict of dicts by group and name; group "model" has the weights."""
        counters = ("step", "updates", "skipped", "best_step", "best_bits_per_dim", "window")
        return {
            "model": self._named,
            "means": self.optimizer.means,
            "variances": self.optimizer.variances,
            "averages": self.optimizer.averages,
            "counters": {name: getattr(self, name) for name in counters},
        }

    def has_finite_weights(self) -> bool:
        """Returns whether all weights and moving statistics of the model are finite."""
        return all(np.isfinite(variable.numpy()).all() for variable in self._named.values())

    def count_step(self, result: Any) -> None:
        """Updates the counters and running sums by a step's `result` (a `StepResult`), in the graph of the step."""
        metrics = tf.stack([getattr(result, name) for name in RUNNING_MEANS])
        is_finite = tf.math.is_finite(metrics)
        running = tf.equal(self.halted, 0)
        skipped = tf.where(result.applied, tf.constant(0, tf.int64), self.skipped + 1)
        row = tf.concat([tf.cast(metrics, tf.float64), tf.ones([1], tf.float64)], 0)
        self.window.assign_add(tf.where(result.applied, row, tf.zeros_like(row)))
        self.not_finite.assign_add(tf.cast(running & ~is_finite, tf.int64))
        # A step with finite metrics is skipped only if its inversion error is too large.
        is_refused = running & ~result.applied & tf.reduce_all(is_finite)
        self.refused_error.assign(tf.maximum(self.refused_error, tf.where(is_refused, result.inversion_error, 0.0)))
        self.updates.assign_add(tf.cast(result.applied, tf.int64))
        self.step.assign_add(tf.cast(running, tf.int64))
        self.skipped.assign(tf.where(running, skipped, self.skipped))
        self.halted.assign(tf.cast(~running | (skipped >= self.training.max_skipped_steps), tf.int64))

    def fetch_running_means(self) -> dict[str, float]:
        """Returns {key of `RUNNING_MEANS`: mean over the applied steps since the last call, or NaN}."""
        *totals, count = self.window.numpy().tolist()
        self.window.assign(tf.zeros_like(self.window))
        return {name: total / count if count else math.nan for name, total in zip(RUNNING_MEANS, totals, strict=True)}

    def describe_skip_reasons(self) -> str:
        """Returns a text on why steps were skipped since the last call, such as "kl not finite"; resets the record."""
        counts, error = self.not_finite.numpy(), float(self.refused_error.numpy())
        self.not_finite.assign(tf.zeros_like(self.not_finite))
        self.refused_error.assign(0.0)
        reasons = []
        if counts.any():
            names = [name.replace("_", " ") for name, count in zip(RUNNING_MEANS, counts, strict=True) if count]
            reasons.append(f"{', '.join(names)} not finite")
        if error:
            reasons.append(f"inversion error {error:.2g} (training.memory=invert)")
        return "; ".join(reasons)

    def update_best_evaluation(self, step: int, bits_per_dim: float) -> bool:
        """Stores `step` and `bits_per_dim` if this evaluation is the best so far, and returns whether it is.

        Once the training images contain patterns (noise and checkerboards), earlier evaluations do not count: their
        bits/dim may be lower, but weights that were not trained on patterns do not reconstruct patterns exactly.
        """
        best, best_step = float(self.best_bits_per_dim.numpy()), int(self.best_step.numpy())
        if self.training.patterns and best_step <= self.training.patterns_after < step:
            best = np.inf
        if not bits_per_dim < best:
            return False
        self.best_bits_per_dim.assign(bits_per_dim)
        self.best_step.assign(step)
        return True
