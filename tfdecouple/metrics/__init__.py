"""Measuring a model and showing what it does."""

from tfdecouple.metrics.bits_per_dim import BitsPerDim, Evaluator, note_on_grey
from tfdecouple.metrics.bounds import Bound, BoundEvaluator
from tfdecouple.metrics.latent_use import LatentUse, measure_latent_use
from tfdecouple.visualization.pictures import save_pictures

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
