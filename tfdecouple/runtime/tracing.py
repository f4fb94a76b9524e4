"""Traced functions: one for all layers of a kind, and one for a whole network that is called eagerly."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.runtime.precision import current_net_precision
from tfdecouple.runtime.rematerialization import backward_mode
from tfdecouple.runtime.xla import in_xla, jit_compile

# A method of a layer that takes x and z (or None), and perhaps more tensors.
Method = Callable[..., Any]


class Traces:
    """Runs methods of layers through `tf.function`s, traced once for each shape.

    What is traced is called and not copied into the graph of the caller: the time to prepare a graph for its first run
    grows with its operations.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple, Any] = {}
        self._networks: dict[tuple, tuple[list[keras.Variable], Any]] = {}

    def run_layer(
        self,
        method: Method,
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *rest: tf.Tensor,
        weights: list[tf.Tensor] | None = None,
    ) -> Any:
        """Runs a method of a layer through the trace that all layers of its kind share.

        A deep flow repeats a few kinds of step. Tracing each kind once, with the weights as arguments, makes the time
        to the first step independent of the number of steps. The layers keep their own weights: while a kind is
        traced, its first layer stands for all and reads the arguments in their place.

        Args:
            method: bound to the layer.
            x: its input.
            condition: z, or None.
            *rest: what else the method takes.
            weights: the values of the layer's variables, where they are read already.
        """
        layer = method.__self__  # type: ignore[attr-defined]
        # A backward pass within a trace is of the weights that are trained.
        trained = tuple(variable.trainable for variable in layer.variables)
        key = (_name(method), _kind(layer), trained, x.shape[1:], *_circumstances())
        if key not in self._shared:
            run = functools.partial(_run_with, method, layer.variables)
            self._shared[key] = _function(run, compiled=bool(jit_compile()))
        # A tensor, not the variable: a tf.function treats each variable it is given as a new constant.
        if weights is None:
            weights = [tf.convert_to_tensor(variable) for variable in layer.variables]
        return self._shared[key](weights, x, condition, *rest)

    def run_network(self, method: Method, x: tf.Tensor, others: tuple[tf.Tensor | None, ...], run: Method) -> Any:
        """Runs a method of a network of many layers for a caller outside of any graph.

        One trace reads all weights itself: to hand a thousand of them over took 45 ms a call.

        Args:
            method: bound to the network.
            x: its input.
            others: what else it takes: z, or None.
            run: what is traced: the method, or something around it.
        """
        network: keras.layers.Layer = method.__self__  # type: ignore[attr-defined]
        key = (_name(method), run is method, x.shape[1:], *_circumstances())
        if key not in self._networks:
            self._networks[key] = network.variables, _function(run)
        variables, function = self._networks[key]
        # Within a `keras.StatelessScope` other values stand for the weights.
        if all(isinstance(variable.value, tf.Variable) for variable in variables):
            return function(x, *others)
        return run(x, *others)


def in_place(values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> keras.StatelessScope:
    """Returns a scope in which values stand for variables, whatever their shapes."""
    scope = keras.StatelessScope()
    for pair in values:
        scope.add_update(pair)
    return scope


def _function(run: Callable[..., Any], compiled: bool = False) -> Any:
    return tf.function(
        # TensorFlow counts the traces of all functions with the same code and warns of many; a partial has no code.
        functools.partial(run),
        autograph=False,
        reduce_retracing=True,
        # None where nothing was asked for: False would keep XLA from compiling it within a function of the user's.
        jit_compile=compiled or None,
        experimental_attributes={"_noinline": True},
    )


def _run_with(
    method: Method,
    variables: list[keras.Variable],
    weights: list[tf.Tensor],
    *inputs: tf.Tensor | None,
) -> Any:
    """Runs a method of a layer with `weights` in the place of its variables."""
    with in_place(zip(variables, weights, strict=True)):
        return method(*inputs)


def _name(method: Method) -> str:
    return method.__name__


def _kind(layer: keras.layers.Layer) -> str:
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"


def _circumstances() -> tuple[Any, ...]:
    """Returns what else a trace depends on."""
    return current_net_precision(), backward_mode(), bool(jit_compile()), in_xla()
