"""What callers may pass for a number or an array, checked before TensorFlow sees it, whose own messages say little."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import UserError, one_line


def as_tensor(value: Any, name: str, error: type[UserError] = UserError) -> tf.Tensor:
    """Returns a value as a tensor.

    Args:
        value: an array, a tensor, or lists of numbers of one shape.
        name: what it is called in messages.
        error: raised for what is none of these.
    """
    if value is None:
        raise error(f"{name} is None; it must be an array")
    if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        raise error(f"{name} is a {type(value).__name__}; it must be a dense array")
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(part, np.ndarray) for part in value):
            # TensorFlow would make int32 of bytes in a list.
            value = np.stack(value)
        return tf.convert_to_tensor(value)
    # Lists of several lengths, mixed types, objects: NumPy and TensorFlow raise what they like.
    except (ValueError, TypeError, OverflowError, AttributeError, tf.errors.OpError) as problem:
        shown = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise error(
            f"{name} is {shown} that cannot become a tensor; it must be an array of numbers, of one shape throughout"
        ) from problem


def as_floats(value: Any, name: str) -> tf.Tensor:
    """Returns a value as a float32 tensor.

    Raises:
        UserError: for what holds no real numbers.
    """
    tensor = as_tensor(value, name)
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer):
        raise UserError(f"{name} is of type {tensor.dtype.name}; it must be float32")
    return tf.cast(tensor, tf.float32)


def whole_number(value: Any, name: str) -> int:
    """Returns a whole number from 0 on, given as Python's, NumPy's or TensorFlow's.

    Raises:
        UserError: for anything else.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        whole = operator.index(value.numpy() if isinstance(value, tf.Tensor) else value)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        whole = -1
    if whole < 0:
        raise UserError(f"{name} is {_shown(value)}; it must be a whole number, at least 0")
    return whole


def number(value: Any, name: str) -> float | tf.Tensor:
    """Returns a finite number from 0 on, given as Python's, NumPy's or TensorFlow's; while a graph is traced, a tensor.

    Raises:
        UserError: for anything else.
    """
    if tf.is_tensor(value) and not hasattr(value, "numpy") and value.dtype.is_floating and value.shape.rank == 0:
        return tf.cast(value, tf.float32)
    found = _real(value)
    if found.shape != () or not found >= 0:
        raise UserError(f"{name} is {_shown(value)}; it must be a finite number, at least 0")
    return float(found)


def numbers(value: Any, name: str) -> np.ndarray:
    """Returns finite numbers, float64 `[n]`, of a list of them or of one.

    Raises:
        UserError: for anything else.
    """
    found = np.atleast_1d(_real(value))
    if found.ndim != 1 or np.isnan(found).any():
        raise UserError(f"{name} is {_shown(value)}; it must be a number or a list of numbers, all finite")
    return found


def _real(value: Any) -> np.ndarray:
    """Returns a value as float64, NaN where it is not all finite real numbers."""
    try:
        found = np.asarray(value)
        # Of other kinds are truth values, text, and whole numbers beyond 64 bits. An empty list is one of floats.
        found = found.astype(np.float64) if found.dtype.kind in "iuf" else np.asarray(math.nan)
    except (ValueError, TypeError, NotImplementedError, OverflowError):
        return np.asarray(math.nan)
    return found if np.isfinite(found).all() else np.asarray(math.nan)


def _shown(value: Any) -> str:
    return one_line(repr(value), 60)
