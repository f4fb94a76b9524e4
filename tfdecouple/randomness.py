"""Stateless random numbers: a draw depends only on a seed, the name of the draw's purpose, and possibly an index."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError

# TensorFlow's number for Philox, the default random generator on CPUs and GPUs.
_PHILOX = 1


def make_seed(seed: Any) -> tf.Tensor:
    """Returns a seed as the `[2]` int32 tensor that TensorFlow's stateless functions take.

    Args:
        seed: a whole number at least 0 and below 2**32, a `[2]` integer tensor, or None for a fresh seed. In a
            `tf.function` each call, on each device, draws a fresh seed, which `tf.random.set_seed` makes repeatable.
            Any other value raises UserError.
    """
    if seed is None:
        if not tf.executing_eagerly():
            # A number that Python draws during tracing would be a constant, so TensorFlow draws in each call.
            return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
        seed = secrets.randbits(31)
    if not tf.is_tensor(seed):
        values = np.asarray(seed)
        # For NumPy whole numbers beyond 64 bits are objects, not of the kinds "i" and "u".
        is_whole = values.dtype.kind in "iu" and values.shape in ((), (2,))
        if not is_whole or (values.ndim == 0 and not 0 <= values < 2**32):
            raise UserError(f"the seed is {repr(seed)[:60]}; it must be a whole number, at least 0 and below 2**32")
        seed = values.astype(np.int64)
    elif not seed.dtype.is_integer or not (seed.shape.rank is None or seed.shape.as_list() in ([], [2])):
        raise UserError(f"the seed is a tensor of {seed.dtype.name} {seed.shape}; it must be a whole number, or two")
    seed = tf.cast(seed, tf.int32)
    return tf.stack([tf.constant(0, tf.int32), seed]) if seed.shape.rank == 0 else seed


def derive_seed(seed: Any, *parts: Any) -> tf.Tensor:
    """Returns a seed, int32 `[2]`, that is a function of another seed and some parts.

    A part is the name of a purpose, or a whole number (also a tensor), for example the number of a step.
    """
    result = make_seed(seed)
    for part in parts:
        if isinstance(part, str):
            part = zlib.crc32(part.encode()) & 0x7FFFFFFF
        result = tf.random.experimental.stateless_fold_in(result, tf.cast(part, tf.int32))
    return result


def draw_pixel_noise(shape: Any, seed: tf.Tensor, normal_noise: bool) -> tf.Tensor:
    """Returns dequantisation noise of a shape: standard normal for a learned q(u|x), otherwise u, uniform in [0, 1)."""
    return (tf.random.stateless_normal if normal_noise else tf.random.stateless_uniform)(shape, seed)


def draw_normal_part(count: int, start: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns a part of a large normal draw, float32 `[count]`, without drawing the rest.

    The result equals `reshape(tf.random.stateless_normal(shape, seed), [-1])[start : start + count]` to the bit.
    """
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    # Philox makes four numbers from each value of a 128-bit counter, which is given as two integers, lower bits first.
    low = counter[0] + tf.constant(start // 4, tf.uint64)
    advanced = tf.stack([low, counter[1] + tf.cast(low < counter[0], tf.uint64)])
    numbers = tf.raw_ops.StatelessRandomNormalV2(
        shape=[start % 4 + count], key=key, counter=advanced, alg=_PHILOX, dtype=tf.float32
    )
    return numbers[start % 4 :]


def draw_z_noise(latent_dim: int, seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the standard normal noise with which evaluations draw z, float32 `[n, latent_dim]`.

    Each of the n rows depends only on the seed, on `number[i]`, the number of the draw for an image, and on `index[i]`,
    the index of the image in its split.
    """
    return _draw_by_index(
        lambda own: tf.random.stateless_normal([latent_dim], derive_seed(own, "z")), seed, number, index
    )


def draw_u_noise(
    image_shape: Sequence[int], seed: Any, number: tf.Tensor, index: tf.Tensor, normal_noise: bool = False
) -> tf.Tensor:
    """Returns the dequantisation noise of evaluations, `[n, *image_shape]`, with arguments as for `draw_z_noise`."""
    return _draw_by_index(
        lambda own: draw_pixel_noise(image_shape, derive_seed(own, "u"), normal_noise), seed, number, index
    )


def _draw_by_index(draw: Callable[[tf.Tensor], tf.Tensor], seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    base = derive_seed(seed, "evaluate")
    return tf.map_fn(lambda which: draw(derive_seed(base, *which)), (number, index), fn_output_signature=tf.float32)
