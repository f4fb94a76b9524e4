"""What these models need: Keras with TensorFlow and channels last, and the optional packages of the extras."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import sys

from tfdecouple.errors import ConfigError, UserError

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
        what: the subject of the message, such as "the export".

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


def require_backend() -> None:
    """Refuses another backend of Keras than TensorFlow, and channels first.

    It runs before Keras is imported: without the package of the configured backend that import fails with a traceback.

    Raises:
        ConfigError: saying where the setting is made and what to do.
    """
    backend, image_format, where = _read_settings()
    if backend != "tensorflow":
        raise ConfigError(
            f"Keras' backend is {backend!r} ({where}); tfdecouple needs 'tensorflow': set KERAS_BACKEND=tensorflow "
            "before Keras is imported"
        )
    if image_format != "channels_last":
        raise ConfigError(
            f"Keras' image_data_format is {image_format!r}; tfdecouple needs 'channels_last': change it in "
            f"{_file()} or call keras.config.set_image_data_format('channels_last') first"
        )


def _read_settings() -> tuple[str, str, str]:
    """Returns Keras' backend, its image format and where the backend was set."""
    where = "by KERAS_BACKEND" if "KERAS_BACKEND" in os.environ else f"in {_file()}"
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        return keras.config.backend(), keras.config.image_data_format(), where
    values = None
    # Keras ignores a file that it cannot read.
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(_file().read_text(encoding="utf-8"))
    values = values if isinstance(values, dict) else {}
    backend = os.environ.get("KERAS_BACKEND") or values.get("backend", "tensorflow")
    return backend, values.get("image_data_format", "channels_last"), where


def _file() -> pathlib.Path:
    home = os.environ.get("KERAS_HOME")
    return (pathlib.Path(home) if home else pathlib.Path("~", ".keras").expanduser()) / "keras.json"
