"""Keras' `compile`, `fit`, `evaluate` and `predict` of the model: the bound that all training minimises, Keras' way."""

from tfdecouple.model.keras_training.fitting import KerasTraining

__all__ = ["KerasTraining"]
