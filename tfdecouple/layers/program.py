"""Traced functions shared by all layers of one kind."""

from __future__ import annotations

import functools
import json
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.layers.precision import current_net_precision
from tfdecouple.layers.remat import is_rematerialized, run_rematerialized


class SharedPrograms:
    """Runs layers through one `tf.function` for each kind of layer, shape and direction.

    A deep flow repeats a few kinds of step. Tracing each kind once, with the weights as arguments, makes the time to
    the first step independent of the number of steps, and lets even eager calls run at graph speed. The layers keep
    their own weights: while a kind is traced, its first layer stands for all and reads the arguments in their place.

    What is traced is called and not copied into the graph of the caller: the time to prepare a graph for its first run
    grows with its operations.
    """

    def __init__(self) -> None:
        self._functions: dict[tuple, Any] = {}

    def forward_and_log_det(
        self, layer: keras.layers.Layer, x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The layer's `forward_and_log_det`."""
        return self.run("forward_and_log_det", layer, x, condition)

    def inverse_and_log_det(
        self, layer: keras.layers.Layer, y: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The layer's `inverse_and_log_det`."""
        return self.run("inverse_and_log_det", layer, y, condition)

    def run(
        self, method: str, layer: keras.layers.Layer, x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Another method of the layer that takes x and condition and returns a tensor and its log-determinant."""
        key = (method, _kind(layer), x.shape[1:], current_net_precision())
        if key not in self._functions:
            self._functions[key] = _traced(method, layer)
        # A tensor, not the variable: a tf.function treats each variable it is given as a new constant.
        weights = [tf.convert_to_tensor(variable) for variable in layer.variables]
        if is_rematerialized():
            return run_rematerialized(self._functions[key], weights, x, condition)
        return self._functions[key](weights, x, condition)


def _traced(method: str, layer: keras.layers.Layer) -> Any:
    # A partial, since TensorFlow counts the traces of functions with the same code together and warns of too many.
    return tf.function(
        functools.partial(_run_with, method, layer, layer.variables),
        autograph=False,
        reduce_retracing=True,
        experimental_attributes={"_noinline": True},
    )


def _run_with(
    method: str,
    layer: keras.layers.Layer,
    variables: list[keras.Variable],
    weights: list[tf.Tensor],
    x: tf.Tensor,
    condition: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs `layer` with `weights` in the place of its variables."""
    with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
        return getattr(layer, method)(x, condition)


def _kind(layer: keras.layers.Layer) -> str:
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"
