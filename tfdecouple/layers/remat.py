"""Rematerialisation: computing a step's activations again in the backward pass instead of keeping them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

_state = threading.local()

Program = Callable[..., tuple[tf.Tensor, tf.Tensor]]


@contextlib.contextmanager
def rematerialized(on: bool) -> Iterator[None]:
    """Runs the flow's steps that are called (or traced) inside with or without keeping their activations.

    With it, the memory of a training step no longer grows by all activations of the coupling nets with every step of
    flow, but by the step's input alone, for one more forward pass. Values and gradients are the same to the bit.

    Args:
        on: whether to compute activations again in the backward pass.
    """
    before = is_rematerialized()
    _state.on = on
    try:
        yield
    finally:
        _state.on = before


def is_rematerialized() -> bool:
    """Returns whether `rematerialized(True)` is in force."""
    return getattr(_state, "on", False)


def run_rematerialized(
    program: Program, weights: Sequence[tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs `program(weights, x, condition)`, whose activations are computed again when gradients are asked for.

    Args:
        program: reads no variable: what gradients are wanted for are its arguments.
        weights: of the layer.
        x: the layer's input.
        condition: z, or None.
    """
    inputs = [x] if condition is None else [x, condition]
    count = len(inputs)

    def flat(*arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x, *rest = arguments[:count]
        return program(list(arguments[count:]), x, rest[0] if rest else None)

    return tf.recompute_grad(flat)(*inputs, *weights)
