"""The config of a run with all its options, as frozen dataclasses that are read from JSON and written as JSON.

A `Config` holds all options of model, data and training that are needed to repeat a run. `Config.override`
changes single options by their dotted names, as `--set model.latent_dim=32` does. An unknown name or an impossible
combination raises a `ConfigError` of one line that names the value.
"""

from tfdecouple.config.model import ModelConfig
from tfdecouple.config.run import (
    Config,
    compare_configs,
    describe_config,
    describe_options,
    list_option_names,
    parse_config,
    preset_config,
    preset_names,
)
from tfdecouple.config.training import MEMORY, PHOTOGRAPHS, PRECISIONS, DataConfig, TrainingConfig

__all__ = [
    "MEMORY",
    "PHOTOGRAPHS",
    "PRECISIONS",
    "Config",
    "DataConfig",
    "ModelConfig",
    "TrainingConfig",
    "compare_configs",
    "parse_config",
    "preset_config",
    "describe_options",
    "list_option_names",
    "preset_names",
    "describe_config",
]
