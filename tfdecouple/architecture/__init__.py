"""The plan of a model: which layers it has, their sizes, and the name and shape of every weight.

Whatever needs to know how a model follows from its config reads it here: the networks, the number of parameters, the
weights of reference checkpoints, the export and the estimates of cost. Nothing here needs TensorFlow.
"""

from tfdecouple.architecture.classes import ClassAffinePlan, ClassCodesPlan
from tfdecouple.architecture.encoders import EncoderPlan, ResNetPlan
from tfdecouple.architecture.flows import FlowPlan, PriorPlan
from tfdecouple.architecture.layers import (
    STEP,
    CouplingPlan,
    FactorOutPlan,
    StepPlan,
    WhiteningPlan,
)
from tfdecouple.architecture.model import DequantizerPlan, Plan, count_by_network, plan
from tfdecouple.architecture.weights import Shape, Weights

__all__ = [
    "STEP",
    "ClassAffinePlan",
    "ClassCodesPlan",
    "CouplingPlan",
    "DequantizerPlan",
    "EncoderPlan",
    "FactorOutPlan",
    "FlowPlan",
    "Plan",
    "PriorPlan",
    "ResNetPlan",
    "Shape",
    "StepPlan",
    "Weights",
    "WhiteningPlan",
    "count_by_network",
    "plan",
]
