"""XLA: which functions it compiles, each by itself, and whether what is being traced will be part of one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

_state = threading.local()


@contextlib.contextmanager
def jit_compiled(on: bool) -> Iterator[None]:
    """Lets XLA compile the functions that layers of a kind share (`runtime/tracing.py`), or not.

    Each kind is a program of its own, forward and gradient, so that compiling takes seconds for a kind however many
    layers there are; a whole step as one program would hold each layer anew. XLA compiles for shapes that are known: a
    batch of another size is compiled again.

    Args:
        on: whether what is called (or traced) inside is compiled.
    """
    before = jit_compile()
    _state.on = on
    try:
        yield
    finally:
        _state.on = before


def jit_compile() -> bool | None:
    """Returns what `jit_compiled` was told, or None where it is not in force."""
    return getattr(_state, "on", None)


def in_xla() -> bool:
    """Returns whether a `tf.function(jit_compile=True)` is being traced, at any level: XLA lacks some operations."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))
