"""Stateless random numbers: every draw is a function of a seed, a purpose and, where it matters, an index."""

from __future__ import annotations

import secrets
import zlib
from typing import Any

import tensorflow as tf


def base_seed(seed: Any) -> tf.Tensor:
    """Returns a seed as the `[2]` int32 tensor that TensorFlow's stateless functions take.

    Args:
        seed: a whole number, a `[2]` integer tensor, or None for a fresh one.
    """
    if seed is None:
        seed = secrets.randbits(31)
    seed = tf.cast(seed, tf.int32)
    return tf.stack([tf.constant(0, tf.int32), seed]) if seed.shape.rank == 0 else seed


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
