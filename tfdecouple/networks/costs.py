"""What a model costs per image, read off its config: multiply-adds, and the bytes that training keeps.

Nothing here is measured. `benchmarks/scaling.py` compares the bytes with what processes
really take.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfdecouple.config import Config, ModelConfig, override
from tfdecouple.networks.plan import count_parameters, encoders, flows

if TYPE_CHECKING:
    from tfdecouple.layers.base import Cost

FLOAT32, BFLOAT16 = 4, 2

# Maps of the size of a layer's input that its backward pass by inversion holds at once: value and gradient, joined and
# apart, of the layer and of a coupling's halves.
_INVERTING = 8
# Maps of the size of the image around the flow: pixels, noise, x and v, and the gradient for each.
_IMAGES = 8

# Backward multiply-adds for each forward one: the gradients of a product by its two factors.
BACKWARD = 2


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


def multiply_adds(config: ModelConfig) -> int:
    """Returns the multiply-adds of the forward pass, per image: flows and encoders."""
    of_flows = sum(cost.multiply_adds for cost in _costs(config))
    return of_flows + sum(encoder.cost(x_shape).multiply_adds for encoder, x_shape in encoders(config))


def activations(config: ModelConfig, *, memory: str = "keep", precision: str = "float32") -> Activations:
    """Returns the bytes that a training step holds per image of a micro-batch.

    The backward pass keeps the inputs of layers (the gradients of kernels are made of them; that of an ELU is made of
    its output, which the next convolution keeps anyway) and what transforms need. With "recompute" the hidden maps of
    the coupling nets are not kept but computed anew when their turn comes: those of one coupling are held at once, the
    largest in the worst case. With "invert" nothing of a step is kept, but the input and the output of each stage, and
    a layer holds values and gradients for a moment.

    Args:
        config: the architecture.
        memory: as `training.memory`.
        precision: as `training.precision`.
    """
    net_bytes = BFLOAT16 if precision == "mixed_bfloat16" else FLOAT32
    stages = list(itertools.chain(*config.levels, *config.dequantization_levels))
    if memory == "invert":
        kept = sum(2 * FLOAT32 * stage.positions * stage.channels for stage in stages)
    else:
        kept = sum(kept_bytes(cost, net_bytes, memory) for cost in _costs(config))
    kept += FLOAT32 * sum(encoder.cost(x_shape).kept for encoder, x_shape in encoders(config))
    # The gradients of one ELU's input and output and of the layer before it; unless they are kept, two layers, too.
    hidden, narrow = net_bytes * (3 if memory == "keep" else 5), FLOAT32 * (_INVERTING if memory == "invert" else 0)
    working = max(stage.positions * (hidden * stage.hidden + narrow * stage.channels) for stage in stages)
    return Activations(kept + FLOAT32 * _IMAGES * math.prod(config.image_shape), working)


def kept_bytes(cost: Cost, net_bytes: int, memory: str) -> int:
    """Returns what the backward pass of a layer needs of the forward pass, per image, with "keep" or "recompute"."""
    return FLOAT32 * cost.kept + net_bytes * (cost.narrow + (2 * cost.wide if memory == "keep" else 0))


def _costs(config: ModelConfig) -> Iterator[Cost]:
    """Yields what each step of the flows costs, and each layer before channels leave."""
    for flow, levels in flows(config):
        for stage, sizes in zip(flow.stages, itertools.chain(*levels), strict=True):
            inputs = (None, sizes.height, sizes.width, sizes.channels), flow.condition_shape(sizes)
            yield from [stage.steps[0].cost(*inputs)] * sizes.steps
            if stage.factor_out is not None:
                yield stage.factor_out.cost(*inputs)


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
    parameters = count_parameters(config.model)["total"]
    state = state_bytes(parameters, averages=training.ema_decay > 0, micro_batches=micro_batches)
    return state + images * activations(config.model, memory=training.memory, precision=training.precision).total
