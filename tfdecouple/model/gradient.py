"""The gradient of the evidence lower bound for a part of a batch, and the check whether a training step is applied."""

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

# The precision of the coupling nets for each `training.precision`; the encoder uses float32 instead of bfloat16.
NETS = {"float32": "float32", "tf32": "tf32", "mixed_bfloat16": "bfloat16"}
# Largest inversion error (relative difference between stored and recovered activations of an image) with which a step
# is applied. At the bound for float32, gradients change by less than 1e-4 of the largest entry; at the other bounds, by
# a tenth of the change from rounding the nets' operands. Usual errors are below 1/10 of the bound (docs/training.md).
INVERSION_BOUND = {"float32": 1e-4, "tf32": 4e-3, "mixed_bfloat16": 6e-2}

# Weights with at most this many entries are joined to one vector, so that a graph has fewer operations.
_LARGEST_JOINED_SIZE = 2**15


class Share(NamedTuple):
    """One device's share of the results of a training step: the step's results are the sums of all devices' shares.

    The field `moving` is an exception: the step uses its mean over the devices.

    Attributes:
        gradients: gradients for the trainable weights, in the order of the weights.
        moving: new moving statistics of batch normalisation, in the order of the variables.
        terms: reconstruction, kl and dequantization, the terms of the bound, in nats, each summed over the device's
            images and divided by the image count of the whole batch.
        inversion_error: the largest inversion error of an image (see `backward_memory`), a scalar, or a vector with
            the scalar at one index and zeros elsewhere (`put_in_slot`).
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
    """Returns one device's share of a training step: terms and gradients of the bound for the device's images.

    The function changes no variable. The noise of an image depends only on the seed and on the index of the image in
    the whole batch, not on the number of devices.

    Args:
        model: an initialised model.
        images: the device's images, uint8 `[n, height, width, channels]`.
        labels: labels of the images, int32 `[n]`; None for no labels.
        training: options of training, of which `precision`, `memory` and `jit_compile` are used.
        seed: seed of the step's noise.
        own: the slice of the whole batch that contains the device's images.
        batch_size: count of images in the whole batch, over all devices.
        trainable: variables of the weights for which gradients are computed.
        moving: variables with the moving statistics of batch normalisation.
        kl_weight: weight of the KL term in the loss, a scalar.
        weights: tensors with the values of `trainable`; None to read the values from the variables.
    """
    config = model.config
    z = tf.random.stateless_normal([batch_size, config.latent_dim], randomness.derive_seed(seed, "z"))[own]
    shape = [batch_size, *config.image_shape]
    u = randomness.draw_pixel_noise(shape, randomness.derive_seed(seed, "u"), config.has_dequantizer)[own]
    # Each weight becomes one tensor, which all shards use (parts of the batch that run in parallel).
    weights = weights or [tf.convert_to_tensor(weight) for weight in trainable]
    # The backward pass returns the inversion error as the gradient of this dummy scalar (see `backward_memory`).
    probe = tf.zeros([])
    # The scope keeps new moving statistics of batch normalisation out of the variables, so that a step can be skipped.
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
    # A network that is not trainable computes no new moving statistics, so its variables' current values are returned.
    new = [(variable, scope.get_current_value(variable)) for variable in moving]
    statistics = [tf.convert_to_tensor(variable if value is None else value) for variable, value in new]
    return Share(gradients, statistics, terms, error)


class Verdict(NamedTuple):
    """The verdict on a training step: whether the step can be applied, and the norm of its gradient.

    Attributes:
        finite: whether loss and gradient are finite, a boolean scalar.
        inverted: whether the inversion error is within `INVERSION_BOUND`, a boolean scalar.
        norm: the Euclidean norm of all gradients together, a scalar.
    """

    finite: tf.Tensor
    inverted: tf.Tensor
    norm: tf.Tensor


def judge_step(share: Share, precision: str) -> Verdict:
    """Returns the `Verdict` on a training step, given the sum of all devices' shares and the `training.precision`."""
    norm = compute_gradient_norm(share.gradients)
    finite = tf.math.is_finite(tf.add_n(share.terms)) & tf.math.is_finite(norm)
    # The comparison is false for NaN, so an inversion error of NaN counts as too large.
    return Verdict(finite, share.inversion_error <= INVERSION_BOUND[precision], norm)


def put_in_slot(value: tf.Tensor, slot: int | tf.Tensor, slots: int) -> tf.Tensor:
    """Returns a vector `[slots]` with the scalar `value` at the index `slot`, and 0 elsewhere.

    The vectors of all devices and micro-batches, each with another `slot`, are added up. The sum contains all their
    values, so its largest entry is the maximum, which a sum of the scalars would not give.
    """
    return tf.where(tf.equal(tf.range(slots), slot), value, tf.zeros_like(value))


def flatten_and_join(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the entries of all tensors in `values` as one vector, one tensor after the other."""
    # All tensors share one constant, because each operation of a training step lengthens the start of a run.
    flat = tf.constant([-1])
    return tf.concat([value if len(value.shape) == 1 else tf.reshape(value, flat) for value in values], 0)


def is_small_weight(shape: Sequence[int]) -> bool:
    """Returns whether a weight of this shape is small enough to be joined with other small weights to one vector."""
    return math.prod(shape) <= _LARGEST_JOINED_SIZE


def compute_gradient_norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the Euclidean norm of all gradients together, a scalar."""
    # Small gradients are joined, because every separate gradient would add an operation to the graph.
    small = [gradient for gradient in gradients if is_small_weight(gradient.shape)]
    large = [gradient for gradient in gradients if not is_small_weight(gradient.shape)]
    return tf.linalg.global_norm([*large, flatten_and_join(small)] if small else large)
