"""One step of training: gradients on every device, summed, judged, and applied once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import Config
from tfdecouple.layers import net_precision, rematerialized
from tfdecouple.runtime.tf32 import full_float32, tensor_float_32
from tfdecouple.training.optimizer import Adam, Variables, move_average
from tfdecouple.training.schedule import kl_weight, learning_rate
from tfdecouple.training.state import TrainingState

# How many variables are updated at a time. Left to itself TensorFlow begins with all of them, and for a moment holds
# temporary copies of the whole model: half a gigabyte for the 52 million weights of the preset cifar10.
_LANES = 2

# Of the encoder's and coupling nets' products, by `training.precision`.
_NETS = {"float32": "float32", "tf32": "tf32", "mixed_bfloat16": "bfloat16"}


class StepResult(NamedTuple):
    """What a step reports, scalars.

    Attributes:
        bits_per_dim: mean over the batch.
        reconstruction, kl, dequantization: its parts, mean nats per image.
        gradient_norm: global norm of the gradient, before any clipping.
        learning_rate: of this update.
        applied: False where loss or gradient norm were not finite and nothing was changed.
        stop: above 0 where a worker was asked to stop; the same on all of them.
    """

    bits_per_dim: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor
    dequantization: tf.Tensor
    gradient_norm: tf.Tensor
    learning_rate: tf.Tensor
    applied: tf.Tensor
    stop: tf.Tensor


class _Sums(NamedTuple):
    """What the devices compute of a batch, each its share of the batch's mean; last of the parts the wish to stop."""

    gradients: list[Any]
    moving: list[Any]
    parts: list[Any]


class TrainStep:
    """The step function of a run.

    The noise of an image depends on seed, step and the image's place in the batch, not on the device that happens to
    process it: each device draws the noise of the whole batch and takes its slice. So any number of devices takes
    the same step, while devices differ and a repeated step repeats.

    With micro-batches the batch is processed in parts, one after the other, each with its slice of the noise. Batch
    normalisation sees a part (as in the reference), and its moving statistics move once per update, towards the mean
    of the parts' statistics.

    Args:
        config: the run.
        state: what the step changes; created in the strategy's scope.
        strategy: the devices.
    """

    def __init__(self, config: Config, state: TrainingState, strategy: tf.distribute.Strategy):
        self._config = config
        self._state = state
        self._strategy = strategy
        self._total: Any = None
        self._adam = Adam(config.training)
        if config.training.micro_batches > 1:
            with strategy.scope():
                self._total = self._make_total()
        # One trace each: the shapes never change. There is no Python control flow on tensors for AutoGraph to turn
        # into graphs, and looking for it in loops over a thousand variables takes seconds.
        self._whole = tf.function(self._whole_step, autograph=False)
        self._accumulate = tf.function(self._accumulate_part, autograph=False)
        self._finish = tf.function(self._finish_parts, autograph=False)

    def __call__(self, parts: Sequence[Any], step: int, stop: bool = False) -> StepResult:
        """Takes one step.

        Args:
            parts: the (distributed) uint8 images of the micro-batches, `batch_size / micro_batches` in each.
            step: number of steps taken before.
            stop: whether this process was asked to stop. The step is taken all the same; its result tells all workers.
        """
        step, wish = tf.constant(step, tf.int32), tf.constant(float(stop))
        with tensor_float_32() if self._config.training.precision == "tf32" else full_float32():
            if self._total is None:
                return self._whole(parts[0], step, wish)
            for number, images in enumerate(parts):
                self._accumulate(images, step, tf.constant(number), wish)
            return self._finish()

    def _whole_step(self, images: Any, step: tf.Tensor, stop: tf.Tensor) -> StepResult:
        return self._judge_and_apply(self._strategy.run(self._replica, args=(images, step, 0, stop)))

    def _accumulate_part(self, images: Any, step: tf.Tensor, number: tf.Tensor, stop: tf.Tensor) -> None:
        def accumulate(images: tf.Tensor) -> None:
            values = tf.nest.flatten(self._replica(images, step, number, stop))
            self._total.assign_add(tf.concat([tf.reshape(value, [-1]) for value in values], 0))

        self._strategy.run(accumulate, args=(images,))

    def _finish_parts(self) -> StepResult:
        def take() -> _Sums:
            total = tf.identity(self._total)
            with tf.control_dependencies([total]):
                self._total.assign(tf.zeros_like(total))
            shapes = self._shapes()
            pieces = tf.split(total, [math.prod(shape) for shape in tf.nest.flatten(shapes)])
            return tf.nest.map_structure(tf.reshape, tf.nest.pack_sequence_as(shapes, pieces), shapes)

        return self._judge_and_apply(self._strategy.run(take))

    def _shapes(self) -> _Sums:
        """Returns the shapes of what a device computes, as shapes that are leaves to `tf.nest`."""
        return _Sums(
            [tf.TensorShape(variable.shape) for variable in self._state.trainable.values()],
            [tf.TensorShape(variable.shape) for variable in self._state.moving.values()],
            [tf.TensorShape(())] * 4,
        )

    def _make_total(self) -> tf.Variable:
        """Returns where a device adds up its parts: one long vector, as a thousand variables take long to trace."""
        size = sum(math.prod(shape) for shape in tf.nest.flatten(self._shapes()))
        return tf.Variable(
            tf.zeros([size]),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def _replica(self, images: tf.Tensor, step: tf.Tensor, number: Any, stop: tf.Tensor) -> _Sums:
        """Runs on each device: its share of a (micro-)batch."""
        training, model = self._config.training, self._state.model
        size = training.batch_size // training.micro_batches
        context = tf.distribute.get_replica_context()
        local = size // context.num_replicas_in_sync
        start = number * size + tf.cast(context.replica_id_in_sync_group, tf.int32) * local
        images = tf.ensure_shape(images, (local, *model.config.image_shape))
        seed = randomness.fold(training.seed, "step", step)
        batch, own = training.batch_size, slice(start, start + local)
        z_noise = randomness.normal([batch, model.config.latent_dim], randomness.fold(seed, "z"))[own]
        u_noise = randomness.uniform([batch, *model.config.image_shape], randomness.fold(seed, "u"))[own]
        nets = _NETS[training.precision]
        # Read once for all parts of the batch.
        weights = [tf.convert_to_tensor(weight) for weight in self._state.trainable.values()]
        read = list(zip(self._keras_variables(self._state.trainable), weights, strict=True))
        # The scope catches the new moving statistics of batch normalisation, too: a step that turns out not to be
        # finite must leave them alone.
        with keras.StatelessScope(state_mapping=read) as scope, net_precision(nets), rematerialized(training.remat):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                elbo = model.elbo_from_noise(images, z_noise, u_noise, training=True)
                shares = [tf.reduce_sum(part) / training.batch_size for part in elbo[:3]]
                reconstruction, kl, dequantization = shares
                loss = reconstruction + kl_weight(training, self._state.updates) * kl + dequantization
            gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        moving = [
            tf.convert_to_tensor(scope.get_current_value(variable)) / training.micro_batches
            for variable in self._keras_variables(self._state.moving)
        ]
        # As a tensor of this device: the argument is the same on all of them, and could not be added up.
        return _Sums(gradients, moving, [*shares, tf.identity(stop)])

    def _keras_variables(self, names: Iterable[str]) -> list[keras.Variable]:
        named = self._state.model.named_variables()
        return [named[name] for name in names]

    def _judge_and_apply(self, sums: _Sums) -> StepResult:
        """Adds up what the devices found and applies it where all of it is finite."""
        training, state, strategy = self._config.training, self._state, self._strategy
        # Outside of the condition below: on several workers all must take part in every reduction.
        gradients = self._reduced(tf.distribute.ReduceOp.SUM, sums.gradients, state.trainable)
        moving = self._reduced(tf.distribute.ReduceOp.MEAN, sums.moving, state.moving)
        reconstruction, kl, dequantization, stop = (
            strategy.reduce(tf.distribute.ReduceOp.SUM, part, axis=None) for part in sums.parts
        )
        norm = tf.linalg.global_norm([strategy.experimental_local_results(gradient)[0] for gradient in gradients])
        loss = reconstruction + kl + dequantization
        applied = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        rate = learning_rate(training, state.updates)
        scale = tf.minimum(1.0, training.clip_norm / norm) if training.clip_norm else None

        self._apply(applied, gradients, moving, rate, scale)
        state.updates.assign_add(tf.cast(applied, tf.int64))
        state.skipped.assign(tf.where(applied, tf.constant(0, tf.int64), state.skipped + 1))
        state.step.assign_add(1)
        bits = state.model.nats_to_bits_per_dim(loss)
        return StepResult(bits, reconstruction, kl, dequantization, norm, rate, applied, stop)

    def _reduced(self, how: tf.distribute.ReduceOp, values: list[Any], variables: dict[str, tf.Variable]) -> list[Any]:
        """Adds up (or averages) what the devices found for each variable; all devices get the result."""
        if not variables:  # TensorFlow cannot reduce an empty list, that of a model without an encoder.
            return []
        return self._strategy.extended.batch_reduce_to(how, list(zip(values, variables.values(), strict=True)))

    def _apply(
        self, applied: tf.Tensor, gradients: list[Any], moving: list[Any], rate: tf.Tensor, scale: tf.Tensor | None
    ) -> None:
        """Updates weights, moments, moving statistics and averages, on each device its own copies.

        Written over the devices' copies by hand: `strategy.extended.update` costs milliseconds a variable to trace,
        and a deep flow has a thousand.
        """
        state, copies = self._state, self._strategy.experimental_local_results
        for replica, (updates, device) in enumerate(
            zip(copies(state.updates), self._strategy.extended.worker_devices, strict=True)
        ):

            def on_device(value: Any, replica: int = replica) -> Any:
                return None if value is None else copies(value)[replica]

            with tf.device(device):
                own, scalars = tf.identity(applied), self._adam.scalars(tf.identity(updates), rate, scale)
                lanes: list[list[tf.Operation]] = [[] for _ in range(_LANES)]
                for number, ((name, weight), gradient) in enumerate(
                    zip(state.trainable.items(), gradients, strict=True)
                ):
                    group = weight, state.means[name], state.variances[name], state.averages.get(name)
                    with tf.control_dependencies(lanes[number % _LANES]):
                        done = self._adam.apply(own, Variables(*map(on_device, group)), on_device(gradient), scalars)
                    lanes[number % _LANES] = [done]
                for (name, statistic), value in zip(state.moving.items(), moving, strict=True):
                    variable, average = on_device(statistic), on_device(state.averages.get(name))
                    new = tf.where(own, on_device(value), variable)
                    variable.assign(new, read_value=False)
                    if average is not None:
                        kept = tf.where(own, scalars.average_decay, 1.0)
                        move_average(average.handle, new, scalars._replace(average_decay=kept))
