"""The model: the class `DecoupledModel`, its networks and distributions, and the evidence lower bound."""

from tfdecouple.model.codes import Codes
from tfdecouple.model.decoupled_model import DecoupledModel
from tfdecouple.model.objective import BoundTerms
from tfdecouple.numerics.exactness import far_from_training

__all__ = ["BoundTerms", "Codes", "DecoupledModel", "far_from_training"]
