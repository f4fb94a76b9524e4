"""Many small tensors that training changes together, kept as one vector; each is there by its name, too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.trackable import base


class Vector:
    """One variable that holds what many would: an operation then changes all of them.

    Create it inside the scope of the strategy that trains.

    Args:
        shapes: of what it holds, by name, float32.

    Attributes:
        variable: the vector, zeros at first.
        pieces: what it holds, by name.
    """

    def __init__(self, shapes: Mapping[str, tf.TensorShape]):
        counts = [math.prod(shape) for shape in shapes.values()]
        self.variable = tf.Variable(tf.zeros([sum(counts)]), trainable=False)
        ends = itertools.accumulate(counts)
        self.pieces = {
            name: Piece(self.variable, end - count, shape)
            for (name, shape), count, end in zip(shapes.items(), counts, ends, strict=True)
        }

    def assign(self, values: Mapping[str, tf.Tensor]) -> None:
        """Changes all of it, by name, on all devices."""
        self.variable.assign(tf.concat([tf.reshape(values[name], [-1]) for name in self.pieces], 0))


class Piece(base.Trackable):
    """A part of a vector in the place of a variable: read, assigned, and in checkpoints as a variable of its own.

    Args:
        vector: the variable.
        start: where the part begins.
        shape: of what it stands for.
    """

    dtype = tf.float32

    def __init__(self, vector: tf.Variable, start: int, shape: tf.TensorShape):
        self._vector = vector
        self._part = slice(start, start + math.prod(shape))
        self.shape = tf.TensorShape(shape)

    def read_value(self) -> tf.Tensor:
        """Returns its value."""
        return tf.reshape(tf.convert_to_tensor(self._vector)[self._part], self.shape)

    def numpy(self) -> np.ndarray:
        """Returns its value as an array."""
        return self.read_value().numpy()

    def assign(self, value: Any) -> None:
        """Changes it, on all devices.

        Raises:
            ValueError: for another shape.
        """
        value = tf.convert_to_tensor(value, self.dtype)
        if value.shape != self.shape:
            raise ValueError(f"a value of shape {value.shape} does not fit a piece of shape {self.shape}")
        for copy in self.copies():
            # What `copy._vector[self._part].assign` comes to, but for reading that part first.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=copy._vector.handle,
                begin=[self._part.start],
                end=[self._part.stop],
                strides=[1],
                value=tf.reshape(value, [-1]),
            )

    def assign_add(self, value: Any) -> None:
        """Adds to it, on all devices."""
        self.assign(self.read_value() + value)

    def copies(self) -> tuple[Piece, ...]:
        """Returns it on each device."""
        distributed = isinstance(self._vector, tf.distribute.DistributedValues)
        vectors = self._vector.values if distributed else (self._vector,)
        return tuple(Piece(vector, self._part.start, self.shape) for vector in vectors)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype)

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {base.VARIABLE_VALUE_KEY: self.read_value()}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, tf.Tensor]) -> None:
        self.assign(restored_tensors[base.VARIABLE_VALUE_KEY])
