"""Runs: their folders, opened as models and saved, published weights, and directions in z."""

import importlib
from typing import Any

# Names come from their modules at first use: the model itself reads weights of a run folder.
_OPENED = [
    "Run",
    "load_directions",
    "load_model",
    "load_pretrained",
    "no_directions",
    "save_run",
    "weights_sha256",
    "write_run",
]
_FOLDER = [
    "CHECKPOINTS",
    "CONFIG",
    "LABELS",
    "SUMMARY",
    "averaged_names",
    "changed_label",
    "figures_of_test",
    "find_run",
    "fitting_weights",
    "images_known",
    "is_folder",
    "load_config",
    "load_weights",
    "read_label_names",
    "read_summary",
    "require_fitting",
    "run_name",
    "unknown_data",
    "write_label_names",
]
_HOMES = dict.fromkeys(_OPENED, "opened_run") | dict.fromkeys(_FOLDER, "run_folder")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfdecouple.runs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfdecouple.runs.{_HOMES[name]}"), name)
