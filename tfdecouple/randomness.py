"""Stateless random numbers: every draw is a function of a seed, a purpose and, where it matters, an index."""

from __future__ import annotations

import secrets
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError

# TensorFlow's number of the generator that it takes by itself on CPUs and GPUs.
_PHILOX = 1


def base_seed(seed: Any) -> tf.Tensor:
    """Returns a seed as the `[2]` int32 tensor that TensorFlow's stateless functions take.

    Args:
        seed: a whole number at least 0 and below 2**32, a `[2]` integer tensor, or None for a fresh one: within a
            `tf.function` one at each of its calls, on each device, which `tf.random.set_seed` makes repeatable.

    Raises:
        UserError: for anything else.
    """
    if seed is None:
        if not tf.executing_eagerly():
            # Drawn when the graph runs: what Python draws while it is traced would be a constant of it.
            return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
        seed = secrets.randbits(31)
    if not tf.is_tensor(seed):
        seed = _checked_seed(seed)
    elif not seed.dtype.is_integer or not (seed.shape.rank is None or seed.shape.as_list() in ([], [2])):
        raise UserError(f"the seed is a tensor of {seed.dtype.name} {seed.shape}; it must be a whole number, or two")
    seed = tf.cast(seed, tf.int32)
    return tf.stack([tf.constant(0, tf.int32), seed]) if seed.shape.rank == 0 else seed


def _checked_seed(seed: Any) -> np.ndarray:
    try:
        values = np.asarray(seed)
    except ValueError:
        values = np.asarray(None)
    # Numbers beyond 64 bits are objects to NumPy.
    if (
        values.dtype.kind not in "iu"
        or values.shape not in ((), (2,))
        or (values.ndim == 0 and not 0 <= values < 2**32)
    ):
        raise UserError(f"the seed is {repr(seed)[:60]}; it must be a whole number, at least 0 and below 2**32")
    return values.astype(np.int64)


def fold(seed: Any, *parts: Any) -> tf.Tensor:
    """Derives a seed from another one.

    Args:
        seed: as for `base_seed`.
        *parts: names of purposes (text) or whole numbers (tensors too), such as a step.

    Returns:
        A `[2]` int32 tensor; equal parts give equal seeds.
    """
    result = base_seed(seed)
    for part in parts:
        if isinstance(part, str):
            part = zlib.crc32(part.encode()) & 0x7FFFFFFF
        result = tf.random.experimental.stateless_fold_in(result, tf.cast(part, tf.int32))
    return result


def normal(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Standard normal draws."""
    return tf.random.stateless_normal(shape, seed, dtype=dtype)


def uniform(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Uniform draws in [0, 1)."""
    return tf.random.stateless_uniform(shape, seed, dtype=dtype)


def pixel_noise(shape: Any, seed: tf.Tensor, normal_noise: bool) -> tf.Tensor:
    """Draws the noise of the dequantisation.

    Args:
        shape: of images.
        seed: as for `normal`.
        normal_noise: whether a learned q(u|x) makes u of it, which wants it standard normal; else it is u itself.
    """
    return (normal if normal_noise else uniform)(shape, seed)


def normal_part(count: int, start: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns part of a large draw without the rest: `reshape(normal(shape, seed), [-1])[start : start + count]`.

    Args:
        count: how many numbers.
        start: the place of the first.
        seed: as for `normal`.

    Returns:
        float32 `[count]`, to the bit what the whole draw has there.
    """
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    # Philox makes four numbers of each state of its counter, 128 bits of which the lower 64 come first.
    low = counter[0] + tf.constant(start // 4, tf.uint64)
    moved = tf.stack([low, counter[1] + tf.cast(low < counter[0], tf.uint64)])
    numbers = tf.raw_ops.StatelessRandomNormalV2(
        shape=[start % 4 + count], key=key, counter=moved, alg=_PHILOX, dtype=tf.float32
    )
    return numbers[start % 4 :]
