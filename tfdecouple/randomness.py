"""Stateless random numbers, which depend only on a seed, the name of their purpose, and possibly an index."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError

# TensorFlow's raw operations select Philox, the default random generator on CPUs and GPUs, by this integer.
_PHILOX = 1


def make_seed(seed: Any) -> tf.Tensor:
    """Converts a seed to an int32 tensor `[2]`, the form that TensorFlow's stateless functions need.

    Args:
        seed: a whole number at least 0 and below 2**32, a `[2]` integer tensor, or None for a new random seed. If it is
            None in a `tf.function`, each call, on each device, draws a new seed; `tf.random.set_seed` makes these
            repeatable. Any other value raises UserError.
    """
    if seed is None:
        if not tf.executing_eagerly():
            # TensorFlow draws the seed in each call; a seed that Python draws during tracing would be a constant.
            return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
        seed = secrets.randbits(31)
    if not tf.is_tensor(seed):
        values = np.asarray(seed)
        # Whole numbers beyond 64 bits are refused: NumPy stores them as objects, of another kind than "i" and "u".
        is_whole = values.dtype.kind in "iu" and values.shape in ((), (2,))
        if not is_whole or (values.ndim == 0 and not 0 <= values < 2**32):
            raise UserError(f"the seed is {repr(seed)[:60]}; it must be a whole number, at least 0 and below 2**32")
        seed = values.astype(np.int64)
    elif not seed.dtype.is_integer or not (seed.shape.rank is None or seed.shape.as_list() in ([], [2])):
        raise UserError(f"the seed is a tensor of {seed.dtype.name} {seed.shape}; it must be a whole number, or two")
    seed = tf.cast(seed, tf.int32)
    return tf.stack([tf.constant(0, tf.int32), seed]) if seed.shape.rank == 0 else seed


def derive_seed(seed: Any, *parts: Any) -> tf.Tensor:
    """Returns a new seed, int32 `[2]`, computed from `seed` and `parts`, such as a purpose and a training step.

    Each part is a string, or a whole number, also as a scalar tensor. Equal arguments give equal seeds.
    """
    result = make_seed(seed)
    for part in parts:
        if isinstance(part, str):
            part = zlib.crc32(part.encode()) & 0x7FFFFFFF
        result = tf.random.experimental.stateless_fold_in(result, tf.cast(part, tf.int32))
    return result


def draw_pixel_noise(shape: Any, seed: tf.Tensor, normal_noise: bool) -> tf.Tensor:
    """Returns float32 noise of `shape` for dequantisation: normal for a learned q(u|x), otherwise uniform in [0, 1)."""
    return (tf.random.stateless_normal if normal_noise else tf.random.stateless_uniform)(shape, seed)


def draw_normal_part(count: int, start: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns the part `[start : start + count]` of a large standard normal draw, without drawing the rest.

    The result is float32 `[count]`, equal to the bit to
    `reshape(tf.random.stateless_normal(shape, seed), [-1])[start:][:count]`.
    """
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    # Philox makes four random numbers from each value of its 128-bit counter, stored as [lower, upper 64 bits]. The
    # counter is therefore advanced by a fourth of the numbers to skip.
    low = counter[0] + tf.constant(start // 4, tf.uint64)
    advanced = tf.stack([low, counter[1] + tf.cast(low < counter[0], tf.uint64)])
    numbers = tf.raw_ops.StatelessRandomNormalV2(
        shape=[start % 4 + count], key=key, counter=advanced, alg=_PHILOX, dtype=tf.float32
    )
    return numbers[start % 4 :]


def draw_z_noise(latent_dim: int, seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns standard normal noise, float32 `[n, latent_dim]`, with which evaluations draw z.

    An evaluation draws z several times for an image. Row i is the noise of draw `number[i]` for the image with index
    `index[i]` in its split, and depends only on these two integers and the seed.
    """
    return _draw_by_index(
        lambda own: tf.random.stateless_normal([latent_dim], derive_seed(own, "z")), seed, number, index
    )


def draw_u_noise(
    image_shape: Sequence[int], seed: Any, number: tf.Tensor, index: tf.Tensor, normal_noise: bool = False
) -> tf.Tensor:
    """Returns dequantisation noise for evaluations, float32 `[n, *image_shape]`; arguments are as in `draw_z_noise`."""
    return _draw_by_index(
        lambda own: draw_pixel_noise(image_shape, derive_seed(own, "u"), normal_noise), seed, number, index
    )


def _draw_by_index(draw: Callable[[tf.Tensor], tf.Tensor], seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    base = derive_seed(seed, "evaluate")
    return tf.map_fn(lambda which: draw(derive_seed(base, *which)), (number, index), fn_output_signature=tf.float32)
