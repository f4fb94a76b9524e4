"""The model: the class `DecoupledModel`, its networks and distributions, and the evidence lower bound."""

from tfdecouple.model.any_size import SizedCodes
from tfdecouple.model.codes import Codes, far_from_training
from tfdecouple.model.decoupled_model import DecoupledModel
from tfdecouple.model.objective import Elbo

__all__ = ["Codes", "DecoupledModel", "Elbo", "SizedCodes", "far_from_training"]
