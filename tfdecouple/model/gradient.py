"""The gradient of the bound for a slice of a batch: what every step of training takes, the trainer's and Keras'."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import TrainingConfig
from tfdecouple.layers import backward_memory, net_precision
from tfdecouple.model.networks import Networks
from tfdecouple.runtime.execution import jit_compiled

# Of the encoder's and coupling nets' products, by `training.precision`.
NETS = {"float32": "float32", "tf32": "tf32", "mixed_bfloat16": "bfloat16"}
# Largest error of inversion, of any image, of a step that is applied: gradients are then off by less than 1e-4 of the
# largest number of each in float32, and by about a tenth of what rounding the nets' operands makes of them. Ordinary
# errors are a tenth of these bounds and less (docs/training.md).
INVERSION_BOUND = {"float32": 1e-4, "tf32": 4e-3, "mixed_bfloat16": 6e-2}

# Weights of so many numbers at most are taken together, as one vector. Most are scales and shifts.
_SMALL = 2**15


class Share(NamedTuple):
    """What a device computes of a batch, each its share of the batch's mean; reduced, what all of them computed.

    Attributes:
        gradients: of the trainable weights, in their order.
        moving: new moving statistics, in their order.
        terms: of the bound, mean nats per image: reconstruction, kl, dequantization.
        inversion_error: how far a backward pass that inverts was off (see `backward_memory`), of the worst image.
    """

    gradients: list[Any]
    moving: list[Any]
    terms: list[Any]
    inversion_error: Any


def differentiate(
    model: Networks,
    images: tf.Tensor,
    labels: tf.Tensor | None,
    training: TrainingConfig,
    *,
    seed: tf.Tensor,
    own: slice,
    batch_size: int | tf.Tensor,
    trainable: Sequence[keras.Variable],
    moving: Sequence[keras.Variable],
    kl_weight: float | tf.Tensor,
    weights: Sequence[tf.Tensor] | None = None,
) -> Share:
    """Computes a device's share of a step: the noise of its images, their bound and its gradient; changes nothing.

    The noise of an image depends on the seed and its place in the batch: it is a slice of the noise of the whole batch.

    Args:
        model: an initialised model.
        images: uint8 `[n, height, width, channels]`, those of a device.
        labels: of the images, int32 `[n]`; None for none.
        training: holds `precision`, `memory` and `jit_compile`.
        seed: of the step.
        own: places of the images in the batch.
        batch_size: images of the whole batch, over all devices.
        trainable: weights to differentiate by.
        moving: moving statistics of batch normalisation.
        kl_weight: of the KL term in the loss, a scalar.
        weights: values of the trainable weights, where they have been read already.
    """
    config = model.config
    z = randomness.normal([batch_size, config.latent_dim], randomness.fold(seed, "z"))[own]
    shape = [batch_size, *config.image_shape]
    u = randomness.pixel_noise(shape, randomness.fold(seed, "u"), config.has_dequantizer)[own]
    # Read once for all shards of the batch.
    weights = weights or [tf.convert_to_tensor(weight) for weight in trainable]
    meter = tf.zeros([])
    values = list(zip(trainable, weights, strict=True))
    with _in_place(values, training, meter) as scope:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*weights, meter])
            elbo = model.elbo_from_noise(images, z, u, training=True, labels=labels)
            count = tf.cast(batch_size, tf.float32)
            terms = [tf.reduce_sum(term) / count for term in (elbo.reconstruction, elbo.kl, elbo.dequantization)]
            reconstruction, kl, dequantization = terms
            loss = reconstruction + kl_weight * kl + dequantization
        *gradients, error = tape.gradient(loss, [*weights, meter], unconnected_gradients="zero")
    # None where nothing was assigned: of a network that is not trainable.
    found = [(variable, scope.get_current_value(variable)) for variable in moving]
    statistics = [tf.convert_to_tensor(variable if new is None else new) for variable, new in found]
    return Share(gradients, statistics, terms, error)


class Verdict(NamedTuple):
    """Whether a step can be trusted: boolean scalars, and the norm of its gradient.

    Attributes:
        finite: whether loss and gradient are.
        inverted: whether the backward pass got back what the forward pass had, within `INVERSION_BOUND`.
        norm: of all gradients.
    """

    finite: tf.Tensor
    inverted: tf.Tensor
    norm: tf.Tensor


def judge_step(share: Share, precision: str) -> Verdict:
    """Returns whether the sum of all devices' shares, each gradient on one device, can be trusted."""
    norm = global_norm(share.gradients)
    finite = tf.math.is_finite(tf.add_n(share.terms)) & tf.math.is_finite(norm)
    # NaN compares as false, and so counts as too large.
    return Verdict(finite, share.inversion_error <= INVERSION_BOUND[precision], norm)


def in_slot(value: tf.Tensor, slot: int | tf.Tensor, slots: int) -> tf.Tensor:
    """Returns a vector of zeros but for a value: the largest of the sum of such vectors is the largest value.

    Devices and micro-batches can add up, and know no largest.

    Args:
        value: a scalar.
        slot: its place, which no other has.
        slots: how many there are.
    """
    return tf.where(tf.equal(tf.range(slots), slot), value, tf.zeros_like(value))


@contextmanager
def _in_place(
    values: list[tuple[keras.Variable, tf.Tensor]], training: TrainingConfig, meter: tf.Tensor
) -> Iterator[keras.StatelessScope]:
    """Computes with these values of the trainable weights, in the precision that training asks for.

    The scope catches the new moving statistics of batch normalisation, too: a step that turns out not to be finite
    must leave them alone.
    """
    with (
        keras.StatelessScope(state_mapping=values) as scope,
        net_precision(NETS[training.precision]),
        backward_memory(training.memory, meter),
        jit_compiled(training.jit_compile),
    ):
        yield scope


def flattened(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns all numbers of some tensors as one vector."""
    return tf.concat([tf.reshape(value, [-1]) for value in values], 0)


def is_small(shape: Sequence[int]) -> bool:
    """Returns whether a weight is one of those that are taken together."""
    return math.prod(shape) <= _SMALL


def global_norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the norm of all gradients as one vector; the small ones are put together, which is one operation."""
    small = [gradient for gradient in gradients if is_small(gradient.shape)]
    large = [gradient for gradient in gradients if not is_small(gradient.shape)]
    return tf.linalg.global_norm([*large, flattened(small)] if small else large)
