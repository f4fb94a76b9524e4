"""A context that frees traced functions, which TensorFlow would keep forever."""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow_probability import bijectors as tfb

_REGISTRY: dict[str, dict[str, Any]] = ops.gradient_registry._registry
# Beginnings of the names by which TensorFlow registers the gradients of traced `tf.custom_gradient`s and functions.
_NAMES = ("CustomGradient-", "PartitionedCall-")


@contextlib.contextmanager
def release_traces() -> Iterator[None]:
    """Lets Python free a function that is traced inside the context as soon as the program has no reference to it.

    TensorFlow registers a gradient for each traced function, which keeps the function's graph alive forever. The
    context leaves only a weak reference in the registry, and lets the graph hold the gradient. It also empties TFP's
    cache of bijectors, which holds the same graphs. Neither library has a public function for this.
    """
    before = set(_REGISTRY)
    try:
        yield
    finally:
        for name in set(_REGISTRY) - before:
            if name.startswith(_NAMES):
                _hold_weakly(name)
        # A later TFP may store its cache elsewhere; then only memory is lost.
        with contextlib.suppress(AttributeError):
            cache = tfb.Bijector._cache.storage
            for key in list(cache):
                key.cancel()
                cache.pop(key, None)


def _hold_weakly(name: str) -> None:
    """Replaces the gradient `name` in TensorFlow's registry by a weak reference; the gradient's graph then holds it."""
    gradient = _REGISTRY[name]["type"]
    graph = _find_graph(gradient)
    if graph is None:
        return
    graph._gradients_of_ours = [*getattr(graph, "_gradients_of_ours", []), gradient]
    held = weakref.ref(gradient, lambda _: _REGISTRY.pop(name, None))
    _REGISTRY[name]["type"] = lambda *arguments: held()(*arguments)  # type: ignore[misc]


def _find_graph(gradient: Callable) -> tf.Graph | None:
    """Returns the graph of the traced function that `gradient` differentiates, or None if there is no graph."""
    enclosed = _read_closure(gradient)
    if "self" in enclosed:
        return getattr(enclosed["self"], "_func_graph", None)
    results = tf.nest.flatten(_read_closure(enclosed.get("tape_grad_fn")).get("result"))
    return next((result.graph for result in results if tf.is_symbolic_tensor(result)), None)


def _read_closure(function: Any) -> dict[str, Any]:
    """Returns {name: value} of the variables in a function's closure, or {} for a function without a closure."""
    if not getattr(function, "__closure__", None):
        return {}
    cells = zip(function.__code__.co_freevars, function.__closure__, strict=True)
    return {name: cell.cell_contents for name, cell in cells}
