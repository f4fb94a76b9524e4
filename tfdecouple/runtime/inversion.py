"""A chain of flow layers whose backward pass gets the inputs of each layer back from its outputs.

Of the forward pass the chain's input and output are kept and nothing in between, however many layers there are: the
backward pass begins with the kept output, and each layer gives its input and its gradients at once. Rounding adds up
along a chain, and a layer that divides by small scales multiplies it. So what is got back at the chain's input is
compared with what was there, and the difference is told by the meter of `backward_memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from tfdecouple.runtime.precision import current_net_precision, net_precision
from tfdecouple.runtime.rematerialization import backward_memory, meter_by_image
from tfdecouple.runtime.tracing import Traces
from tfdecouple.runtime.xla import jit_compile, jit_compiled


def run_inverting(
    traces: Traces, layers: Sequence[keras.layers.Layer], x: tf.Tensor, condition: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs a chain of invertible layers forward, for a backward pass by inversion.

    Args:
        traces: those of the network that the layers belong to.
        layers: `InvertibleLayer`s of unchanging shape, in the forward direction.
        x: the input of the first.
        condition: z, or None.

    Returns:
        The output of the last, and the sum of the log-determinants `[batch]`.
    """
    weights = [[tf.convert_to_tensor(variable) for variable in layer.variables] for layer in layers]
    meter, precision, compiled = meter_by_image(x), current_net_precision() or "float32", bool(jit_compile())

    @tf.custom_gradient
    def run(x: tf.Tensor, condition: tf.Tensor, meter: tf.Tensor, *flat: tf.Tensor) -> tuple[Any, Callable]:
        given = tf.nest.pack_sequence_as(weights, flat)
        z = condition if takes_condition else None
        # Or each layer would leave to the tape what its own gradient needs.
        with record.stop_recording():
            y, log_det = _forward(traces, layers, given, x, z)

        def gradient(of_y: tf.Tensor, of_log_det: tf.Tensor) -> list[Any]:
            with net_precision(precision), jit_compiled(compiled):
                back, of_x, of_z, of_weights = _backward(traces, layers, given, y, z, of_y, of_log_det)
            off = None if meter is None else difference_of(back, x)
            return [of_x, of_z, off, *tf.nest.flatten(of_weights)]

        return (y, log_det), gradient

    takes_condition = condition is not None
    none = tf.zeros([])
    return run(x, condition if takes_condition else none, none if meter is None else meter, *tf.nest.flatten(weights))


def _forward(
    traces: Traces, layers: Sequence[Any], weights: list[list[tf.Tensor]], x: tf.Tensor, z: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    y, changes = x, []
    for layer, given in zip(layers, weights, strict=True):
        y, change = traces.run_layer(layer.forward_and_log_det, y, z, weights=given)
        changes.append(change)
    return y, tf.add_n(changes)


def _backward(
    traces: Traces,
    layers: Sequence[Any],
    weights: list[list[tf.Tensor]],
    y: tf.Tensor,
    z: tf.Tensor | None,
    of_y: tf.Tensor,
    of_log_det: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, list[list[tf.Tensor | None]]]:
    """Returns the input of the chain, and the gradients for it, for z and for the weights of each layer."""
    of_z = None if z is None else tf.zeros_like(z)
    of_weights: list[list[tf.Tensor | None]] = []
    for layer, given in zip(reversed(layers), reversed(weights), strict=True):
        # In a layer's backward pass its nets keep their maps, for as long as it takes.
        with backward_memory("keep"):
            y, of_y, change, found = traces.run_layer(
                layer.inverse_and_gradients, y, z, of_y, of_log_det, weights=given
            )
        if of_z is not None and change is not None:
            of_z += change
        trained = iter(found)
        of_weights.insert(0, [next(trained) if variable.trainable else None for variable in layer.variables])
    return y, of_y, of_z, of_weights


def difference_of(back: tf.Tensor, there: tf.Tensor) -> tf.Tensor:
    """Returns the largest difference of each image relative to its largest number, float32 `[batch]`."""
    axes = list(range(1, len(there.shape)))
    largest = tf.reduce_max(tf.abs(there), axes)
    off = tf.reduce_max(tf.abs(back - there), axes)
    return tf.cast(tf.math.divide_no_nan(off, largest), tf.float32)
