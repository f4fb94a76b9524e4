"""The layers of flows: couplings, steps, what stands before channels leave, the whitening."""

from __future__ import annotations

import dataclasses

from tfdecouple.architecture.weights import (
    Weights,
    actnorm,
    convolutional_net,
    dense_net,
    linear,
    under,
    whitening_net,
)
from tfdecouple.step_layers import STEP_LAYERS
from tfdecouple.transforms import TRANSFORMS

# The couplings of a step by name, in the forward direction: pattern of the split, and which side is transformed.
FIRST_PAIR = {"coupling_continuous_last": ("continuous", "last"), "coupling_continuous_first": ("continuous", "first")}
SECOND_PAIR = {"coupling_alternate_last": ("alternate", "last"), "coupling_alternate_first": ("alternate", "first")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CouplingPlan:
    """A coupling: a net reads the channels that are kept and says how to transform the others.

    Attributes:
        kept: channels that the net reads.
        transformed: channels that are transformed.
        hidden: width of the net.
        condition_size: size of the condition where the net takes one, or 0.
        transform: name of the transform, of `transforms.TRANSFORMS`.
        images: whether the net is convolutional; else it is for vectors.
        local: whether the condition is a map, which enters by a 3x3 convolution; else it is a vector, such as z.
    """

    kept: int
    transformed: int
    hidden: int
    condition_size: int
    transform: str
    images: bool = True
    local: bool = False

    @property
    def outputs(self) -> int:
        """Channels of the net's output."""
        return self.transformed * TRANSFORMS[self.transform].parameters

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its net's weights."""
        sizes = (self.kept, self.hidden, self.outputs)
        if not self.images:
            return under("net", dense_net(*sizes))
        return under("net", convolutional_net(*sizes, self.condition_size, local=self.local))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A step of flow: actnorm, linear map of the channels, two couplings, actnorm, two couplings (paper Figure 3a).

    Attributes:
        channels: of its input and output.
        linear: form of the linear map, "full" or "lu".
        coupling: each of its four couplings.
        further: names of what stands behind them, of `step_layers.STEP_LAYERS`.
    """

    channels: int
    linear: str
    coupling: CouplingPlan
    further: tuple[str, ...] = ()

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        weights = {
            **under("actnorm_1", actnorm(self.channels)),
            **under("linear", linear(self.channels, self.linear)),
            **under("actnorm_2", actnorm(self.channels)),
        }
        for name in (*FIRST_PAIR, *SECOND_PAIR):
            weights |= under(name, self.coupling.weights())
        for name in self.further:
            weights |= under(name, STEP_LAYERS[name].weights(self.channels))
        return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorOutPlan:
    """What channels pass before they leave: linear map, a coupling that transforms those that leave, their actnorm.

    Attributes:
        channels: of its input and output.
        linear: form of the linear map, "full" or "lu".
        coupling: of the channels that leave.
    """

    channels: int
    linear: str
    coupling: CouplingPlan

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return {
            **under("linear", linear(self.channels, self.linear)),
            **under("coupling", self.coupling.weights()),
            **under("actnorm", actnorm(self.coupling.transformed)),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhiteningPlan:
    """The net from z to mean and scale of every entry of v (the paper's Table 3 baseline).

    Attributes:
        condition_size: size of z.
        hidden: width of the net.
        entries: of v.
    """

    condition_size: int
    hidden: int
    entries: int

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return whitening_net(self.condition_size, self.hidden, self.entries)
