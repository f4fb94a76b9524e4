"""The layers of flows: couplings, steps, what stands before channels leave, the whitening."""

from __future__ import annotations

import dataclasses

from tfdecouple.architecture.weights import Weights, actnorm, linear, under, weight_norm
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
        kernel, hidden = ((3, 3) if self.images else ()), self.hidden
        weights = {
            "first": (*kernel, self.kept, hidden),
            "second": ((1, 1, hidden, hidden) if self.images else (hidden, hidden)),
            **weight_norm((*kernel, hidden, self.outputs)),
        }
        if not self.images:
            weights |= {"first_bias": (hidden,), "second_bias": (hidden,)}
        if self.condition_size:
            around = (3, 3) if self.local else ()
            weights |= {"condition_kernel": (*around, self.condition_size, hidden), "condition_bias": (hidden,)}
        return under("net", weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A step of flow: actnorm, linear map of the channels, two couplings, actnorm, two couplings (paper Figure 3a).

    Attributes:
        channels: of its input and output.
        linear: form of the linear map, "full" or "lu".
        coupling: each of its four couplings.
    """

    channels: int
    linear: str
    coupling: CouplingPlan

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        weights = {
            **actnorm("actnorm_1", self.channels),
            **linear("linear", self.channels, self.linear),
            **actnorm("actnorm_2", self.channels),
        }
        for name in (*FIRST_PAIR, *SECOND_PAIR):
            weights |= under(name, self.coupling.weights())
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
            **linear("linear", self.channels, self.linear),
            **under("coupling", self.coupling.weights()),
            **actnorm("actnorm", self.coupling.transformed),
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
        first = {"first": (self.condition_size, self.hidden), "first_bias": (self.hidden,)}
        return {**first, **weight_norm((self.hidden, 2 * self.entries))}
