"""Checks that Keras uses TensorFlow, and that optional packages are installed."""

import contextlib
import importlib.util
import json
import os
import pathlib
import sys

from tfdecouple.errors import ConfigError, UserError

# For the import name of each optional package: the EXTRA of `pip install 'tfdecouple[EXTRA]'` that installs it.
EXTRAS = {
    "ai_edge_litert": "litert",
    "apache_beam": "beam",
    "onnx": "export",
    "onnxruntime": "export",
    "tensorflow_serving": "export",
    "tf2onnx": "export",
    "huggingface_hub": "hub",
    "mlflow": "loggers",
    "pyarrow": "parquet",
    "matplotlib": "plots",
    "tensorflow_datasets": "tfds",
    "torch": "wolf",
    "wandb": "loggers",
}


class MissingPackageError(UserError, ImportError):
    """Raised if an optional package that a feature needs is not installed; the message tells how to install it."""


def require_packages(*modules: str, what: str) -> None:
    """Raises MissingPackageError, about `what`, unless all `modules` (import names) are installed; imports none."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingPackageError(describe_missing_package(module, what))


def describe_missing_package(module: str, what: str) -> str:
    """Returns the error message that `what` needs the missing package `module`, with the command that installs it.

    >>> describe_missing_package("matplotlib", "the command curves")
    "the command curves needs matplotlib, which is missing: pip install 'tfdecouple[plots]'"
    """
    return f"{what} needs {module}, which is missing: pip install 'tfdecouple[{EXTRAS[module]}]'"


def require_backend() -> None:
    """Raises ConfigError unless Keras' backend is TensorFlow, without importing Keras, which would fail first."""
    home = os.environ.get("KERAS_HOME")
    file = (pathlib.Path(home) if home else pathlib.Path("~", ".keras").expanduser()) / "keras.json"
    values = None
    # Keras ignores a settings file that it cannot read, so the check ignores the file, too.
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
