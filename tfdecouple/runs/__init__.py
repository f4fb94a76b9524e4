"""Runs: their folders, opened as models and saved, published weights, and directions in z."""

import importlib
from typing import Any

# Names come from their modules at first use: the model itself reads weights of a run folder.
_HOMES = {
    **dict.fromkeys(["Run", "load_directions", "load_model", "load_pretrained", "no_directions"], "opened_run"),
    **dict.fromkeys(["save_run", "weights_sha256", "write_run"], "opened_run"),
    **dict.fromkeys(["CHECKPOINTS", "CONFIG", "LABELS", "SUMMARY"], "run_folder"),
    **dict.fromkeys(
        ["averaged_names", "changed_label", "figures_of_test", "find_run", "fitting_weights"], "run_folder"
    ),
    **dict.fromkeys(["images_known", "is_folder", "load_config", "load_weights", "read_label_names"], "run_folder"),
    **dict.fromkeys(["read_summary", "require_fitting", "run_name", "unknown_data", "write_label_names"], "run_folder"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfdecouple.runs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfdecouple.runs.{_HOMES[name]}"), name)
