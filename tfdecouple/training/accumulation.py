"""Gradient accumulation: what the micro-batches of a batch add up to."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf


class Accumulator:
    """Sums of tensors, on each device its own. Create it inside the scope of the strategy; add and take on a device.

    All of them lie in one long vector: a thousand variables take long to trace.

    Args:
        shapes: `tf.TensorShape`s of what is added up, in any structure that `tf.nest` knows.
    """

    def __init__(self, shapes: Any):
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in tf.nest.flatten(shapes)]
        self._total = tf.Variable(
            tf.zeros([sum(self._sizes)]),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def add(self, values: Any) -> None:
        """Adds float32 tensors of these shapes, in this structure."""
        self._total.assign_add(tf.concat([tf.reshape(value, [-1]) for value in tf.nest.flatten(values)], 0))

    def take(self) -> Any:
        """Returns the sums in their structure, and begins anew."""
        total = tf.identity(self._total)
        with tf.control_dependencies([total]):
            self._total.assign(tf.zeros_like(total))
        flat = tf.nest.pack_sequence_as(self._shapes, tf.split(total, self._sizes))
        return tf.nest.map_structure(tf.reshape, flat, self._shapes)
