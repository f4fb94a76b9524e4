"""What a step of training computes for all layers of a flow together, and of weights alone once for all shards.

A deep flow has hundreds of small norms, determinants and products with z. Each by itself is as much work for the host,
and for a GPU to start, as a large one.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

_state = threading.local()

Values = list[tuple[keras.Variable, tf.Tensor]]


class Prepared(NamedTuple):
    """What layers have computed together for their forward direction.

    Attributes:
        owners: the layers whose log-determinants are in `log_det`, and the variables in whose place there is what is
            made of them.
        log_det: a sum of log-determinants that depend on weights alone, a scalar.
        values: of variables in whose place there is something else, made of weights alone.
        of_condition: from a condition to values of other variables; None where nothing is made of it.
    """

    owners: list[Any]
    log_det: tf.Tensor | float = 0.0
    values: Values = []
    of_condition: Callable[[tf.Tensor], Values] | None = None


def prepare_together(layers: Iterable[keras.layers.Layer]) -> list[Prepared]:
    """Lets layers, and those inside of them, compute together what they need, each class that can do so by itself."""
    kinds: dict[Any, list[keras.layers.Layer]] = {}
    for layer in itertools.chain(*(each._flatten_layers() for each in layers)):
        if hasattr(layer, "prepare_together"):
            kinds.setdefault(type(layer), []).append(layer)
    return [kind.prepare_together(alike) for kind, alike in kinds.items()]


@contextlib.contextmanager
def prepared(owners: frozenset[int] | None) -> Iterator[None]:
    """Runs (or traces) what is called inside with what these layers and variables, by their ids, have prepared."""
    before = currently_prepared()
    _state.owners = owners
    try:
        yield
    finally:
        _state.owners = before


def currently_prepared() -> frozenset[int] | None:
    """Returns the ids of what is prepared; None where nothing is."""
    return getattr(_state, "owners", None)


def is_prepared(owner: Any) -> bool:
    """Returns whether a layer or a variable is among what is prepared."""
    return id(owner) in (currently_prepared() or ())


def in_place(values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> keras.StatelessScope:
    """Returns a scope in which values stand for variables, whatever their shapes."""
    scope = keras.StatelessScope()
    for pair in values:
        scope.add_update(pair)
    return scope
