"""The prior over z: a small flow from z to a standard normal (paper appendix B.3)."""

from __future__ import annotations

from typing import Any

import keras

from tfdecouple.config.shapes import step_names
from tfdecouple.layers import InvertibleLinear, InvertibleSequence
from tfdecouple.networks.flow import FlowStep
from tfdecouple.runtime.execution import Execution


@keras.saving.register_keras_serializable(package="tfdecouple")
class PriorStep(FlowStep):
    """A step of flow on vectors, with a linear layer instead of the 1x1 convolution, and MLPs as coupling nets."""

    _linear = InvertibleLinear


@keras.saving.register_keras_serializable(package="tfdecouple")
class PriorFlow(InvertibleSequence):
    """The flow of the prior, from z `[batch, d_z]` to a standard normal of the same size.

    Args:
        steps: number of steps.
        hidden: width of the coupling nets.
        transform: name of a transform, such as "affine" or "additive".
        alpha: bound of the affine scale.
        **kwargs: arguments of `InvertibleLayer`.
    """

    saved_arguments = ("steps", "hidden", "transform", "alpha")

    def __init__(self, steps: int, hidden: int, *, transform: str = "affine", alpha: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.execution = Execution()
        self.steps, self.hidden, self.transform, self.alpha = steps, hidden, transform, alpha
        self.sequence = [
            PriorStep(hidden, transform=transform, alpha=alpha, name=name, dtype=self.dtype_policy)
            for name in step_names(steps)
        ]
