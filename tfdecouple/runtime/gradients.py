"""Operations whose gradients keep less of the forward pass than a `tf.custom_gradient`, in what layers of a kind share.

In a graph a `tf.custom_gradient` keeps all of its arguments until the backward pass. What is traced once and called
(`runtime/tracing.py`) for a backward pass that was announced is differentiated by the gradients here; elsewhere, in the
reach of a `tf.GradientTape` and in what is saved, TensorFlow's own are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tfdecouple.runtime.rematerialization import backward_mode


@contextlib.contextmanager
def gradient_of(operation: str, name: str) -> Iterator[None]:
    """Gives the operations of a graph that are made inside another gradient, where a backward pass is announced.

    Args:
        operation: their type, as TensorFlow calls it.
        name: under which the gradient is registered (`tf.RegisterGradient`).
    """
    # Keras takes any such operation of what it saves for a `tf.custom_gradient`.
    if tf.executing_eagerly() or backward_mode() is None:
        yield
        return
    with tf.compat.v1.get_default_graph().gradient_override_map({operation: name}):
        yield


def join_channels(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns maps `[..., channels]`, of channels that are known, side by side.

    As `shapes.side_by_side`, which is for what a tape records: in what is traced and called it would keep the maps.
    """
    with gradient_of("ConcatV2", "TfdecoupleJoinChannels"):
        return tf.concat(values, -1)


@tf.RegisterGradient("TfdecoupleJoinChannels")
def _split(operation: tf.Operation, upstream: tf.Tensor) -> list[tf.Tensor | None]:
    *values, _ = operation.inputs
    return [*tf.split(upstream, [value.shape[-1] for value in values], -1), None]
