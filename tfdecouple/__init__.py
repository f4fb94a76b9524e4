"""Generative models that decouple the global content of an image (z) from its local detail (v).

A TensorFlow/Keras implementation of "Decoupling Global and Local Representations via Invertible Generative Flows".
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from tfdecouple.errors import (
    ConfigError,
    DataError,
    InversionError,
    NotInitializedError,
    RunError,
    UserError,
    WolfError,
)
from tfdecouple.system.requirements import require_backend

# Without this variable, TensorFlow leaves the library oneDNN off on processors without AVX-512, where oneDNN also makes
# convolutions faster. TensorFlow reads the variable when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

if TYPE_CHECKING:
    from tfdecouple.config import Config, DataConfig, ModelConfig, TrainingConfig, preset_config, preset_names
    from tfdecouple.model import BoundTerms, Codes, DecoupledModel
    from tfdecouple.numerics.tf32 import full_float32
    from tfdecouple.registry import register
    from tfdecouple.runs.opened_run import load_directions, load_model, save_run
    from tfdecouple.visualization.photograph_folder import switch_folder

__version__ = "0.1.0"

# {module: its public names}. They are imported at first use, so that --help and error messages need no TensorFlow.
_NAMES = {
    "config": ("Config", "DataConfig", "ModelConfig", "TrainingConfig", "preset_config", "preset_names"),
    "model": ("BoundTerms", "Codes", "DecoupledModel"),
    "registry": ("register",),
    "runs.opened_run": ("load_directions", "load_model", "save_run"),
    "numerics.tf32": ("full_float32",),
    "visualization.photograph_folder": ("switch_folder",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "BoundTerms",
    "Codes",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DecoupledModel",
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
    "preset_config",
    "preset_names",
    "register",
    "save_run",
    "switch_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tfdecouple' has no attribute {name!r}")
    module = _MODULES[name]
    if module.partition(".")[0] in ("model", "runs", "visualization"):
        require_backend()
    return getattr(importlib.import_module(f"tfdecouple.{module}"), name)
