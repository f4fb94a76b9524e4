"""What a model costs per image, read off its config: multiply-adds, and the bytes that training keeps.

Nothing here is measured and no TensorFlow is needed. `benchmarks/scaling.py` compares the bytes with what processes
really take.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from tfdecouple.architecture import CouplingPlan, FactorOutPlan, FlowPlan, ResNetPlan, StepPlan, plan
from tfdecouple.config import Config, ModelConfig, override
from tfdecouple.transforms import TRANSFORMS

FLOAT32, BFLOAT16 = 4, 2

# Maps of the size of a layer's input that its backward pass by inversion holds at once: value and gradient, joined and
# apart, of the layer and of a coupling's halves.
_INVERTING = 8
# Maps of the size of the image around the flow: pixels, noise, x and v, and the gradient for each.
_IMAGES = 8

# Backward multiply-adds for each forward one: the gradients of a product by its two factors.
BACKWARD = 2


@dataclasses.dataclass(frozen=True)
class CouplingSize:
    """A coupling of images.

    Attributes:
        positions: height times width.
        plan: its channels.
    """

    positions: int
    plan: CouplingPlan

    def multiply_adds(self) -> int:
        """Of the net's three convolutions, and of the condition: once an image of z, 3x3 at each position of a map."""
        plan = self.plan
        at_each = 9 * plan.kept * plan.hidden + plan.hidden**2 + 9 * plan.hidden * plan.outputs
        condition = plan.condition_size * plan.hidden * (9 * self.positions if plan.local else 1)
        return self.positions * at_each + condition

    def kept_bytes(self, alpha: float, net_bytes: int, memory: str) -> int:
        """Returns what the backward pass needs of the forward pass, per image.

        The inputs of the convolutions (the gradients of their kernels are made of them; that of an ELU is made of its
        output, which the next convolution keeps anyway), of which "recompute" keeps the narrow ones alone; and what
        the transform says that it needs.
        """
        inputs = self.plan.kept + (self.plan.condition_size if self.plan.local else 0)
        net = net_bytes * (inputs + (2 * self.plan.hidden if memory == "keep" else 0))
        transform = FLOAT32 * self.plan.transformed * TRANSFORMS[self.plan.transform].kept(alpha)
        return self.positions * (net + transform)

    def working_bytes(self, net_bytes: int, memory: str) -> int:
        """Returns what the backward pass of this coupling holds for a moment: the gradients of the hidden layers.

        Of one ELU's input and output and of the layer before it, each `hidden` wide; unless they are kept the two
        layers, too.
        """
        return self.positions * net_bytes * (3 if memory == "keep" else 5) * self.plan.hidden


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """A layer of the flow: a step, or what stands before channels leave.

    Attributes:
        positions: height times width.
        channels: of its input and output.
        couplings: its couplings.
        maps: how many other layers it has, such as actnorms; each keeps its input for the backward pass.
    """

    positions: int
    channels: int
    couplings: tuple[CouplingSize, ...]
    maps: int

    def multiply_adds(self) -> int:
        """Of its couplings and its 1x1 convolution."""
        return self.positions * self.channels**2 + sum(coupling.multiply_adds() for coupling in self.couplings)

    def kept_bytes(self, alpha: float, net_bytes: int, memory: str) -> int:
        """Returns what the backward pass needs of it, per image: with "invert" nothing."""
        if memory == "invert":
            return 0
        inputs = FLOAT32 * self.positions * self.channels * self.maps
        return inputs + sum(each.kept_bytes(alpha, net_bytes, memory) for each in self.couplings)

    def working_bytes(self, net_bytes: int, memory: str) -> int:
        """Returns what its backward pass holds for a moment, per image: with "invert" values and gradients, too."""
        narrow = FLOAT32 * self.positions * self.channels * (_INVERTING if memory == "invert" else 0)
        return narrow + max(coupling.working_bytes(net_bytes, memory) for coupling in self.couplings)


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes per image of a micro-batch.

    Attributes:
        kept: from the forward to the backward pass.
        working: held for a moment, at most.
    """

    kept: int
    working: int

    @property
    def total(self) -> int:
        """Both."""
        return self.kept + self.working


def flow_layers(config: ModelConfig) -> Iterator[LayerSize]:
    """Yields the layers of the flow in the order of the forward pass."""
    return _layers(plan(config).flow)


def _flows(config: ModelConfig) -> list[FlowPlan]:
    """Returns the flow, and that of the dequantisation where there is one."""
    planned = plan(config)
    return [planned.flow, *([] if planned.dequantizer is None else [planned.dequantizer.flow])]


def _layers(planned: FlowPlan) -> Iterator[LayerSize]:
    for stage in planned.stages:
        yield from [_size(planned.step(stage), stage.positions)] * stage.steps
        factor_out = planned.factor_out(stage)
        if factor_out is not None:
            yield _size(factor_out, stage.positions)


def _size(planned: StepPlan | FactorOutPlan, positions: int) -> LayerSize:
    layers = planned.layers().values()
    couplings = tuple(CouplingSize(positions, layer) for layer in layers if isinstance(layer, CouplingPlan))
    return LayerSize(positions, planned.channels, couplings, maps=len(layers) - len(couplings))


def multiply_adds(config: ModelConfig) -> int:
    """Returns the multiply-adds of the forward pass, per image: flows and encoders."""
    encoder = sum(block.multiply_adds for block in _encoder_blocks(config))
    return encoder + sum(layer.multiply_adds() for flow in _flows(config) for layer in _layers(flow))


def activations(config: ModelConfig, *, memory: str = "keep", precision: str = "float32") -> Activations:
    """Returns the bytes that a training step holds per image of a micro-batch.

    With "recompute" the hidden maps of the coupling nets are not kept but computed anew when their turn comes: those of
    one coupling are held at once, the largest in the worst case. With "invert" nothing of a step is kept, but the input
    and the output of each stage.

    Args:
        config: the architecture.
        memory: as `training.memory`.
        precision: as `training.precision`.
    """
    net_bytes = BFLOAT16 if precision == "mixed_bfloat16" else FLOAT32
    flows = _flows(config)
    encoder = sum(FLOAT32 * block.kept for block in _encoder_blocks(config))
    kept = sum(layer.kept_bytes(flow.alpha, net_bytes, memory) for flow in flows for layer in _layers(flow))
    if memory == "invert":
        kept = sum(2 * FLOAT32 * stage.positions * stage.channels for flow in flows for stage in flow.stages)
    working = max(layer.working_bytes(net_bytes, memory) for flow in flows for layer in _layers(flow))
    return Activations(kept + encoder + FLOAT32 * _IMAGES * math.prod(config.image_shape), working)


def with_depth(config: Config, steps: int) -> Config:
    """Returns the config with so many steps in every stage."""
    every = [[steps] * len(entry) if isinstance(entry, tuple) else steps for entry in config.model.steps]
    return override(config, [f"model.steps={every}"])


def state_bytes(parameters: int, *, averages: bool, micro_batches: int = 1) -> int:
    """Returns the bytes that do not depend on the batch, all float32.

    Weights, gradients and Adam's two moments; averaged weights, where they are kept; with micro-batches the sum of
    their gradients and the vector that is added to it.
    """
    return FLOAT32 * parameters * (4 + averages + (2 if micro_batches > 1 else 0))


@dataclasses.dataclass(frozen=True)
class _Block:
    """A block of the encoder: its multiply-adds, and the numbers that its backward pass needs, per image."""

    multiply_adds: int
    kept: int


def _encoder_blocks(config: ModelConfig) -> Iterator[_Block]:
    planned = plan(config)
    encoders: list[ResNetPlan] = [] if planned.encoder is None else [planned.encoder]
    if planned.dequantizer is not None:
        encoders.append(planned.dequantizer.encoder)
    for encoder in encoders:
        for block in encoder.blocks:
            channels, planes = block.channels, block.planes
            sides, out_sides, border = encoder.sides(block), encoder.out_sides(block), 0 if block.transposed else 2
            out = math.prod(out_sides)
            # A transposed convolution has its kernel at each position of its input.
            first = channels * planes * (9 + block.shortcut) * min(math.prod(sides), out)
            # The (padded) input of both convolutions, what each batch normalisation sees, and both ELUs' outputs.
            inner = math.prod(side + border for side in out_sides)
            maps = (2 + block.shortcut + 2) * planes * out + planes * inner
            before = channels * math.prod(side + border for side in sides)
            yield _Block(first + 9 * planes**2 * out, before + maps)


def fewest_micro_batches(config: Config, devices: int, free: int) -> int | None:
    """Returns the fewest micro-batches with which a step's share of a device fits; None where not even one image does.

    Args:
        config: the run.
        devices: that share a batch.
        free: bytes of memory on each.
    """
    share, rest = divmod(config.training.batch_size, devices)
    for count in range(1, share + 1):
        if not rest and share % count == 0 and step_bytes(config, share // count, count) <= free:
            return count
    return None


def not_counted(config: Config) -> str:
    """Returns what to say behind bytes of `step_bytes` of what they leave out; empty where that is nothing."""
    return ", without what XLA needs besides" if config.training.jit_compile else ""


def step_bytes(config: Config, images: int, micro_batches: int = 1) -> int:
    """Returns the bytes that a training step holds on a device: state, and maps of so many images at a time."""
    training = config.training
    parameters = plan(config.model).parameters()["total"]
    state = state_bytes(parameters, averages=training.ema_decay > 0, micro_batches=micro_batches)
    return state + images * activations(config.model, memory=training.memory, precision=training.precision).total
