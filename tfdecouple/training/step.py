"""One step of training: draw, bound, gradient on every device; reduce, judge and apply once for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import Config
from tfdecouple.model.gradient import Share, differentiate, in_slot, judge_step
from tfdecouple.runtime.precision import full_float32, tensor_float_32
from tfdecouple.training.schedule import (
    draw_patterns,
    kl_weight,
    learning_rate,
    noise,
    patterns,
    with_noise,
    with_patterns,
)
from tfdecouple.training.state import WINDOW, TrainingState


class Wishes(NamedTuple):
    """What a process tells all workers with a step.

    Attributes:
        stop: whether it was asked to stop. The step is taken all the same.
        read_after: after how many steps it would read from the devices again, see `loop.ReadSchedule`.
    """

    stop: bool = False
    read_after: int = 1


NO_WISHES = Wishes()


class StepResult(NamedTuple):
    """What a step reports: scalars on a device, or, once they are read, plain numbers.

    Attributes:
        bits_per_dim: mean over the batch.
        reconstruction, kl, dequantization: the terms of the bound, mean nats per image.
        gradient_norm: global norm of the gradient, before any clipping.
        learning_rate: of this update.
        applied: False where nothing was changed: loss or gradient norm were not finite, `inversion_error` was above
            its bound, or training has halted.
        stop: above 0 where a worker was asked to stop; the same on all of them.
        read_after: the mean of what the workers wished for; the same on all of them.
        inversion_error: with `training.memory=invert` how far the backward pass was from what it should get back: the
            largest difference of an image at the input of each stage relative to the largest number there, added up
            over the stages; of all images of the batch the largest. Else 0.
    """

    bits_per_dim: Any
    reconstruction: Any
    kl: Any
    dequantization: Any
    gradient_norm: Any
    learning_rate: Any
    applied: Any
    stop: Any
    read_after: Any
    inversion_error: Any = 0.0

    def read(self) -> StepResult:
        """Waits for the step and returns plain numbers."""
        return StepResult(*(np.asarray(value).item() for value in self))

    def figures(self) -> tf.Tensor:
        """Returns the figures of `WINDOW` of a result that was not read, float32 `[len(WINDOW)]`."""
        return tf.stack([getattr(self, name) for name in WINDOW])


class TrainStep:
    """The step function of a run.

    The noise of an image depends on seed, step and the image's index in the batch, not on the device that happens to
    process it: each device draws the noise of the whole batch and takes its slice. So any number of devices takes
    the same step, while devices differ and a repeated step repeats.

    Micro-batches are processed one after the other, each with its slice of the noise. Batch normalisation sees a
    micro-batch (as in the reference), and its moving statistics move once per update, towards the mean of the
    micro-batches' statistics.

    Args:
        config: the run.
        state: what the step changes; created in the strategy's scope.
        strategy: the devices.
    """

    def __init__(self, config: Config, state: TrainingState, strategy: tf.distribute.Strategy):
        self.state = state
        self._training = config.training
        self._strategy = strategy
        # Of a device and a micro-batch each.
        self._slots = config.training.passes * strategy.num_replicas_in_sync
        with strategy.scope():
            self._accumulator: Any = Accumulator(self._shapes()) if config.training.passes > 1 else None
        # One trace each: the shapes never change. There is no Python control flow on tensors for AutoGraph to turn
        # into graphs, and looking for it in loops over a thousand variables takes seconds.
        self._whole = tf.function(self._take_whole, autograph=False)
        self._add = tf.function(self._add_micro_batch, autograph=False)
        self._finish = tf.function(self._finish_micro_batches, autograph=False)

    def __call__(self, micro_batches: Sequence[Any], step: int, wishes: Wishes = NO_WISHES) -> StepResult:
        """Takes one step: dispatches it, and on a GPU does not wait for it.

        Nothing in its graph asks the host either: a condition on what a device has computed would.

        Args:
            micro_batches: the (distributed) uint8 images of each, `batch_size / micro_batches` in number; for a model
                that knows labels, pairs of images and labels, int32.
            step: number of steps taken before.
            wishes: of this process; the step's result tells all workers.
        """
        step, wishes = tf.constant(step, tf.int32), tf.constant([float(wish) for wish in wishes])
        with tensor_float_32() if self._training.precision == "tf32" else full_float32():
            if self._accumulator is None:
                return self._whole(micro_batches[0], step, wishes)
            for number, examples in enumerate(micro_batches):
                self._add(examples, step, tf.constant(number))
            return self._finish(wishes)

    # --- what is traced: a whole batch at once, or its micro-batches one by one ---

    def _take_whole(self, examples: Any, step: tf.Tensor, wishes: tf.Tensor) -> StepResult:
        shares, small = self._strategy.run(self._share, args=(examples, step, 0))
        return self._update(shares, small, wishes)

    def _add_micro_batch(self, examples: Any, step: tf.Tensor, number: tf.Tensor) -> None:
        def add(examples: Any) -> None:
            self._accumulator.add(self._share(examples, step, number)[0])

        self._strategy.run(add, args=(examples,))

    def _finish_micro_batches(self, wishes: tf.Tensor) -> StepResult:
        shares = self._strategy.run(self._accumulator.take)
        return self._update(shares, self._strategy.run(self.state.optimizer.read_small), wishes)

    # --- on each device ---

    def _share(self, examples: Any, step: tf.Tensor, number: Any) -> tuple[Share, list[tf.Tensor]]:
        """Draws, bounds and differentiates: this device's slice of the batch, or of micro-batch `number`.

        With it come the values of the weights that are updated together: to read them again is an operation for each.
        """
        training, state = self._training, self.state
        images, labels = examples if state.model.config.has_classes else (examples, None)
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
        size = training.batch_size // training.passes
        count = size // self._strategy.num_replicas_in_sync
        start = number * size + replica * count
        seed, own = randomness.fold(training.seed, "step", step), slice(start, start + count)
        images = tf.ensure_shape(images, (count, *state.model.config.image_shape))
        images = self._augment(images, seed, own)
        if labels is not None:
            labels = tf.ensure_shape(labels, (count,))
        values = {name: tf.convert_to_tensor(weight) for name, weight in state.trainable.items()}
        share = differentiate(
            state.model,
            images,
            labels,
            training,
            seed=seed,
            own=own,
            batch_size=training.batch_size,
            trainable=self._keras_variables(state.trainable),
            moving=self._keras_variables(state.moving),
            kl_weight=kl_weight(training, state.updates),
            weights=list(values.values()),
        )
        slot = number * self._strategy.num_replicas_in_sync + replica
        share = share._replace(inversion_error=in_slot(share.inversion_error, slot, self._slots))
        small = [values[name] for name in state.optimizer.small]
        if training.passes > 1:
            share = share._replace(moving=[statistic / training.passes for statistic in share.moving])
        return share, small

    def _augment(self, images: tf.Tensor, seed: tf.Tensor, own: slice) -> tf.Tensor:
        """Returns images with the noise and patterns of the update; `own` is their place in the batch."""
        training, updates = self._training, self.state.updates
        shape = [training.batch_size, *images.shape[1:]]
        if training.noise:
            drawn = randomness.normal(shape, randomness.fold(seed, "images"))[own]
            images = with_noise(images, noise(training, updates), drawn)
        if training.patterns:
            chances = randomness.uniform(shape[:1], randomness.fold(seed, "chances"))[own]
            drawn = draw_patterns(shape, randomness.fold(seed, "patterns"))[own]
            images = with_patterns(images, patterns(training, updates), chances, drawn)
        return images

    def _keras_variables(self, names: Iterable[str]) -> list[keras.Variable]:
        named = self.state.model.named_variables()
        return [named[name] for name in names]

    def _shapes(self) -> Share:
        """Returns the shapes of a device's share."""
        return Share(
            [tf.TensorShape(variable.shape) for variable in self.state.trainable.values()],
            [tf.TensorShape(variable.shape) for variable in self.state.moving.values()],
            [tf.TensorShape(())] * 3,
            tf.TensorShape([self._slots]),
        )

    # --- for all devices ---

    def _update(self, shares: Share, small: list[Any], wishes: tf.Tensor) -> StepResult:
        """Adds up what the devices found and applies it where it can be trusted: finite, and inverted well."""
        training, state = self._training, self.state
        # Outside of any condition: on several workers all must take part in every reduction.
        found = self._reduce(shares)
        # As tensors of the devices: the argument is the same on all of them, and could not be added up.
        wished = self._strategy.reduce(
            tf.distribute.ReduceOp.SUM, self._strategy.run(tf.identity, args=(wishes,)), axis=None
        )
        reconstruction, kl, dequantization = found.terms
        loss = reconstruction + kl + dequantization
        error = tf.reduce_max(found.inversion_error)
        first = [self._strategy.experimental_local_results(gradient)[0] for gradient in found.gradients]
        finite, inverted, norm = judge_step(found._replace(gradients=first, inversion_error=error), training.precision)
        applied = finite & inverted & tf.equal(state.halted, 0)

        rate = learning_rate(training, state.updates)
        scale = tf.minimum(1.0, training.clip_norm / norm) if training.clip_norm else None
        self._strategy.run(
            state.optimizer.apply, args=(applied, found.gradients, small, found.moving, state.updates, rate, scale)
        )
        result = StepResult(
            bits_per_dim=state.model.nats_to_bits_per_dim(loss),
            reconstruction=reconstruction,
            kl=kl,
            dequantization=dequantization,
            gradient_norm=norm,
            learning_rate=rate,
            applied=applied,
            stop=wished[0],
            read_after=wished[1] / self._strategy.num_replicas_in_sync,
            inversion_error=error,
        )
        lost = tf.where(finite & ~inverted, error, 0.0)
        state.count_step(result.figures(), applied, lost)
        return result

    def _reduce(self, shares: Share) -> Share:
        """Adds up the devices' shares (of the statistics the mean); all devices get the gradients and statistics."""
        add, mean = tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN

        packs = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=self._training.bytes_per_pack)

        def to_devices(how: tf.distribute.ReduceOp, values: list[Any], variables: dict[str, tf.Variable]) -> list[Any]:
            pairs = list(zip(values, variables.values(), strict=True))
            # TensorFlow cannot reduce an empty list, which a model without an encoder has.
            return list(self._strategy.extended.batch_reduce_to(how, pairs, packs)) if pairs else []

        return Share(
            to_devices(add, shares.gradients, self.state.trainable),
            to_devices(mean, shares.moving, self.state.moving),
            [self._strategy.reduce(add, term, axis=None) for term in shares.terms],
            self._strategy.reduce(add, shares.inversion_error, axis=None),
        )


class Accumulator:
    """Sums of tensors, on each device its own. Create it inside the scope of the strategy; add and take on a device.

    All of them lie in one long vector: a thousand variables take long to trace.

    Args:
        shapes: `tf.TensorShape`s of what is added up, in any structure that `tf.nest` knows.
    """

    def __init__(self, shapes: Any):
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in tf.nest.flatten(shapes)]
        self._total = tf.Variable(
            tf.zeros([sum(self._sizes)]),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def add(self, values: Any) -> None:
        """Adds float32 tensors of these shapes, in this structure."""
        self._total.assign_add(tf.concat([tf.reshape(value, [-1]) for value in tf.nest.flatten(values)], 0))

    def take(self) -> Any:
        """Returns the sums in their structure, and begins anew."""
        total = tf.identity(self._total)
        with tf.control_dependencies([total]):
            self._total.assign(tf.zeros_like(total))
        flat = tf.nest.pack_sequence_as(self._shapes, tf.split(total, self._sizes))
        return tf.nest.map_structure(tf.reshape, flat, self._shapes)
