"""Operations whose gradients keep less of the forward pass than TensorFlow's own, in what layers of a kind share.

In a graph a `tf.custom_gradient` keeps all of its arguments until the backward pass. What is traced once and called
(`runtime/tracing.py`) is differentiated by the gradients here; outside of it, in the reach of a `tf.GradientTape`,
TensorFlow's own are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf


@contextlib.contextmanager
def gradient_of(operation: str, name: str) -> Iterator[None]:
    """Gives the operations of a graph that are made inside another gradient.

    Args:
        operation: their type, as TensorFlow calls it.
        name: under which the gradient is registered (`tf.RegisterGradient`).
    """
    if tf.executing_eagerly():
        yield
        return
    with tf.compat.v1.get_default_graph().gradient_override_map({operation: name}):
        yield


def join_channels(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns maps `[..., channels]`, of channels that are known, side by side."""
    with gradient_of("ConcatV2", "tfdecouple.join_channels"):
        return tf.concat(values, -1)


@tf.RegisterGradient("tfdecouple.join_channels")
def _split(operation: tf.Operation, upstream: tf.Tensor) -> list[tf.Tensor | None]:
    *values, _ = operation.inputs
    return [*tf.split(upstream, [value.shape[-1] for value in values], -1), None]
