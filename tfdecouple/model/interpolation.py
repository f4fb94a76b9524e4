"""Interpolation between two codes of images, on the straight line or on the arc around the origin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError
from tfdecouple.numerics.arithmetic import get_sizes

# Codes count as parallel if the sine of the angle between them is at most this. No unique arc connects parallel codes.
_LEAST_SINE = 1e-6


def interpolate_codes(
    a: tf.Tensor, b: tf.Tensor, positions: Sequence[float] | np.ndarray, path: str = "lerp"
) -> tf.Tensor:
    """Returns codes at `positions` on the path from a to b; positions 0 and 1 give a and b to the bit.

    Standard normal codes in many dimensions lie near a sphere around the origin. The middle of the line between two
    independent codes has only 1/sqrt(2) of their length, like a sample at a low temperature. On the path "slerp"
    (spherical linear interpolation, Shoemake 1985) the direction turns at a constant speed from a to b, and the length
    changes linearly. The path "lerp" is the line. Any other `path` raises UserError.

    The codes a and b are float32 `[n, ...]`, and the result for k positions is float32 `[n, k, ...]`.
    """
    if path not in ("lerp", "slerp"):
        raise UserError(f"path is {path!r}; it must be lerp or slerp")
    a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
    axes = [1] * (len(a.shape) - 1)
    position = tf.constant(positions, tf.float32)[None]
    of_a, of_b = _weigh_arc(a, b, positions) if path == "slerp" else (1 - position, position)
    of_a, of_b = (tf.reshape(weight, [-1, len(positions), *axes]) for weight in (of_a, of_b))
    # Positions 0 and 1 give a and b exactly, because 1 * a + 0 * b equals a to the bit.
    return of_a * a[:, None] + of_b * b[:, None]


def _weigh_arc(a: tf.Tensor, b: tf.Tensor, positions: Sequence[float] | np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 weights `[n, k]` of a and of b, whose weighted sums are the codes at k positions on the arc."""
    width = math.prod(get_sizes(a)[1:])
    a, b = (tf.reshape(tf.cast(code, tf.float64), [-1, width]) for code in (a, b))
    position = tf.constant(positions, tf.float64)[None]
    length_a, length_b = (tf.norm(code, axis=1)[:, None] for code in (a, b))
    both = length_a * length_b
    cosine = tf.math.divide_no_nan(tf.reduce_sum(a * b, 1)[:, None], both)
    angle = tf.acos(tf.clip_by_value(cosine, -1, 1))
    sine = tf.sin(angle)
    has_arc = (sine > _LEAST_SINE) & (both > 0)
    # For parallel codes `tf.where` computes the quotients below and drops them; divisors of 1 avoid division by zero.
    sine, length_a, length_b = (tf.where(has_arc, value, 1) for value in (sine, length_a, length_b))
    length = (1 - position) * length_a + position * length_b
    of_a = tf.where(has_arc, length / length_a * tf.sin((1 - position) * angle) / sine, 1 - position)
    of_b = tf.where(has_arc, length / length_b * tf.sin(position * angle) / sine, position)
    return tf.cast(of_a, tf.float32), tf.cast(of_b, tf.float32)
