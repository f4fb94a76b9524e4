"""Measuring a model and showing what it does."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdecouple.metrics.bounds import BitsPerDim, Bound, BoundEvaluator, Evaluator, note_on_grey
    from tfdecouple.metrics.latent_use import LatentUse, measure_latent_use
    from tfdecouple.visualization.pictures import save_pictures

# Names come from their modules at first use: the options of `evaluate` are told without TensorFlow.
_HOMES = {
    "BitsPerDim": "metrics.bounds",
    "Bound": "metrics.bounds",
    "BoundEvaluator": "metrics.bounds",
    "Evaluator": "metrics.bounds",
    "LatentUse": "metrics.latent_use",
    "measure_latent_use": "metrics.latent_use",
    "note_on_grey": "metrics.bounds",
    "save_pictures": "visualization.pictures",
}

__all__ = [
    "BitsPerDim",
    "Bound",
    "BoundEvaluator",
    "Evaluator",
    "LatentUse",
    "measure_latent_use",
    "note_on_grey",
    "save_pictures",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfdecouple.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfdecouple.{_HOMES[name]}"), name)
