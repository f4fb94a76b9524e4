"""Traced functions shared by all layers of one kind."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.runtime.precision import current_net_precision
from tfdecouple.runtime.rematerialization import rematerialization
from tfdecouple.runtime.xla import in_xla


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
        self._networks: dict[tuple, tuple[list[keras.Variable], Any]] = {}

    def forward_and_log_det(
        self, layer: keras.layers.Layer, x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The layer's `forward_and_log_det`."""
        return self._run("forward_and_log_det", layer, x, condition)

    def inverse_and_log_det(
        self, layer: keras.layers.Layer, y: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The layer's `inverse_and_log_det`."""
        return self._run("inverse_and_log_det", layer, y, condition)

    def run_network(
        self, method: str, network: keras.layers.Layer, x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs a method of a layer that holds many, for callers outside of any graph.

        One program for all that it holds reads the weights itself: to hand a thousand of them over took 45 ms a call.

        Args:
            method: takes x and condition and returns a tensor and its log-determinant.
            network: the layer.
            x: its input.
            condition: z, or None.
        """
        key = (method, "network", x.shape[1:], current_net_precision(), rematerialization(), in_xla())
        if key not in self._networks:
            self._networks[key] = network.variables, _function(getattr(network, method))
        variables, function = self._networks[key]
        # Within a `keras.StatelessScope` other values stand for the weights.
        if all(isinstance(variable.value, tf.Variable) for variable in variables):
            return function(x, condition)
        return getattr(network, method)(x, condition)

    def _run(
        self, method: str, layer: keras.layers.Layer, x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        key = (method, _kind(layer), x.shape[1:], current_net_precision(), rematerialization(), in_xla())
        if key not in self._functions:
            # A partial, since TensorFlow counts the traces of functions with the same code together and warns of many.
            self._functions[key] = _function(functools.partial(_run_with, method, layer, layer.variables))
        # A tensor, not the variable: a tf.function treats each variable it is given as a new constant.
        weights = [tf.convert_to_tensor(variable) for variable in layer.variables]
        return self._functions[key](weights, x, condition)


def _function(run: Callable[..., Any]) -> Any:
    return tf.function(run, autograph=False, reduce_retracing=True, experimental_attributes={"_noinline": True})


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
