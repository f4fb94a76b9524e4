"""Stateless random numbers: every draw is a function of a seed, a purpose and possibly an index."""

from __future__ import annotations

import secrets
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError

# TensorFlow's number of its default generator on CPUs and GPUs.
_PHILOX = 1


def make_seed(seed: Any) -> tf.Tensor:
    """Returns a seed as the `[2]` int32 tensor that TensorFlow's stateless functions take.

    Args:
        seed: a whole number at least 0 and below 2**32, a `[2]` integer tensor, or None for a fresh one: within a
            `tf.function` one at each of its calls, on each device, which `tf.random.set_seed` makes repeatable.

    Raises:
        UserError: for anything else.
    """
    if seed is None:
        if not tf.executing_eagerly():
            # A number that Python draws while a graph is traced would be a constant of the graph.
            return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
        seed = secrets.randbits(31)
    if not tf.is_tensor(seed):
        try:
            values = np.asarray(seed)
        except ValueError:
            values = np.asarray(None)
        # Numbers beyond 64 bits are objects to NumPy.
        is_whole = values.dtype.kind in "iu" and values.shape in ((), (2,))
        if not is_whole or (values.ndim == 0 and not 0 <= values < 2**32):
            raise UserError(f"the seed is {repr(seed)[:60]}; it must be a whole number, at least 0 and below 2**32")
        seed = values.astype(np.int64)
    elif not seed.dtype.is_integer or not (seed.shape.rank is None or seed.shape.as_list() in ([], [2])):
        raise UserError(f"the seed is a tensor of {seed.dtype.name} {seed.shape}; it must be a whole number, or two")
    seed = tf.cast(seed, tf.int32)
    return tf.stack([tf.constant(0, tf.int32), seed]) if seed.shape.rank == 0 else seed


def derive_seed(seed: Any, *parts: Any) -> tf.Tensor:
    """Returns a seed derived from another seed, int32 `[2]`; equal parts give equal seeds.

    Args:
        seed: as for `make_seed`.
        *parts: names of purposes (text) or whole numbers (tensors too), such as a step.
    """
    result = make_seed(seed)
    for part in parts:
        if isinstance(part, str):
            part = zlib.crc32(part.encode()) & 0x7FFFFFFF
        result = tf.random.experimental.stateless_fold_in(result, tf.cast(part, tf.int32))
    return result


def draw_normal(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Returns standard normal draws."""
    return tf.random.stateless_normal(shape, seed, dtype=dtype)


def draw_uniform(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Returns uniform draws in [0, 1)."""
    return tf.random.stateless_uniform(shape, seed, dtype=dtype)


def draw_pixel_noise(shape: Any, seed: tf.Tensor, normal_noise: bool) -> tf.Tensor:
    """Returns the noise of the dequantisation for images of a shape.

    It is standard normal with `normal_noise`, for a learned q(u|x), which turns it into u; otherwise it is u itself.
    """
    return (draw_normal if normal_noise else draw_uniform)(shape, seed)


def draw_normal_part(count: int, start: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns part of a large draw without drawing the rest, float32 `[count]`.

    It is `reshape(draw_normal(shape, seed), [-1])[start : start + count]`, to the bit.
    """
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    # Philox makes four numbers from each value of its counter, whose 128 bits are two integers, the lower one first.
    low = counter[0] + tf.constant(start // 4, tf.uint64)
    advanced = tf.stack([low, counter[1] + tf.cast(low < counter[0], tf.uint64)])
    numbers = tf.raw_ops.StatelessRandomNormalV2(
        shape=[start % 4 + count], key=key, counter=advanced, alg=_PHILOX, dtype=tf.float32
    )
    return numbers[start % 4 :]
