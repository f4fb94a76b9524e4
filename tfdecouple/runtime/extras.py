"""Packages that only some installations have: which extra of the project brings each."""

from __future__ import annotations

import importlib.util

from tfdecouple.errors import UserError

# By the name that is imported. The extra `all` brings them all but those of `litert`, `loggers` and `wolf`.
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
    "mlflow": "loggers",
}


class MissingPackageError(UserError, ImportError):
    """A package that is not installed, since an extra brings it."""


def require(*modules: str, what: str = "this") -> None:
    """Looks whether packages are installed, without importing them.

    Args:
        *modules: names that are imported, of `EXTRAS`.
        what: needs them.

    Raises:
        MissingPackageError: naming the first that is not there, and the extra that brings it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingPackageError(missing(module, what))


def missing(module: str, what: str = "this") -> str:
    """Returns the line on a package that is not there.

    >>> missing("matplotlib", "the command curves")
    "the command curves needs matplotlib, which is missing: pip install 'tfdecouple[plots]'"
    """
    return f"{what} needs {module}, which is missing: pip install 'tfdecouple[{EXTRAS[module]}]'"
