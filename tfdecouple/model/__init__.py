"""The model: the class `DecoupledModel`, its networks and distributions, and the evidence lower bound."""

from tfdecouple.model.codes import Codes, far_from_training
from tfdecouple.model.decoupled_model import DecoupledModel
from tfdecouple.model.objective import BoundTerms

__all__ = ["BoundTerms", "Codes", "DecoupledModel", "far_from_training"]
