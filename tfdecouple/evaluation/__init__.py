"""Measuring a model and showing what it does."""

from tfdecouple.evaluation.bits_per_dim import BitsPerDim, Evaluator
from tfdecouple.evaluation.grids import save_pictures
from tfdecouple.evaluation.importance import Bound, BoundEvaluator
from tfdecouple.evaluation.latent_use import LatentUse, measure_latent_use

__all__ = [
    "BitsPerDim",
    "Bound",
    "BoundEvaluator",
    "Evaluator",
    "LatentUse",
    "measure_latent_use",
    "save_pictures",
]
