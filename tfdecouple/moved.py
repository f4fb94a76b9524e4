"""Import paths of earlier releases: each is another name of the module that stands at the new place."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence

_PACKAGE = "tfdecouple"
# Old path to new one, of modules and, with all that they hold, of packages.
MOVED = {
    "backend": "runtime.backend",
    "checkpoints": "storage.checkpoints",
    "codes": "dataset_encoding",
    "commands": "cli",
    "data.messages": "errors",
    "emulation": "runtime.emulation",
    "encoder": "networks.encoder",
    "evaluation": "metrics",
    "evaluation.confusion": "visualization.confusion",
    "evaluation.draws": "metrics.bounds",
    "evaluation.features": "metrics.extractors",
    "evaluation.grids": "visualization.grids",
    "evaluation.importance": "metrics.bounds",
    "evaluation.plots": "visualization.plots",
    "evaluation.progress": "runtime.progress",
    "evaluation.projection": "visualization.projection",
    "evaluation.subset": "metrics.drawn_images",
    "files": "storage.files",
    "flow": "networks.flow",
    "layers.channels": "runtime.products",
    "layers.convolution": "runtime.convolution",
    "layers.parts": "runtime.shards",
    "layers.precision": "runtime.precision",
    "layers.program": "runtime.tracing",
    "layers.remat": "runtime.rematerialization",
    "layers.sizes": "runtime.shapes",
    "layers.xla": "runtime.xla",
    "memory": "runtime.memory",
    "metrics.draws": "draws",
    "prior": "networks.prior",
    "process": "runtime.process",
    "tf32": "runtime.tf32",
    "training.adam": "training.optimizer",
    "training.loggers": "loggers",
    "training.loop": "training.run",
    "training.metrics": "training.log",
    "training.precision_check": "precision_check",
    "wolf": "interop.wolf",
}


def new_path(name: str) -> str | None:
    """Returns the full name of the module that an old full name means, or None for any other name.

    >>> new_path("tfdecouple.codes.reading"), new_path("tfdecouple.model")
    ('tfdecouple.dataset_encoding.reading', None)
    """
    package, _, path = name.partition(".")
    if package != _PACKAGE:
        return None
    head, tail = path, ""
    while head:
        if head in MOVED:
            return f"{_PACKAGE}.{MOVED[head]}{tail}"
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return None


class _Alias(importlib.abc.Loader):
    """Gives the module at the new place to whoever imports the old one."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Returns the module at the new place."""
        module = importlib.import_module(new_path(spec.name) or "")
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Does nothing but undo what the import did to the module: it has run already."""
        module.__spec__ = self._own_spec


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns an alias for an old name; None for all other modules."""
        return None if new_path(name) is None else importlib.machinery.ModuleSpec(name, _Alias())


def keep_old_paths() -> None:
    """Lets Python find modules by their old names.

    Before all other ways: through the folder of a moved package Python would find its modules, and run them again.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
