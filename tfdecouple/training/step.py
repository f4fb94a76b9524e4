"""The state of a training, as checkpoints hold it, and its steps: micro-batches, update, learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.model import DecoupledModel
from tfdecouple.model.training_step import DeviceResult, TrainingStep
from tfdecouple.numerics.arithmetic import flatten_and_join
from tfdecouple.registry import SCHEDULES
from tfdecouple.runs.run_folder import list_averaged_weights
from tfdecouple.training.optimizer import Optimizer

# Learning rate of the first update of the warm-up, as in the paper's code.
WARMUP_START = 1e-7
# Fields of `StepResult`. A row of training metrics in the log has their means over the steps since the row before it.
RUNNING_MEANS = ("bits_per_dim", "reconstruction", "kl", "dequantization", "gradient_norm")


class StepResult(NamedTuple):
    """The result of a training step: scalar tensors on the devices, or Python numbers after `fetch_numbers`.

    Attributes:
        bits_per_dim: mean bits/dim of the batch; reconstruction, kl, dequantization: its terms in nats per image.
        gradient_norm: global norm of the gradient before clipping.
        applied: whether the update was applied. It is not applied if the loss or the gradient norm is not finite,
            `inversion_error` is above its bound, or training has halted.
        stop: above 0 if a signal has asked any worker to stop; the value is the same in all workers.
        inversion_error: error of the activations that `training.memory=invert` reconstructs; 0 in other modes. The
            error at the input of a stage is max |recovered - stored| / max |stored|. An image's errors are summed over
            the stages, and the largest sum of any image in the batch is reported.
    """

    bits_per_dim: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor
    dequantization: tf.Tensor
    gradient_norm: tf.Tensor
    learning_rate: tf.Tensor
    applied: tf.Tensor
    stop: tf.Tensor
    inversion_error: tf.Tensor | float = 0.0

    def fetch_numbers(self) -> StepResult:
        """Waits for the step's end, copies this result from the devices, and returns it as Python numbers."""
        return StepResult(*(np.asarray(value).item() for value in self))


class TrainingState:
    """The model, the optimizer and the counters of a training; create the state inside `strategy.scope()`.

    Attributes:
        trainable, moving: the model's trainable weights, and moving statistics of batch normalisation, by name.
        step: number of steps, including skipped ones; it determines which images come next.
        updates: number of applied updates; it determines the learning rate and the other schedules.
        skipped: number of skipped steps in a row.
        best_step, best_bits_per_dim: step and bits/dim of the best evaluation on the validation images.
        window: a vector: sums of `RUNNING_MEANS` over the applied steps since the last row of the log, then the number
            of these steps.
        not_finite: a vector: in how many steps each of `RUNNING_MEANS` was not finite.
        refused_error: largest inversion error (`training.memory=invert`) of steps that were skipped because of it.
        halted: 1 once `max_skipped_steps` steps in a row were skipped, else 0. Later steps, which the host may already
            have dispatched, then change nothing. The last three are not in checkpoints.
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

    def group_checkpoint_variables(self) -> dict[str, Mapping[str, tf.Variable]]:
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

    def count_step(self, result: StepResult) -> None:
        """Updates the counters and running sums by a step's `result`, in the graph of the step."""
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


class TrainStep:
    """A callable that takes a training step: it draws noise, adds up the devices' gradients, and updates the weights.

    The noise of an image depends on the seed, the step and the image's index in the batch, not on the devices.
    Micro-batches are processed one after the other. Batch normalisation uses the statistics of a micro-batch (as in the
    paper's code). `state` must be created inside `strategy.scope()`.
    """

    def __init__(self, state: TrainingState, strategy: tf.distribute.Strategy):
        self.state, training = state, state.training
        variables = state.model.named_variables()
        trainable, moving = ([variables[name] for name in group] for group in (state.trainable, state.moving))
        self._step = TrainingStep(state.model, training, trainable, moving, self._update_state)
        self._mode = RunMode(precision=training.precision)
        self._strategy = strategy
        count = training.micro_batches * strategy.num_replicas_in_sync
        self._images = training.batch_size // count
        weights, statistics = ([variable.shape for variable in group] for group in (trainable, moving))
        scalar = tf.TensorShape(())
        self._shapes = DeviceResult(weights, statistics, [scalar] * 3, tf.TensorShape([count]), scalar)
        self._sizes = [math.prod(shape) for shape in tf.nest.flatten(self._shapes)]
        # AutoGraph is off, because its search of loops over a thousand variables for control flow takes seconds.
        self._take_step = tf.function(self._take_undivided_step, autograph=False)
        self._start_sums = tf.function(lambda: strategy.run(tf.zeros, args=([sum(self._sizes)],)), autograph=False)
        self._add_to_sums = tf.function(self._add_micro_batch, autograph=False)
        self._apply_sums = tf.function(self._apply_micro_batches, autograph=False)

    def __call__(self, micro_batches: Sequence[Any], step: int, stop: bool = False) -> StepResult:
        """Takes one training step and returns its result as tensors; on a GPU the call returns before the step ends.

        `micro_batches` has the images of each micro-batch, uint8, one tensor per device; for a model with labels, pairs
        of images and labels. `step` is the count of training steps before this one, and `stop` says whether a signal
        has asked this process to stop. The graph of the step has no `tf.cond`, for which the host would have to wait.
        """
        step, stop = tf.constant(step, tf.int32), tf.constant(float(stop))
        with self._mode.switch_tf32():
            if len(micro_batches) == 1:
                return self._take_step(micro_batches[0], step, stop)
            sums = self._start_sums()
            for number, examples in enumerate(micro_batches):
                sums = self._add_to_sums(sums, examples, step, stop, tf.constant(number))
            return self._apply_sums(sums)

    def _take_undivided_step(self, examples: tf.Tensor, step: tf.Tensor, stop: tf.Tensor) -> StepResult:
        return self._strategy.run(
            lambda examples: self._step.take(*self._list_arguments(examples, step), stop=stop), args=(examples,)
        )

    def _add_micro_batch(
        self, sums: tf.Tensor, examples: tf.Tensor, step: tf.Tensor, stop: tf.Tensor, number: tf.Tensor
    ) -> tf.Tensor:
        """Adds the results of a micro-batch to `sums`: one vector per device, because many tensors would take long."""

        def add(sums: tf.Tensor, examples: tf.Tensor) -> tf.Tensor:
            result = self._step.differentiate(*self._list_arguments(examples, step), number=number, stop=stop)
            return sums + flatten_and_join(tf.nest.flatten(result))

        return self._strategy.run(add, args=(sums, examples))

    def _apply_micro_batches(self, sums: tf.Tensor) -> StepResult:
        def split(sums: tf.Tensor) -> DeviceResult:
            flat = tf.nest.pack_sequence_as(self._shapes, tf.split(sums, self._sizes))
            return tf.nest.map_structure(tf.reshape, flat, self._shapes)

        return self._step.update(self._strategy, self._strategy.run(split, args=(sums,)))

    def _list_arguments(self, examples: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images, labels = examples if self.state.model.config.has_labels else (examples, None)
        images = tf.ensure_shape(images, (self._images, *self.state.model.config.image_shape))
        if labels is not None:
            labels = tf.ensure_shape(labels, (self._images,))
        return images, labels, randomness.derive_seed(self.state.training.seed, "step", step), self.state.updates

    def _update_state(self, total: DeviceResult, is_sound: tf.Tensor, norm: tf.Tensor) -> StepResult:
        """Updates the weights by the sums of the devices' results, unless these are unsound or training has halted."""
        state, training = self.state, self.state.training
        applied = is_sound & tf.equal(state.halted, 0)
        rate = compute_learning_rate(training, state.updates)
        scale = tf.minimum(1.0, training.clip_norm / norm) if training.clip_norm else None
        self._strategy.run(
            state.optimizer.apply_update, args=(applied, total.gradients, total.moving, state.updates, rate, scale)
        )
        reconstruction, kl, dequantization = total.terms
        dimensions = math.prod(state.model.config.image_shape)
        bits = state.model.quantizer.convert_to_bits_per_dim(reconstruction + kl + dequantization, dimensions)
        terms = (bits, reconstruction, kl, dequantization)
        result = StepResult(*terms, norm, rate, applied, total.stop, total.inversion_error)
        state.count_step(result)
        return result


def compute_learning_rate(training: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate after `update` updates, a float32 scalar.

    The rate rises linearly from 1e-7 to `learning_rate` over `warmup_steps` updates. Then each update multiplies the
    rate by `decay_rate`. With `linear_decay` the rate is also multiplied by a factor that falls linearly from 1 at the
    end of the warm-up to 0 at the last step of the run. A registered `schedule` is called with this factor and the
    options of the training, and returns a further factor.
    """
    # The power is computed in float64, because a rounding error of 0.999997 in float32 grows in its millionth power.
    update = tf.cast(update, tf.float64)
    peak, warmup = tf.constant(training.learning_rate, tf.float64), float(training.warmup_steps)
    rising = WARMUP_START + (peak - WARMUP_START) * update / max(warmup, 1.0)
    falling = peak * tf.pow(tf.constant(training.decay_rate, tf.float64), update - warmup)
    left = tf.nn.relu((training.steps - update) / max(training.steps - warmup, 1.0))
    if training.linear_decay:
        falling *= left
    if training.schedule is not None:
        falling *= SCHEDULES[training.schedule](left, training)
    return tf.cast(tf.where(update < warmup, rising, falling), tf.float32)
