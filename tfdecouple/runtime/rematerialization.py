"""What becomes of the wide maps inside a coupling net: kept for the backward pass, computed again there, or dropped."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

from tfdecouple.runtime.shards import run_in_turn

WideNet = Callable[..., tf.Tensor]

_state = threading.local()


@contextlib.contextmanager
def rematerialized(on: bool) -> Iterator[None]:
    """Runs the coupling nets that are called (or traced) inside for a backward pass, with their maps kept or not.

    The maps inside a net are many times as wide as those between layers, so that nearly all of the memory of a training
    step is theirs. Computing them again takes most of one more forward pass. Values and gradients are the same to the
    bit. Outside of this context gradients are right, too; but there the nets run as is best where nobody asks for any.

    Args:
        on: whether to compute the maps again in the backward pass.
    """
    before = rematerialization()
    _state.on = on
    try:
        yield
    finally:
        _state.on = before


def rematerialization() -> bool | None:
    """Returns what `rematerialized` was told, or None where it is not in force."""
    return getattr(_state, "on", None)


def wide(net: WideNet) -> WideNet:
    """Decorates a net whose maps are wide inside: they are kept as `rematerialized` says.

    Where no backward pass is announced, some images at a time go through it, so few that their maps stay in a cache.

    Args:
        net: from narrow maps `[batch, height, width, channels]`, a vector for each image (or None) and weights to
            narrow maps, image by image; the last axis of the first weight is the width.
    """

    @functools.wraps(net)
    def run(x: tf.Tensor, vectors: tf.Tensor | None, *weights: tf.Tensor) -> tf.Tensor:
        def apply(x: tf.Tensor, vectors: tf.Tensor | None) -> tf.Tensor:
            return net(x, vectors, *weights)

        on = rematerialization()
        if on:
            return _computed_again(net, x, vectors, *weights)
        return run_in_turn(apply, x, vectors, width=weights[0].shape[-1]) if on is None else apply(x, vectors)

    return run


def _computed_again(net: WideNet, x: tf.Tensor, vectors: tf.Tensor | None, *weights: tf.Tensor) -> tf.Tensor:
    # Not `tf.recompute_grad` nor `keras.remat`, which would look for variables: within a `keras.StatelessScope` tensors
    # stand for them.
    def apply(x: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        return net(x, None, *rest) if vectors is None else net(x, *rest)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # Not before they are wanted.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(value) for value in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                y = apply(*again)
            # The narrow result itself is not computed again: in a graph, what nobody asks for does not run.
            return tape.gradient(y, again, output_gradients=upstream)

        return apply(*inputs), gradient

    return run(x, *([] if vectors is None else [vectors]), *weights)
