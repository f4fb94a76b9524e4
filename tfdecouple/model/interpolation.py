"""The places between two codes: on the line through both, or on the arc around the origin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError

PATHS = ("lerp", "slerp")
# Of the sine of the angle between two codes: below, one points along the other, and there is no one arc between them.
_LEAST_SINE = 1e-6


def require_path(path: str, name: str = "path") -> None:
    """Refuses a path that there is not.

    Raises:
        UserError: naming it as `name`.
    """
    if path not in PATHS:
        raise UserError(f"{name} is {path!r}; it must be {' or '.join(PATHS)}")


def between(a: tf.Tensor, b: tf.Tensor, places: Sequence[float] | np.ndarray, path: str = "lerp") -> tf.Tensor:
    """Returns codes at some places of the way from a to b; a itself at 0 and b itself at 1, to the last bit.

    Codes that are drawn from a standard normal in many dimensions lie near a sphere around the origin. The middle of
    the line between two of them is shorter by a factor of the square root of 2: to the decoder it is a draw of a low
    temperature. "slerp" (spherical linear interpolation, Shoemake 1985) turns from one to the other at an even speed,
    while the length goes evenly from that of the one to that of the other.

    Args:
        a: float32 `[n, ...]`.
        b: the same shape.
        places: k numbers; 0 is a, 1 is b.
        path: "lerp" for the line, "slerp" for the arc.

    Returns:
        float32 `[n, k, ...]`.

    Raises:
        UserError: for another path.
    """
    require_path(path)
    rank = len(a.shape)
    place = tf.reshape(tf.constant(places, tf.float32), [1, -1] + [1] * (rank - 1))
    of_a, of_b = 1 - place, place
    if path == "slerp":
        of_a, of_b = (tf.reshape(weight, [-1, len(places)] + [1] * (rank - 1)) for weight in _arc(a, b, places))
    # Both ends are exact: 1 * a + 0 * b is a, to the last bit.
    return of_a * a[:, None] + of_b * b[:, None]


def _arc(a: tf.Tensor, b: tf.Tensor, places: Sequence[float] | np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what a and b weigh at each place of the arc, float32 `[n, k]` each."""
    width = math.prod(a.shape[1:])
    a, b = (tf.reshape(tf.cast(code, tf.float64), [-1, width]) for code in (a, b))
    place = tf.constant(places, tf.float64)[None]
    length_a, length_b = (tf.norm(code, axis=1)[:, None] for code in (a, b))
    both = length_a * length_b
    cosine = tf.math.divide_no_nan(tf.reduce_sum(a * b, 1)[:, None], both)
    angle = tf.acos(tf.clip_by_value(cosine, -1, 1))
    sine = tf.sin(angle)
    has_arc = (sine > _LEAST_SINE) & (both > 0)
    # Where there is none, no division by zero either: its result is not taken.
    sine, length_a, length_b = (tf.where(has_arc, value, 1) for value in (sine, length_a, length_b))
    length = (1 - place) * length_a + place * length_b
    of_a = tf.where(has_arc, length / length_a * tf.sin((1 - place) * angle) / sine, 1 - place)
    of_b = tf.where(has_arc, length / length_b * tf.sin(place * angle) / sine, place)
    return tf.cast(of_a, tf.float32), tf.cast(of_b, tf.float32)
