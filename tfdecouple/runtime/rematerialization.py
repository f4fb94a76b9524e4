"""What a backward pass has of the forward pass: what was kept, is computed again, or is got back by inverting.

Most of it are the wide maps inside of coupling nets; `wide` and `runtime/inversion.py` do what is in force here.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

from tfdecouple.errors import UserError
from tfdecouple.runtime.shapes import sizes
from tfdecouple.runtime.shards import run_in_turn

BACKWARD_MODES = ("keep", "recompute", "invert")

WideNet = Callable[..., tf.Tensor]

_state = threading.local()


@contextlib.contextmanager
def backward_memory(mode: str | None, meter: tf.Tensor | None = None) -> Iterator[None]:
    """Runs what is called (or traced) inside for a backward pass that has of the forward pass what `mode` says.

    "keep": all of it. "recompute": the maps inside a coupling net, many times as wide as those between layers, are
    computed again, which takes most of one more forward pass; values and gradients are the same to the bit. "invert":
    of a chain of flow layers its input and its output alone, and what lies between is got back from the output
    (`runtime/inversion.py`); gradients are the same but for rounding.

    Outside of this context gradients are right, too; but there the nets run as is best where nobody asks for any.

    Args:
        mode: "keep", "recompute" or "invert"; None as outside.
        meter: a float32 scalar, for "invert". Its gradient, whatever is differentiated, is how far what was got back
            at the inputs of chains was from what had been there: of each image the largest difference relative to the
            largest number, added up over the chains of a flow; of all images the largest. A tape must watch it.

    Raises:
        UserError: for another mode.
    """
    if mode not in (None, *BACKWARD_MODES):
        raise UserError(f"the memory of the backward pass is {mode!r}; it must be one of {', '.join(BACKWARD_MODES)}")
    before = getattr(_state, "now", (None, None))
    _state.now = mode, meter
    try:
        yield
    finally:
        _state.now = before


def backward_mode() -> str | None:
    """Returns what was told to `backward_memory`, or None where it is not in force."""
    return getattr(_state, "now", (None, None))[0]


def backward_meter() -> tf.Tensor | None:
    """Returns the meter that was given to `backward_memory`, if any."""
    return getattr(_state, "now", (None, None))[1]


def meter_by_image(x: tf.Tensor) -> tf.Tensor | None:
    """Returns meters `[batch]` in the place of that of `backward_memory`, which is told the largest of theirs.

    Args:
        x: the batch.

    Returns:
        The meters; those in force where there is one of each image already; None where nothing is to be got back.
    """
    meter = backward_meter() if backward_mode() == "invert" else None
    if meter is None or meter.shape.rank:
        return meter

    @tf.custom_gradient
    def of_each(meter: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.fill(sizes(x)[:1], meter), tf.reduce_max

    return of_each(meter)


def wide(net: WideNet) -> WideNet:
    """Decorates a net whose maps are wide inside: `backward_memory` says what becomes of them.

    Where nothing is differentiated, some images at a time go through it, so few that their maps stay in a cache: where
    no backward pass is announced, and in the forward pass of "invert".

    Args:
        net: from narrow maps `[batch, height, width, channels]`, a condition of each image (a vector, a narrow map or
            None) and weights to narrow maps, image by image; the last axis of the first weight is the width.
    """

    @functools.wraps(net)
    def run(x: tf.Tensor, vectors: tf.Tensor | None, *weights: tf.Tensor) -> tf.Tensor:
        def apply(x: tf.Tensor, vectors: tf.Tensor | None) -> tf.Tensor:
            return net(x, vectors, *weights)

        mode = backward_mode()
        if mode == "recompute":
            return _computed_again(net, x, vectors, *weights)
        return apply(x, vectors) if mode == "keep" else run_in_turn(apply, x, vectors, width=weights[0].shape[-1])

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
