"""Stateless random numbers, which depend only on a seed, the name of their purpose, and possibly an index."""

import math
import secrets
import zlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError

# A seed: a whole number, an integer tensor `[2]`, or None for a fresh seed.
Seed: TypeAlias = "int | tf.Tensor | None"
# TensorFlow's raw operations select Philox, the default random generator on CPUs and GPUs, by this integer.
_PHILOX = 1
# Constants of Philox 4x32, and the key with which TensorFlow hashes a seed to a key and a counter.
_PHILOX_FACTORS, _PHILOX_STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
_SCRAMBLING_KEY = (0x3EC8F720, 0x02461E29)
_MASK = 2**32 - 1


def make_seed(seed: Seed) -> tf.Tensor:
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
    value: tf.Tensor = seed
    if not tf.is_tensor(seed):
        values = np.asarray(seed)
        # Whole numbers beyond 64 bits are refused: NumPy stores them as objects, of another kind than "i" and "u".
        is_whole = values.dtype.kind in "iu" and values.shape in ((), (2,))
        if not is_whole or (values.ndim == 0 and not 0 <= values < 2**32):
            raise UserError(f"the seed is {repr(seed)[:60]}; it must be a whole number, at least 0 and below 2**32")
        value = values.astype(np.int64)
    elif not value.dtype.is_integer or not (value.shape.rank is None or value.shape.as_list() in ([], [2])):
        raise UserError(f"the seed is a tensor of {value.dtype.name} {value.shape}; it must be a whole number, or two")
    value = tf.cast(value, tf.int32)
    return tf.stack([tf.constant(0, tf.int32), value]) if value.shape.rank == 0 else value


def derive_seed(seed: Seed, *parts: str | int | tf.Tensor) -> tf.Tensor:
    """Returns a new seed, int32 `[2]`, computed from `seed` and `parts`, such as a purpose and a training step.

    Each part is a string, or a whole number, also as a scalar tensor. Equal arguments give equal seeds.
    """
    # TensorFlow would draw int32 numbers on a GPU, and the host would wait to copy each number.
    with tf.device("CPU:0"):
        result = make_seed(seed)
        for part in parts:
            number = _hash_text(part) if isinstance(part, str) else part
            result = tf.random.experimental.stateless_fold_in(result, tf.cast(number, tf.int32))
        return result


def _hash_text(text: str) -> int:
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def draw_pixel_noise(shape: Sequence[int | tf.Tensor], seed: tf.Tensor, normal_noise: bool) -> tf.Tensor:
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


def draw_z_noise(latent_dim: int, seed: Seed, number: int | tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns standard normal noise, float32 `[n, latent_dim]`, with which evaluations draw z.

    An evaluation draws z several times for an image. Row i is the noise of the draw `number`, a whole number, for the
    image with index `index[i]` in its split, and depends only on these two integers and the seed.
    """
    return draw_noise_by_index([latent_dim], derive_seed(seed, "evaluate", number), index, "z")


def draw_u_noise(
    image_shape: Sequence[int], seed: Seed, number: int | tf.Tensor, index: tf.Tensor, normal_noise: bool = False
) -> tf.Tensor:
    """Returns dequantisation noise for evaluations, float32 `[n, *image_shape]`; arguments are as in `draw_z_noise`."""
    return draw_noise_by_index(image_shape, derive_seed(seed, "evaluate", number), index, "u", normal_noise)


def draw_noise_by_index(
    shape: Sequence[int], seed: tf.Tensor, index: tf.Tensor, purpose: str, normal_noise: bool = True
) -> tf.Tensor:
    """Returns noise, float32 `[n, *shape]`: standard normal, or uniform in [0, 1) without `normal_noise`.

    Row i is the noise that TensorFlow's stateless functions draw with the seed `derive_seed(seed, index[i], purpose)`,
    up to rounding, whatever else is in `index`, integers `[n]` in [0, 2**31). All rows are computed together by
    elementwise arithmetic. A loop over the rows would make the host wait for a GPU in each iteration.
    """
    n, count = tf.size(index), math.prod(shape)
    # A CPU computes the last numbers of a tensor without vector registers, which changes the last bits of a sine. With
    # a multiple of 8 blocks of 4 numbers, rows fill the registers and do not depend on their place in the batch.
    blocks = 8 * -(-count // 32)
    # Folding a number into a seed gives a hash of the seed, here an integer on the host, and then the number.
    seeds = tf.cast(derive_seed(seed, 0)[0], tf.uint64) & _MASK, tf.cast(index, tf.uint64)
    key, counter = _compute_key_and_counter(*seeds)
    hashed = _run_philox([0, 0, *counter], key)[0]
    key, counter = _compute_key_and_counter(hashed, tf.constant(_hash_text(purpose), tf.uint64))
    columns = [number[:, None] for number in (*key, *counter)]
    bits = _run_philox([tf.constant(np.arange(blocks), tf.uint64), 0, *columns[2:]], columns[:2])
    uniform = tf.cast(tf.stack(bits, -1) & (2**23 - 1), tf.float32) * 2.0**-23
    if normal_noise:
        # Pairs of uniform numbers become pairs of normal ones (Box and Muller), as in TensorFlow.
        length = tf.sqrt(-2 * tf.math.log(tf.maximum(uniform[..., ::2], 1e-7)))
        angle = 2 * math.pi * uniform[..., 1::2]
        uniform = tf.stack([length * tf.sin(angle), length * tf.cos(angle)], -1)
    return tf.reshape(tf.reshape(uniform, [n, 4 * blocks])[:, :count], [n, *shape])


def _compute_key_and_counter(first: tf.Tensor, second: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Returns Philox' key and the upper half of its counter for the two numbers of a seed, as TensorFlow makes them."""
    # A negative int32 has ones in the upper half of its 64 bits.
    halves = [half for number in (first, second) for half in (number, tf.bitwise.right_shift(number, 31) * _MASK)]
    mixed = _run_philox(halves, _SCRAMBLING_KEY)
    return mixed[:2], mixed[2:]


def _run_philox(counter: Sequence[tf.Tensor], key: Sequence[tf.Tensor | int]) -> list[tf.Tensor]:
    """Returns four uint64 tensors of random 32-bit integers: Philox 4x32 with ten rounds (Salmon et al., 2011)."""
    a, b, c, d = counter
    mask, shift, *factors = (tf.constant(number, tf.uint64) for number in (_MASK, 32, *_PHILOX_FACTORS))
    for number in range(10):
        first, second = (part + number * step & mask for part, step in zip(key, _PHILOX_STEPS, strict=True))
        left, right = factors[0] * a, factors[1] * c
        a, b = tf.bitwise.right_shift(right, shift) ^ b ^ first, right & mask
        c, d = tf.bitwise.right_shift(left, shift) ^ d ^ second, left & mask
    return [a, b, c, d]
