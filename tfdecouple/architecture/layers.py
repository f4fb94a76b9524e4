"""The layers of flows: couplings, steps, what stands before channels leave, the whitening."""

from __future__ import annotations

import dataclasses
from typing import Literal

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

# The layers of a step by name, in the forward direction: an actnorm, the linear map of the channels, or a coupling, as
# the pattern of its split and the side that is transformed (paper Figure 3a).
STEP: dict[str, Literal["actnorm", "linear"] | tuple[str, str]] = {
    "actnorm_1": "actnorm",
    "linear": "linear",
    "coupling_continuous_last": ("continuous", "last"),
    "coupling_continuous_first": ("continuous", "first"),
    "actnorm_2": "actnorm",
    "coupling_alternate_last": ("alternate", "last"),
    "coupling_alternate_first": ("alternate", "first"),
}


@dataclasses.dataclass(frozen=True)
class ActNormPlan:
    """An actnorm of so many channels."""

    channels: int

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return actnorm(self.channels)


@dataclasses.dataclass(frozen=True)
class LinearPlan:
    """An invertible linear map of so many channels, in the form "full" or "lu"."""

    channels: int
    form: str

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return linear(self.channels, self.form)


@dataclasses.dataclass(frozen=True)
class RegisteredPlan:
    """A layer of `step_layers.STEP_LAYERS`, by name, for so many channels."""

    name: str
    channels: int

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return STEP_LAYERS[self.name].weights(self.channels)


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


LayerPlan = ActNormPlan | LinearPlan | CouplingPlan | RegisteredPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A step of flow, the layers of `STEP`, and what is registered to stand behind them.

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

    def layers(self) -> dict[str, LayerPlan]:
        """Returns its layers by name, in the forward direction."""
        layers: dict[str, LayerPlan] = {}
        for name, layer in STEP.items():
            match layer:
                case "actnorm":
                    layers[name] = ActNormPlan(self.channels)
                case "linear":
                    layers[name] = LinearPlan(self.channels, self.linear)
                case _:
                    layers[name] = self.coupling
        return layers | {name: RegisteredPlan(name, self.channels) for name in self.further}

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return _weights(self.layers())


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

    def layers(self) -> dict[str, LayerPlan]:
        """Returns its layers by name, in the forward direction."""
        return {
            "linear": LinearPlan(self.channels, self.linear),
            "coupling": self.coupling,
            "actnorm": ActNormPlan(self.coupling.transformed),
        }

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return _weights(self.layers())


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


def _weights(layers: dict[str, LayerPlan]) -> Weights:
    return {path: shape for name, layer in layers.items() for path, shape in under(name, layer.weights()).items()}
