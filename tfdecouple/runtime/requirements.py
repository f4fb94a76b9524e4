"""Checks of what the models need: Keras with TensorFlow, and the optional packages of extras."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import sys

from tfdecouple.errors import ConfigError, UserError

# The extra that installs each package, by import name. The extra `all` leaves out `litert`, `loggers` and `wolf`.
EXTRAS = {
    "ai_edge_litert": "litert",
    "onnx": "export",
    "onnxruntime": "export",
    "tensorflow_serving": "export",
    "tf2onnx": "export",
    "huggingface_hub": "hub",
    "pyarrow": "parquet",
    "matplotlib": "plots",
    "tensorflow_datasets": "tfds",
    "torch": "wolf",
    "wandb": "loggers",
}


class MissingPackageError(UserError, ImportError):
    """The error for an optional package that is not installed."""


def require(*modules: str, what: str = "this") -> None:
    """Raises MissingPackageError if an optional package is not installed; imports none of the packages.

    Args:
        *modules: import names of packages in `EXTRAS`.
        what: the subject of the message, for example "the export".

    Raises:
        MissingPackageError: with the name of the first missing package, and the extra that installs it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingPackageError(missing(module, what))


def missing(module: str, what: str = "this") -> str:
    """Returns the message that a package is missing, with the command that installs it.

    >>> missing("matplotlib", "the command curves")
    "the command curves needs matplotlib, which is missing: pip install 'tfdecouple[plots]'"
    """
    return f"{what} needs {module}, which is missing: pip install 'tfdecouple[{EXTRAS[module]}]'"


def require_backend() -> None:
    """Raises ConfigError unless Keras is set to the backend TensorFlow.

    The check runs before Keras is imported, because that import fails with a traceback if the package of the configured
    backend is missing.
    """
    home = os.environ.get("KERAS_HOME")
    file = (pathlib.Path(home) if home else pathlib.Path("~", ".keras").expanduser()) / "keras.json"
    values = None
    # Keras ignores a settings file that it cannot read, so this function ignores it, too.
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(file.read_text(encoding="utf-8"))
    backend = os.environ.get("KERAS_BACKEND") or (values if isinstance(values, dict) else {}).get("backend")
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        backend = keras.config.backend()
    if backend not in (None, "tensorflow"):
        where = "by KERAS_BACKEND" if "KERAS_BACKEND" in os.environ else f"in {file}"
        raise ConfigError(
            f"Keras' backend is {backend!r} ({where}); tfdecouple needs 'tensorflow': set KERAS_BACKEND=tensorflow "
            "before Keras is imported"
        )
