"""The optional packages, and the extra of the installation that brings each."""

from __future__ import annotations

import importlib.util

from tfdecouple.errors import UserError

# The extra of each package, by the name that is imported. `all` leaves out `litert`, `loggers` and `wolf`.
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
    """An optional package is not installed."""


def require(*modules: str, what: str = "this") -> None:
    """Refuses to continue without some packages; imports none of them.

    Args:
        *modules: the names of packages, of `EXTRAS`.
        what: the subject of the message: what needs them.

    Raises:
        MissingPackageError: naming the first package that is missing, and the extra that brings it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingPackageError(missing(module, what))


def missing(module: str, what: str = "this") -> str:
    """Returns the message on a missing package.

    >>> missing("matplotlib", "the command curves")
    "the command curves needs matplotlib, which is missing: pip install 'tfdecouple[plots]'"
    """
    return f"{what} needs {module}, which is missing: pip install 'tfdecouple[{EXTRAS[module]}]'"
