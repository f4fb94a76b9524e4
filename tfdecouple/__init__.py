"""Models that decouple what an image is globally (z) from its local detail (v).

A TensorFlow/Keras implementation of "Decoupling Global and Local Representations via Invertible Generative Flows".
"""

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
from tfdecouple.runs import load_model

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
    "load_model",
    "load_preset",
    "override",
    "preset_names",
]
