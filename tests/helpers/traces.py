"""Letting go of traced functions: TensorFlow keeps for good what it has registered gradients for."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow_probability import bijectors as tfb

# What TensorFlow calls the gradients of a `tf.custom_gradient` that was traced, and of a function called in a graph.
_NAMES = ("CustomGradient-", "PartitionedCall-")


@contextlib.contextmanager
def traces_released() -> Iterator[None]:
    """Lets go of the functions traced inside when nobody else holds them.

    TensorFlow registers a gradient under a name of its own for each of them, process-wide and for ever; that gradient
    holds the graph, and the graph some megabytes. Here the registry is left with a weak reference, and the graph itself
    holds its gradient: both live as long as the function does, whoever it belongs to. TFP's cache of what bijectors
    have computed, process-wide too, holds the same graphs; emptied, it computes again. Neither offers a public way.
    """
    before = set(_registered())
    try:
        yield
    finally:
        for name in set(_registered()) - before:
            if name.startswith(_NAMES):
                _hold_weakly(name)
        # Where another version keeps it otherwise, memory is what is lost, and a test says so.
        with contextlib.suppress(AttributeError):
            cache = tfb.Bijector._cache.storage
            for key in list(cache):
                key.cancel()
                cache.pop(key, None)


def _registered() -> dict[str, dict[str, Any]]:
    return ops.gradient_registry._registry


def _hold_weakly(name: str) -> None:
    gradient = _registered()[name]["type"]
    graph = _graph_of(gradient)
    if graph is None:
        return
    graph._gradients_of_ours = [*getattr(graph, "_gradients_of_ours", []), gradient]
    held = weakref.ref(gradient, lambda _: _registered().pop(name, None))
    _registered()[name]["type"] = lambda *arguments: held()(*arguments)  # type: ignore[misc]


def _graph_of(gradient: Callable) -> tf.Graph | None:
    """Returns the graph whose operations a registered gradient differentiates; None for one of another kind."""
    enclosed = _enclosed(gradient)
    if "self" in enclosed:
        return getattr(enclosed["self"], "_func_graph", None)
    results = tf.nest.flatten(_enclosed(enclosed.get("tape_grad_fn")).get("result"))
    return next((result.graph for result in results if tf.is_symbolic_tensor(result)), None)


def _enclosed(function: Any) -> dict[str, Any]:
    """Returns the variables that a function has from where it was defined, by name."""
    if not getattr(function, "__closure__", None):
        return {}
    return {
        name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True)
    }
