"""Measuring a model and showing what it does."""

from tfdecouple.evaluation.bits_per_dim import BitsPerDim, Evaluator
from tfdecouple.evaluation.grids import save_pictures

__all__ = ["BitsPerDim", "Evaluator", "save_pictures"]
