"""What all deployed layers have in common: arrays in their fields, which are walked, replaced and told by name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfdecouple.errors import InversionError

# A numpy array, or the tensor, placeholder or variable that a graph reads in its place.
Array = Any
# Takes the log-determinants that are met on the way, each `[batch]` or one number for every image.
LogDets = list[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployed:
    """A layer as it is deployed: its arrays and inner layers are its fields, its arithmetic is TensorFlow.

    Attributes:
        name: path of the layer, such as "flow/level_0_part_0_step_1"; its arrays and operations are named `NAME/...`.
    """

    name: str

    def arrays(self) -> dict[str, Array]:
        """Returns all arrays of the layer and of the layers within it, by their names `NAME/FIELD`."""
        return {f"{layer.name}/{field}": value for layer in self.layers() for field, value in layer._own_arrays()}

    def replaced(self, function: Callable[[str, Array], Array]) -> Self:
        """Returns a copy in which `function(name, array)` stands in place of each array."""

        def copy(value: Any) -> Any:
            if isinstance(value, Deployed):
                return value.replaced(function)
            return tuple(map(copy, value)) if isinstance(value, tuple) else value

        changed = {field.name: copy(getattr(self, field.name)) for field in dataclasses.fields(self)}
        changed |= {field: function(f"{self.name}/{field}", value) for field, value in self._own_arrays()}
        return dataclasses.replace(self, **changed)

    def layers(self) -> Iterator[Deployed]:
        """Yields the layer itself and all layers within it."""
        yield self
        for field in dataclasses.fields(self):
            for inner in _within(getattr(self, field.name)):
                yield from inner.layers()

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which operations go by the layer's name."""
        return scope(self.name)

    def _own_arrays(self) -> list[tuple[str, Array]]:
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return [(name, value) for name, value in values if isinstance(value, np.ndarray | tf.Tensor | tf.Variable)]


def scope(name: str) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which operations are named `NAME/...`, wherever it is entered."""
    return tf.name_scope(f"{name}/")


def values(variable: Any) -> np.ndarray:
    """Returns a weight of the model in float64, in which everything is multiplied out."""
    return np.asarray(variable, np.float64)


def rounded(name: str, value: np.ndarray) -> np.ndarray:
    """Returns an array as it is deployed, float32.

    Raises:
        InversionError: where it is not finite, naming it.
    """
    if not np.all(np.isfinite(value)):
        raise InversionError(f"weight {name} is not finite; the run has diverged and cannot be exported")
    return np.ascontiguousarray(value, np.float32)


def _within(value: Any) -> Iterator[Deployed]:
    if isinstance(value, Deployed):
        yield value
    elif isinstance(value, tuple):
        for inner in value:
            yield from _within(inner)
