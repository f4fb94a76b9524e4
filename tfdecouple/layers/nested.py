"""Layers made of layers, as Keras' `summary(expand_nested=True)` shows them."""

from __future__ import annotations

from collections.abc import Iterable

import keras


class Nested:
    """A layer that shows the layers that it is made of; to be named before its Keras class among the bases."""

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers right below this one."""
        return list(self._flatten_layers(include_self=False, recursive=False))  # type: ignore[attr-defined]

    def __dir__(self) -> Iterable[str]:
        """Returns the names of attributes, but for `layers`.

        Keras' files hold layers by the attribute in which it finds them first, going through these names: a second one
        for the same layers would change the files.
        """
        return [name for name in super().__dir__() if name != "layers"]
