"""Names under which Keras finds this project's classes in a file, before the modules of these classes are imported.

Keras loads a `.keras` file by names that importing a class registers, and `import tfdecouple` imports none, so as to
answer in a moment. What is registered here stands for a class until Keras asks for it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

_PACKAGE = "tfdecouple"
# Where each class is; a test holds this against what the modules register.
CLASSES = {
    "DecoupledModel": "model",
    "Flow": "networks.flow",
    "FlowStep": "networks.flow",
    "FactorOut": "networks.flow",
    "PriorFlow": "networks.prior",
    "PriorStep": "networks.prior",
    "Encoder": "networks.encoder",
    "ResNetBlock": "networks.encoder",
    "BatchNorm": "networks.encoder",
    "Dequantizer": "networks.dequantizer",
    "DequantizingFlow": "networks.dequantizer",
    "LocalResNet": "networks.dequantizer",
    "TransposedResNetBlock": "networks.encoder",
    "ClassAffine": "networks.classes",
    "ClassCodes": "networks.classes",
    "ActNorm": "layers.actnorm",
    "ConditionalWhitening": "layers.whitening",
    "ConvNet": "layers.nets",
    "Coupling": "layers.coupling",
    "InvertibleConv1x1": "layers.linear",
    "InvertibleLinear": "layers.linear",
    "LocalConvNet": "layers.nets",
    "MLP": "layers.nets",
    "ChannelSplit": "layers.split",
    "RegisteredLayer": "layers.registered",
    "Sigmoid": "layers.sigmoid",
    "Squeeze": "layers.squeeze",
}


class _Proxy:
    """Stands for a class until Keras builds one from its config."""

    def __init__(self, name: str):
        self._name = name
        self.__name__ = name

    def _real(self) -> Any:
        # The module registers its class, in the place of this.
        return getattr(importlib.import_module(f"{_PACKAGE}.{CLASSES[self._name]}"), self._name)

    def from_config(self, *arguments: Any, **options: Any) -> Any:
        """Returns what the class makes of a config."""
        return self._real().from_config(*arguments, **options)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._real()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)


def _register(keras_saving: Any) -> None:
    known = keras_saving.get_custom_objects()
    for name in CLASSES:
        known.setdefault(f"{_PACKAGE}>{name}", _Proxy(name))


class _WhenKerasComes(importlib.abc.MetaPathFinder):
    """Registers once Keras is imported, where that comes after this package; finds nothing itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns Keras' own spec, with a loader that registers at its end; None for all other modules."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: types.ModuleType) -> None:
            execute(module)
            _register(module.saving)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_classes() -> None:
    """Lets Keras find the classes: now if it is imported, else when it is."""
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "saving"):
        _register(keras.saving)
    elif keras is None:
        sys.meta_path.insert(0, _WhenKerasComes())
