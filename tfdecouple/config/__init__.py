"""The config of a run with all its options, as frozen dataclasses that are read from JSON and written as JSON.

A `Config` holds model, data, training and a description, and is complete: a run can be repeated from it. `override`
changes single options by their dotted names (`--set model.latent_dim=32`). An unknown name or an impossible combination
raises a `ConfigError` of one line that names the value.
"""

from tfdecouple.config.data import BAD_IMAGE_RULES, PHOTOGRAPHS, DataConfig
from tfdecouple.config.model import (
    CONDITIONERS,
    CONDITIONING,
    MOST_LEVELS,
    MOST_STEPS,
    PRIORS,
    STEP_LAYERS,
    ModelConfig,
)
from tfdecouple.config.presets import describe_config, load_preset, preset_names
from tfdecouple.config.run import Config, describe_options, difference, from_plain, option_names, override
from tfdecouple.config.training import MEMORY, PRECISIONS, SEEDS, TrainingConfig
from tfdecouple.transforms import TRANSFORMS

__all__ = [
    "BAD_IMAGE_RULES",
    "CONDITIONERS",
    "CONDITIONING",
    "MEMORY",
    "MOST_LEVELS",
    "MOST_STEPS",
    "PHOTOGRAPHS",
    "PRECISIONS",
    "PRIORS",
    "SEEDS",
    "STEP_LAYERS",
    "TRANSFORMS",
    "Config",
    "DataConfig",
    "ModelConfig",
    "TrainingConfig",
    "difference",
    "from_plain",
    "load_preset",
    "describe_options",
    "option_names",
    "override",
    "preset_names",
    "describe_config",
]
