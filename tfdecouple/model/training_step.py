"""A training step of `train.py` and of Keras' `fit`: from a batch to updated weights on all devices of a strategy."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import TrainingConfig
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.model import objective
from tfdecouple.model.base_model import BaseModel
from tfdecouple.model.step_effects import augment_images, compute_contrast, compute_kl_weight, draw_crops
from tfdecouple.numerics.arithmetic import compute_gradient_norm, get_sizes, sum_over_devices
from tfdecouple.numerics.kernels import use_kernels

# Largest inversion error (relative difference between stored and recovered activations of an image) with which a step
# is applied. At the bound for float32, gradients change by less than 1e-4 of the largest entry; at the other bounds, by
# a tenth of the change from rounding the nets' operands. Usual errors are below 1/10 of the bound (docs/training.md).
INVERSION_BOUND = {"float32": 1e-4, "tf32": 4e-3, "mixed_bfloat16": 6e-2}
# The error of a step in which a device has no image.
NO_IMAGE = "a device got no image of a batch"


class DeviceResult(NamedTuple):
    """One device's part of the results of a training step: the step's results are the sums over the devices.

    The field `moving` is an exception: the step uses its mean over the devices.

    Attributes:
        gradients: gradients for the trainable weights, in the order of the weights.
        moving: new moving statistics of batch normalisation, in the order of the variables.
        terms: reconstruction, kl and dequantization, the terms of the bound, in nats, each summed over the device's
            images and divided by the image count of the whole batch.
        inversion_error: the largest inversion error of an image (see `Traced`), placed in a vector
            (`place_in_vector`), or as a scalar.
        stop: above 0 if a signal has asked a process to stop.
    """

    gradients: list[tf.Tensor]
    moving: list[tf.Tensor]
    terms: list[tf.Tensor]
    inversion_error: tf.Tensor
    stop: tf.Tensor


def locate_images(images: tf.Tensor, trains: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the index of this device's first image in the batch of all devices, and the size of that batch.

    The devices hold consecutive parts of the batch, which may differ in size: the last batch of an epoch is smaller.
    With `trains`, running the graph raises InvalidArgumentError, with the text `NO_IMAGE`, if a device has no image,
    whose gradient TensorFlow cannot compute.
    """
    count, replica = get_sizes(images)[0], tf.distribute.get_replica_context()
    devices = replica.num_replicas_in_sync
    if devices == 1:
        return 0, count
    index = tf.cast(replica.replica_id_in_sync_group, tf.int32)
    counts = sum_over_devices(place_in_vector(tf.convert_to_tensor(count), index, devices))
    if trains:
        # All devices know all counts, so all stop here; otherwise those with images would wait for the others.
        with tf.control_dependencies([tf.debugging.assert_positive(counts, NO_IMAGE)]):
            counts = tf.identity(counts)
    return tf.reduce_sum(counts[:index]), tf.reduce_sum(counts)


def place_in_vector(value: tf.Tensor, position: int | tf.Tensor, length: int) -> tf.Tensor:
    """Returns a vector `[length]` with the scalar `value` at the index `position`, and 0 elsewhere.

    The vectors of all devices and micro-batches, each with another `position`, are added up. The sum contains all their
    values, so its largest entry is the maximum, which a sum of the scalars would not give.
    """
    return tf.where(tf.equal(tf.range(length), position), value, tf.zeros_like(value))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingStep:
    """Training steps of a model: `take` updates the weights on all devices by one batch.

    To save memory, a caller may instead call `differentiate` for each of `training.micro_batches` parts of the batch,
    add up the results of each device, and pass the sums to `update`.

    Attributes:
        model: an initialised model.
        training: the options of training.
        trainable: variables of the weights that are trained.
        moving: variables with the moving statistics of batch normalisation.
        apply: function that changes the weights and returns the step's result. It gets the sums of all devices' results
            as a `DeviceResult`; whether the step may be applied, because the sums are finite and the inversion error is
            within `INVERSION_BOUND`; and the norm of the gradient. It is called once, in cross-replica context.
    """

    model: BaseModel
    training: TrainingConfig
    trainable: Sequence[keras.Variable]
    moving: Sequence[keras.Variable]
    apply: Callable[[DeviceResult, tf.Tensor, tf.Tensor], object]

    def take(self, *arguments: tf.Tensor | None, **options: Any) -> Any:
        """Takes a step on the whole batch and returns the result of `apply`; call it on each device of the strategy.

        The arguments are those of `differentiate`.
        """
        result = self.differentiate(*arguments, **options)
        return tf.distribute.get_replica_context().merge_call(self.update, args=(result,))

    def differentiate(
        self,
        images: tf.Tensor,
        labels: tf.Tensor | None,
        seed: tf.Tensor,
        updates: int | tf.Tensor,
        *,
        place: tuple[tf.Tensor, tf.Tensor] | None = None,
        number: int | tf.Tensor = 0,
        stop: tf.Tensor | float = 0.0,
    ) -> DeviceResult:
        """Returns one device's part of a step; call it on each device of the strategy.

        Args:
            images: the device's images, uint8 `[n, height, width, channels]`.
            labels: labels of the images, int32 `[n]`; None for no labels.
            seed: seed of the step's noise.
            updates: the count of updates before this one, an integer scalar.
            place: the result of `locate_images`; None if all devices have equally many images.
            number: the index of the micro-batch.
            stop: above 0 if a signal has asked this process to stop.
        """
        training, config, replica = self.training, self.model.config, tf.distribute.get_replica_context()
        count, devices = get_sizes(images)[0], replica.num_replicas_in_sync
        index = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        start, size = place or (index * count, devices * count)
        start += number * size
        part, batch_size = slice(start, start + count), size * training.micro_batches
        images = augment_images(images, training, updates, seed, part, batch_size)
        z = tf.random.stateless_normal([batch_size, config.latent_dim], randomness.derive_seed(seed, "z"))[part]
        shape = [batch_size, *config.image_shape]
        u = randomness.draw_pixel_noise(shape, randomness.derive_seed(seed, "u"), config.has_dequantizer)[part]
        # Each weight becomes one tensor, which all shards use (parts of the batch that run in parallel).
        weights = [tf.convert_to_tensor(weight) for weight in self.trainable]
        # The backward pass returns the images' inversion errors as the gradient of these zeros (see `Traced`).
        probe = tf.zeros([count])
        mode = RunMode(training.memory, training.precision, training.jit_compile)
        runner = functools.partial(self.model.flow.runner, mode=mode, probe=probe)
        # The scope keeps new moving statistics of batch normalisation out of the variables, so a step can be skipped.
        with (
            keras.StatelessScope(state_mapping=list(zip(self.trainable, weights, strict=True))) as scope,
            use_kernels(mode.kernels),
        ):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*weights, probe])
                # An empty batch has no statistics, so the encoder normalises as in evaluation.
                options = {"labels": labels, "training": images.shape[0] != 0 or devices > 1, "runner": runner}
                bins = self.model.quantizer.find_bins(images)
                bound, _ = objective.evaluate_bound(self.model, bins, z, u, **options)
                # A network that is not trainable computes no new statistics, so its variables' values are returned.
                new = [(variable, scope.get_current_value(variable)) for variable in self.moving]
                moving = [tf.convert_to_tensor(variable if value is None else value) for variable, value in new]
                total = tf.cast(batch_size, tf.float32)
                terms = [tf.reduce_sum(term) / total for term in (bound.reconstruction, bound.kl, bound.dequantization)]
                reconstruction, kl, dequantization = terms
                loss = reconstruction + compute_kl_weight(training, updates) * kl + dequantization
                if training.contrast and self.model.encoder is not None:
                    # Evaluations encode whole images, so the statistics of crops do not enter the moving ones above.
                    crops = draw_crops(self.model.quantizer.place_at_edges(bins), seed, part, batch_size)
                    codes, _ = self.model.encoder(crops, training=options["training"])
                    loss += training.contrast * tf.reduce_sum(compute_contrast(codes)) / total
            *gradients, image_errors = tape.gradient(loss, [*weights, probe], unconnected_gradients="zero")
        if training.micro_batches > 1:
            # Moving statistics change once per update, towards the mean of the micro-batches' statistics.
            moving = [statistic / training.micro_batches for statistic in moving]
        # The step needs the largest inversion error, but results of devices are added up.
        errors = place_in_vector(
            tf.reduce_max(image_errors), number * devices + index, training.micro_batches * devices
        )
        return DeviceResult(gradients, moving, terms, errors, tf.identity(stop))

    def update(self, strategy: tf.distribute.Strategy, results: DeviceResult) -> Any:
        """Sums the devices' results, checks the sums, and returns the result of `apply`; for cross-replica context.

        All sums stay on the devices. `Strategy.reduce` would copy them to the host, for which the update would wait.
        """
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=self.training.bytes_per_pack)

        def reduce_to_devices(
            reduction: tf.distribute.ReduceOp, values: list[tf.Tensor], variables: Sequence[keras.Variable]
        ) -> list[tf.Tensor]:
            pairs = [(value, variable.value) for value, variable in zip(values, variables, strict=True)]
            # A model without an encoder has no moving statistics, and TensorFlow cannot reduce an empty list.
            return list(strategy.extended.batch_reduce_to(reduction, pairs, options)) if pairs else []

        # All workers take part in these collective sums, so they are computed even if the update is then skipped. A sum
        # goes to the devices of its variable; the variable `initialized` has a copy on each device.
        scalars = [*results.terms, results.inversion_error, results.stop]
        variables = [*self.trainable, *[self.model.initialized] * len(scalars)]
        sums = reduce_to_devices(tf.distribute.ReduceOp.SUM, [*results.gradients, *scalars], variables)
        moving = reduce_to_devices(tf.distribute.ReduceOp.MEAN, results.moving, self.moving)
        count = len(results.gradients)
        first = [strategy.experimental_local_results(value)[0] for value in sums]
        *terms, errors, stop = first[count:]
        error, norm = tf.reduce_max(errors), compute_gradient_norm(first[:count])
        # The comparison is false for NaN, so an inversion error of NaN counts as too large.
        is_inverted = error <= INVERSION_BOUND[self.training.precision]
        is_sound = tf.math.is_finite(tf.add_n(terms)) & tf.math.is_finite(norm) & is_inverted
        return self.apply(DeviceResult(sums[:count], moving, terms, error, stop), is_sound, norm)
