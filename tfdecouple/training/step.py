"""A training step: gradients on all devices, their sum, a check, and one update; and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.model.gradient import check_step, flatten_and_join, place_in_vector
from tfdecouple.model.objective import DeviceResult, differentiate_bound
from tfdecouple.model.step_effects import augment_images, compute_kl_weight
from tfdecouple.runtime.run_mode import RunMode
from tfdecouple.training.state import TrainingState

# Learning rate of the first update of the warm-up, as in the paper's code.
WARMUP_START = 1e-7


class StepResult(NamedTuple):
    """The result of a training step: scalar tensors on the devices, or Python numbers after `fetch_numbers`.

    Attributes:
        bits_per_dim: bits/dim of the batch, the mean over its images.
        reconstruction, kl, dequantization: the terms of the bound, mean nats per image.
        gradient_norm: global norm of the gradient before clipping.
        learning_rate: the learning rate of the step.
        applied: whether the update was applied. It is not applied if the loss or the gradient norm is not finite,
            `inversion_error` is above its bound, or training has halted.
        stop: above 0 if a signal has asked any worker to stop; the value is the same in all workers.
        inversion_error: error of the activations that `training.memory=invert` reconstructs; 0 in other modes. The
            error at the input of a stage is max |recovered - stored| / max |stored|. An image's errors are summed over
            the stages, and the largest sum of any image in the batch is reported.
    """

    bits_per_dim: Any
    reconstruction: Any
    kl: Any
    dequantization: Any
    gradient_norm: Any
    learning_rate: Any
    applied: Any
    stop: Any
    inversion_error: Any = 0.0

    def fetch_numbers(self) -> StepResult:
        """Waits for the step's end, copies this result from the devices, and returns it as Python numbers."""
        return StepResult(*(np.asarray(value).item() for value in self))


class TrainStep:
    """A callable that takes a training step: it draws noise, adds up the devices' gradients, and updates the weights.

    The noise of an image depends on the seed, the step and the image's index in the batch. Each device draws the noise
    of the whole batch and uses a slice of it, so a step gives the same result with any number of devices.

    Micro-batches are processed one after the other. Batch normalisation uses the statistics of a micro-batch (as in the
    paper's code). Its moving statistics change once per update, towards the mean of the micro-batches' statistics.
    `state` must be created inside `strategy.scope()`.
    """

    def __init__(self, config: Config, state: TrainingState, strategy: tf.distribute.Strategy):
        self.state = state
        training = self._training = config.training
        self._mode = RunMode(training.memory, training.precision, training.jit_compile)
        self._strategy = strategy
        # The step needs the largest inversion error, but results of devices are added up. So each micro-batch of each
        # device writes its error to a separate entry of a vector; the largest entry of the summed vector is the result.
        self._errors = config.training.micro_batches * strategy.num_replicas_in_sync
        weights, moving = ([v.shape for v in group.values()] for group in (state.trainable, state.moving))
        self._shapes = DeviceResult(weights, moving, [tf.TensorShape(())] * 3, tf.TensorShape([self._errors]))
        self._sizes = [math.prod(shape) for shape in tf.nest.flatten(self._shapes)]
        # AutoGraph is off, because its search of loops over a thousand variables for control flow takes seconds.
        self._take_step = tf.function(self._take_undivided_step, autograph=False)
        self._start_sums = tf.function(self._make_zero_sums, autograph=False)
        self._add_to_sums = tf.function(self._add_micro_batch, autograph=False)
        self._apply_sums = tf.function(self._apply_micro_batches, autograph=False)

    def __call__(self, micro_batches: Sequence[Any], step: int, stop: bool = False) -> StepResult:
        """Takes one training step and returns its result as tensors; on a GPU the call returns before the step ends.

        The graph of the step has no `tf.cond`, because the host would have to wait for the value of the condition.

        Args:
            micro_batches: a list with the images of each micro-batch, uint8, one tensor per device; for a model with
                labels, pairs of images and labels.
            step: count of training steps before this one.
            stop: whether a signal has asked this process to stop.
        """
        step, stop = tf.constant(step, tf.int32), tf.constant(float(stop))
        with self._mode.switch_tf32():
            if len(micro_batches) == 1:
                return self._take_step(micro_batches[0], step, stop)
            sums = self._start_sums()
            for number, examples in enumerate(micro_batches):
                sums = self._add_to_sums(sums, examples, step, tf.constant(number))
            return self._apply_sums(sums, stop)

    def _take_undivided_step(self, examples: Any, step: tf.Tensor, stop: tf.Tensor) -> StepResult:
        results = self._strategy.run(self._compute_device_result, args=(examples, step, 0))
        return self._apply_device_results(results, stop)

    def _make_zero_sums(self) -> Any:
        return self._strategy.run(lambda: tf.zeros([sum(self._sizes)]))

    def _add_micro_batch(self, sums: Any, examples: Any, step: tf.Tensor, number: tf.Tensor) -> Any:
        """Adds the results of a micro-batch to `sums`: one vector per device, because many tensors would take long."""

        def add(sums: tf.Tensor, examples: Any) -> tf.Tensor:
            result = self._compute_device_result(examples, step, number)
            return sums + flatten_and_join(tf.nest.flatten(result))

        return self._strategy.run(add, args=(sums, examples))

    def _apply_micro_batches(self, sums: Any, stop: tf.Tensor) -> StepResult:
        def split(sums: tf.Tensor) -> DeviceResult:
            flat = tf.nest.pack_sequence_as(self._shapes, tf.split(sums, self._sizes))
            return tf.nest.map_structure(tf.reshape, flat, self._shapes)

        return self._apply_device_results(self._strategy.run(split, args=(sums,)), stop)

    def _compute_device_result(self, examples: Any, step: tf.Tensor, number: Any) -> DeviceResult:
        training, state = self._training, self.state
        images, labels = examples if state.model.config.has_labels else (examples, None)
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
        size = training.batch_size // training.micro_batches
        count = size // self._strategy.num_replicas_in_sync
        start = number * size + replica * count
        seed, device_slice = randomness.derive_seed(training.seed, "step", step), slice(start, start + count)
        images = tf.ensure_shape(images, (count, *state.model.config.image_shape))
        images = augment_images(images, training, state.updates, seed, device_slice, training.batch_size)
        if labels is not None:
            labels = tf.ensure_shape(labels, (count,))
        variables = state.model.named_variables()
        result = differentiate_bound(
            state.model,
            images,
            labels,
            self._mode,
            seed=seed,
            device_slice=device_slice,
            batch_size=training.batch_size,
            trainable=[variables[name] for name in state.trainable],
            moving=[variables[name] for name in state.moving],
            kl_weight=compute_kl_weight(training, state.updates),
            weights=[tf.convert_to_tensor(weight) for weight in state.trainable.values()],
        )
        position = number * self._strategy.num_replicas_in_sync + replica
        result = result._replace(inversion_error=place_in_vector(result.inversion_error, position, self._errors))
        if training.micro_batches > 1:
            result = result._replace(moving=[statistic / training.micro_batches for statistic in result.moving])
        return result

    def _apply_device_results(self, results: DeviceResult, stop: tf.Tensor) -> StepResult:
        """Sums the devices' results; updates the weights unless a sum is not finite or the inversion too inexact."""
        training, state = self._training, self.state
        # All workers must take part in this collective sum, so it is computed even if the update is then skipped.
        total, stop = self._sum_device_results(results, stop)
        reconstruction, kl, dequantization = total.terms
        loss = reconstruction + kl + dequantization
        error = tf.reduce_max(total.inversion_error)
        first = [self._strategy.experimental_local_results(gradient)[0] for gradient in total.gradients]
        finite, inverted, norm = check_step(total._replace(gradients=first, inversion_error=error), training.precision)
        applied = finite & inverted & tf.equal(state.halted, 0)

        rate = compute_learning_rate(training, state.updates)
        scale = tf.minimum(1.0, training.clip_norm / norm) if training.clip_norm else None
        self._strategy.run(
            state.optimizer.apply_update, args=(applied, total.gradients, total.moving, state.updates, rate, scale)
        )
        result = StepResult(
            bits_per_dim=state.model.quantizer.convert_to_bits_per_dim(loss, math.prod(state.model.config.image_shape)),
            reconstruction=reconstruction,
            kl=kl,
            dequantization=dequantization,
            gradient_norm=norm,
            learning_rate=rate,
            applied=applied,
            stop=stop,
            inversion_error=error,
        )
        state.count_step(result)
        return result

    def _sum_device_results(self, results: DeviceResult, stop: tf.Tensor) -> tuple[DeviceResult, tf.Tensor]:
        """Sums the devices' gradients, terms of the bound, inversion errors and `stop`; averages the moving statistics.

        All sums stay on the devices. `Strategy.reduce` would copy them to the host, for which the update would wait.
        """
        state, scalars = self.state, [*results.terms, results.inversion_error, self._strategy.run(tf.identity, (stop,))]
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=self._training.bytes_per_pack)

        def reduce_to_devices(reduction: Any, values: list[Any], variables: list[tf.Variable]) -> list[Any]:
            pairs = list(zip(values, variables, strict=True))
            # A model without an encoder has no moving statistics, and TensorFlow cannot reduce an empty list.
            return list(self._strategy.extended.batch_reduce_to(reduction, pairs, options)) if pairs else []

        # A sum goes to the devices of its variable in this list; the variable `step` has a copy on each device.
        destinations = [*state.trainable.values(), *[state.step] * len(scalars)]
        sums = reduce_to_devices(tf.distribute.ReduceOp.SUM, [*results.gradients, *scalars], destinations)
        moving = reduce_to_devices(tf.distribute.ReduceOp.MEAN, results.moving, list(state.moving.values()))
        count = len(results.gradients)
        *terms, error, stop = (self._strategy.experimental_local_results(total)[0] for total in sums[count:])
        return DeviceResult(sums[:count], moving, terms, error), stop


def compute_learning_rate(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate after `update` updates, a float32 scalar.

    The rate rises linearly from 1e-7 to `learning_rate` over `warmup_steps` updates. Then each update multiplies the
    rate by `decay_rate`. With `linear_decay` the rate is also multiplied by a factor that falls linearly from 1 at the
    end of the warm-up to 0 at the last step of the run.
    """
    # The power is computed in float64, because a rounding error of 0.999997 in float32 grows in its millionth power.
    update = tf.cast(update, tf.float64)
    peak, warmup = tf.constant(config.learning_rate, tf.float64), float(config.warmup_steps)
    rising = WARMUP_START + (peak - WARMUP_START) * update / max(warmup, 1.0)
    falling = peak * tf.pow(tf.constant(config.decay_rate, tf.float64), update - warmup)
    if config.linear_decay:
        falling *= tf.nn.relu((config.steps - update) / max(config.steps - warmup, 1.0))
    return tf.cast(tf.where(update < warmup, rising, falling), tf.float32)
