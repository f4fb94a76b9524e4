"""What becomes of the wide maps inside a coupling net: kept for the backward pass, computed again there, or dropped."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from tfdecouple.runtime.convolution import convolve, input_gradient, kernel_gradient
from tfdecouple.runtime.shards import run_in_turn

# From an image's narrow map, a shift for each image (or None) and weights to its wide map.
Widening = Callable[..., tf.Tensor]
# Of a kernel, which is their product: direction `[size, size, hidden, outputs]` and scale `[outputs]`, of one dtype.
Factors = tuple[tf.Tensor, tf.Tensor]

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


def narrowed(
    widen: Widening, x: tf.Tensor, shift: tf.Tensor | None, weights: Sequence[tf.Tensor], factors: Factors
) -> tf.Tensor:
    """Returns a convolution of `widen(x, shift, *weights)` with zero padding, the maps kept as `rematerialized` says.

    Args:
        widen: image by image, from x, shift and weights to maps `[batch, height, width, hidden]`.
        x: `[batch, height, width, channels]`.
        shift: `[batch, hidden]`, or None.
        weights: of the maps; `widen` reads no others.
        factors: of the kernel, which is used in the dtype of x.
    """
    on = rematerialization()
    if on:
        return _computed_again(widen, x, shift, weights, factors)
    if on is None:
        kernel = _kernel(*factors, x.dtype)

        def run(x: tf.Tensor, shift: tf.Tensor | None) -> tf.Tensor:
            return convolve(widen(x, shift, *weights), kernel)

        return run_in_turn(run, x, shift, width=kernel.shape[2])
    return _convolution(widen(x, shift, *weights), *factors)


def _computed_again(
    widen: Widening, x: tf.Tensor, shift: tf.Tensor | None, weights: Sequence[tf.Tensor], factors: Factors
) -> tf.Tensor:
    # Not `tf.recompute_grad`: of a whole layer it would compute everything again, and to compute the last convolution
    # again, whose narrow result is worth keeping, is a fifth of a forward pass.
    @tf.custom_gradient
    def run(direction: tf.Tensor, scale: tf.Tensor, *inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # Not before they are wanted.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(value) for value in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                maps = apply(*again)
            of_maps, *of_kernel = _convolution_gradient(maps, direction, scale, upstream)
            return [*of_kernel, *tape.gradient(maps, again, output_gradients=of_maps)]

        return convolve(apply(*inputs), _kernel(direction, scale, x.dtype)), gradient

    def apply(x: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        return widen(x, None, *rest) if shift is None else widen(x, *rest)

    return run(*factors, x, *([] if shift is None else [shift]), *weights)


@tf.custom_gradient
def _convolution(maps: tf.Tensor, direction: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns the convolution, of which the backward pass keeps the maps but not the kernel.

    Kept, the kernels of all nets would be another copy of these weights for each part of a batch; to compute them again
    is one multiplication a weight.
    """
    return (
        convolve(maps, _kernel(direction, scale, maps.dtype)),
        lambda upstream: _convolution_gradient(maps, direction, scale, upstream),
    )


def _convolution_gradient(
    maps: tf.Tensor, direction: tf.Tensor, scale: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the gradients for maps, direction and scale."""
    with tf.control_dependencies([upstream]):  # Not before it is wanted.
        kernel = _kernel(direction, scale, maps.dtype)
    of_maps = input_gradient(maps, kernel, upstream)
    of_kernel = tf.cast(kernel_gradient(maps, upstream), direction.dtype)
    return of_maps, of_kernel * scale, tf.reduce_sum(of_kernel * direction, [0, 1, 2])


def _kernel(direction: tf.Tensor, scale: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(direction * scale, dtype)
