"""The gradient of the bound for a slice of a batch, for a step of the trainer or of Keras' `fit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import TrainingConfig
from tfdecouple.layers import backward_memory, net_precision
from tfdecouple.model.networks import Networks
from tfdecouple.runtime.execution import jit_compiled

# Precision of products in the encoder and the coupling nets, for each value of `training.precision`.
NETS = {"float32": "float32", "tf32": "tf32", "mixed_bfloat16": "bfloat16"}
# Largest inversion error of an image with which a step is applied. In float32 an error at this bound changes gradients
# by less than 1e-4 of the largest entry; in the other precisions, by a tenth of what rounding the operands of the nets
# changes. Ordinary errors are at most a tenth of these bounds (docs/training.md).
INVERSION_BOUND = {"float32": 1e-4, "tf32": 4e-3, "mixed_bfloat16": 6e-2}

# Largest number of entries of a weight that is joined with other weights to one vector.
_SMALL = 2**15


class Share(NamedTuple):
    """One device's summand of a step's results, which are the sums over all devices.

    Attributes:
        gradients: gradients for the trainable weights, in the order of the weights.
        moving: new moving statistics, in the order of the variables.
        terms: reconstruction, kl and dequantization, the terms of the bound, in mean nats per image of the batch.
        inversion_error: the largest inversion error of an image (see `backward_memory`).
    """

    gradients: list[Any]
    moving: list[Any]
    terms: list[Any]
    inversion_error: Any


def differentiate_bound(
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
    """Returns a device's summand of a step's results: bound and gradient for its images; no variable changes.

    The noise of an image depends on the seed and on the position of the image in the whole batch.

    Args:
        model: an initialised model.
        images: the device's images, uint8 `[n, height, width, channels]`.
        labels: labels of the images, int32 `[n]`; None for no labels.
        training: options of training, of which `precision`, `memory` and `jit_compile` are used.
        seed: seed of the step's noise.
        own: positions of the device's images in the whole batch.
        batch_size: number of images in the whole batch, over all devices.
        trainable: weights to differentiate by.
        moving: moving statistics of batch normalisation.
        kl_weight: weight of the KL term in the loss, a scalar.
        weights: values of the trainable weights; None to read them.
    """
    config = model.config
    z = tf.random.stateless_normal([batch_size, config.latent_dim], randomness.derive_seed(seed, "z"))[own]
    shape = [batch_size, *config.image_shape]
    u = randomness.draw_pixel_noise(shape, randomness.derive_seed(seed, "u"), config.has_dequantizer)[own]
    # Each weight is read once, so that all shards of the batch use one tensor.
    weights = weights or [tf.convert_to_tensor(weight) for weight in trainable]
    # The gradient of this dummy scalar is the inversion error (see `backward_memory`).
    probe = tf.zeros([])
    # The scope catches the new moving statistics of batch normalisation, because a skipped step must not change them.
    with (
        keras.StatelessScope(state_mapping=list(zip(trainable, weights, strict=True))) as scope,
        net_precision(NETS[training.precision]),
        backward_memory(training.memory, probe),
        jit_compiled(training.jit_compile),
    ):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*weights, probe])
            elbo = model.elbo_from_noise(images, z, u, training=True, labels=labels)
            count = tf.cast(batch_size, tf.float32)
            terms = [tf.reduce_sum(term) / count for term in (elbo.reconstruction, elbo.kl, elbo.dequantization)]
            reconstruction, kl, dequantization = terms
            loss = reconstruction + kl_weight * kl + dequantization
        *gradients, error = tape.gradient(loss, [*weights, probe], unconnected_gradients="zero")
    # The scope has no new value for the statistics of a network that is not trainable; they keep the old value.
    new = [(variable, scope.get_current_value(variable)) for variable in moving]
    statistics = [tf.convert_to_tensor(variable if value is None else value) for variable, value in new]
    return Share(gradients, statistics, terms, error)


class Verdict(NamedTuple):
    """The verdict on a step: whether its result can be applied, and the norm of its gradient.

    Attributes:
        finite: whether loss and gradient are finite, a boolean scalar.
        inverted: whether the inversion error is within `INVERSION_BOUND`, a boolean scalar.
        norm: the norm of all gradients together, a scalar.
    """

    finite: tf.Tensor
    inverted: tf.Tensor
    norm: tf.Tensor


def judge_step(share: Share, precision: str) -> Verdict:
    """Returns the verdict on a step, given the sum of the shares of all devices."""
    norm = compute_gradient_norm(share.gradients)
    finite = tf.math.is_finite(tf.add_n(share.terms)) & tf.math.is_finite(norm)
    # The comparison is false for NaN, so an inversion error of NaN counts as too large.
    return Verdict(finite, share.inversion_error <= INVERSION_BOUND[precision], norm)


def put_in_slot(value: tf.Tensor, slot: int | tf.Tensor, slots: int) -> tf.Tensor:
    """Returns a vector of `slots` numbers, which are 0 except for `value` in one slot.

    Results of devices and micro-batches are added up. So that the maximum of their values remains known, each value
    takes a slot of its own in a vector; the largest entry of the sum of the vectors is the maximum.
    """
    return tf.where(tf.equal(tf.range(slots), slot), value, tf.zeros_like(value))


def flatten_and_join(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns one vector with the entries of all tensors, one tensor after the other."""
    return tf.concat([tf.reshape(value, [-1]) for value in values], 0)


def is_small_weight(shape: Sequence[int]) -> bool:
    """Returns whether a weight of this shape is small enough to be joined with other weights to one vector."""
    return math.prod(shape) <= _SMALL


def compute_gradient_norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the norm of all gradients together, a scalar."""
    # Small gradients are joined, because every separate gradient would add an operation to the graph.
    small = [gradient for gradient in gradients if is_small_weight(gradient.shape)]
    large = [gradient for gradient in gradients if not is_small_weight(gradient.shape)]
    return tf.linalg.global_norm([*large, flatten_and_join(small)] if small else large)
