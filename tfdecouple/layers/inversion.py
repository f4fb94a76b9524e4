"""The backward pass by inversion: layers recover their inputs from their outputs instead of storing activations."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf


class Gradients(NamedTuple):
    """The result of a layer's backward pass by inversion: x, recovered from the layer's output, and all gradients.

    `weight_gradients` has one entry for each of `layer.variables`, None for a variable that is not trainable.
    `condition_gradient` is None for a layer without a condition.
    """

    x: tf.Tensor
    x_gradient: tf.Tensor
    condition_gradient: tf.Tensor | None
    weight_gradients: list[tf.Tensor | None]


def invert_layers(
    call: Callable[..., Gradients],
    layers: Sequence[keras.Layer],
    y: tf.Tensor,
    condition: tf.Tensor | None,
    y_gradient: tf.Tensor,
    log_det_gradient: tf.Tensor,
) -> Gradients:
    """Returns the `Gradients` of layers in sequence, given the output y of the last layer and gradients of the loss.

    `call(layer, y, condition, y_gradient, log_det_gradient)` returns the `Gradients` of one layer.
    """
    condition_gradients: list[tf.Tensor] = []
    weight_gradients: list[tf.Tensor | None] = []
    previous: list[tf.Tensor] = []
    for layer in reversed(layers):
        # Without this dependency TensorFlow could invert several layers at once, with the maps of all in memory.
        with tf.control_dependencies(previous):
            y = tf.identity(y)
        y, y_gradient, change, gradients = call(layer, y, condition, y_gradient, log_det_gradient)
        weight_gradients = [*gradients, *weight_gradients]
        previous = [tensor for tensor in (y_gradient, *gradients) if tensor is not None]
        if change is not None:
            condition_gradients.append(change)
    condition_gradient = tf.add_n(condition_gradients) if condition_gradients else None
    return Gradients(y, y_gradient, condition_gradient, weight_gradients)
