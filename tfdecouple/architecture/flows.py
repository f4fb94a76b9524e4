"""The flows: over images, that of the model and that of the dequantisation, and over z."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tfdecouple.architecture.layers import CouplingPlan, FactorOutPlan, StepPlan, WhiteningPlan
from tfdecouple.architecture.weights import Weights, under
from tfdecouple.levels import StagePlan, halves, squeezes_first, step_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorPlan:
    """The flow of the prior over z: some steps on vectors (paper B.3).

    Attributes:
        steps: how many.
        step: each of them.
    """

    steps: int
    step: StepPlan

    @property
    def step_names(self) -> tuple[str, ...]:
        """Names of its steps, in the forward direction."""
        return step_names(self.steps)

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        one = self.step.weights()
        return {name: shape for step in self.step_names for name, shape in under(step, one).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowPlan:
    """A flow over images: the model's own, or that of the dequantisation.

    Attributes:
        image_shape: height, width and channels of the images.
        levels: the stages of each level, the highest resolution first.
        condition_size: size of the vector, or channels of the map at full resolution, that conditions it; or 0.
        local: whether that is a map, which is squeezed beside the image: four times the channels at half the side.
        transform: name of the transform of the couplings of steps.
        multiscale_transform: name of that of the couplings before channels leave.
        alpha: bound of both.
        linear: form of the linear maps, "full" or "lu".
        step_layers: names of what ends each step beside the paper's layers, of `step_layers.STEP_LAYERS`.
        whitening: of v by z, where z enters nowhere else; else None.
    """

    image_shape: tuple[int, int, int]
    levels: tuple[tuple[StagePlan, ...], ...]
    condition_size: int
    local: bool
    transform: str
    multiscale_transform: str
    alpha: float
    linear: str
    step_layers: tuple[str, ...] = ()
    whitening: WhiteningPlan | None = None

    @property
    def stages(self) -> Iterator[StagePlan]:
        """All stages in the forward direction."""
        return (stage for level in self.levels for stage in level)

    @property
    def squeezes_first(self) -> bool:
        """Whether a squeeze stands before the first level, too."""
        return squeezes_first(self.image_shape[-1])

    def condition_shape(self, stage: StagePlan) -> tuple[int | None, ...]:
        """Returns the shape of what the couplings of a stage are conditioned on, batch first."""
        if not self.local:
            return (None, self.condition_size)
        return (None, stage.height, stage.width, self.condition_size * stage.reduction**2)

    def step(self, stage: StagePlan) -> StepPlan:
        """Returns what each step of a stage is."""
        coupling = self._coupling(stage, *halves(stage.channels), self.transform)
        return StepPlan(channels=stage.channels, linear=self.linear, coupling=coupling, further=self.step_layers)

    def factor_out(self, stage: StagePlan) -> FactorOutPlan | None:
        """Returns what stands at the end of a stage before channels leave; None where none leave."""
        if not stage.dropped:
            return None
        coupling = self._coupling(stage, stage.kept, stage.dropped, self.multiscale_transform)
        return FactorOutPlan(channels=stage.channels, linear=self.linear, coupling=coupling)

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        weights: Weights = {}
        for stage in self.stages:
            step, factor_out = self.step(stage).weights(), self.factor_out(stage)
            for name in stage.step_names:
                weights |= under(name, step)
            if factor_out is not None:
                weights |= under(stage.factor_out_name, factor_out.weights())
        if self.whitening is not None:
            weights |= under("whitening", self.whitening.weights())
        return weights

    def _coupling(self, stage: StagePlan, kept: int, transformed: int, transform: str) -> CouplingPlan:
        return CouplingPlan(
            kept=kept,
            transformed=transformed,
            hidden=stage.hidden,
            condition_size=self.condition_shape(stage)[-1] or 0,
            transform=transform,
            local=self.local,
        )
