"""Models that decouple what an image is globally (z) from its local detail (v).

A TensorFlow/Keras implementation of "Decoupling Global and Local Representations via Invertible Generative Flows".
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfdecouple.runtime.backend import require_backend

if TYPE_CHECKING:
    from tfdecouple.config import Config, DataConfig, ModelConfig, TrainingConfig, load_preset, override, preset_names
    from tfdecouple.errors import (
        ConfigError,
        DataError,
        InversionError,
        NotInitializedError,
        RunError,
        UserError,
        WolfError,
    )
    from tfdecouple.model import Codes, DecoupledModel, Elbo
    from tfdecouple.model.outlier_scores import outlier_scores
    from tfdecouple.runs.opened_run import load_directions, load_model, load_pretrained, save_run
    from tfdecouple.runtime.precision import full_float32

__version__ = "0.1.0"

# Names come from their modules at first use: a program can answer --help, or a mistake, before TensorFlow is imported.
_HOMES = {
    "Codes": "model",
    "Config": "config",
    "ConfigError": "errors",
    "DataConfig": "config",
    "DataError": "errors",
    "DecoupledModel": "model",
    "Elbo": "model",
    "InversionError": "errors",
    "ModelConfig": "config",
    "NotInitializedError": "errors",
    "RunError": "errors",
    "TrainingConfig": "config",
    "UserError": "errors",
    "WolfError": "errors",
    "full_float32": "runtime.precision",
    "load_directions": "runs",
    "load_model": "runs",
    "load_preset": "config",
    "load_pretrained": "runs",
    "outlier_scores": "model.outlier_scores",
    "override": "config",
    "preset_names": "config",
    "save_run": "runs",
}

__all__ = [
    "Codes",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DecoupledModel",
    "Elbo",
    "InversionError",
    "ModelConfig",
    "NotInitializedError",
    "RunError",
    "TrainingConfig",
    "UserError",
    "WolfError",
    "full_float32",
    "load_directions",
    "load_model",
    "load_preset",
    "load_pretrained",
    "outlier_scores",
    "override",
    "preset_names",
    "save_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfdecouple' has no attribute {name!r}")
    if _HOMES[name] in ("model", "model.outlier_scores", "runs"):
        require_backend()
    return getattr(importlib.import_module(f"tfdecouple.{_HOMES[name]}"), name)
