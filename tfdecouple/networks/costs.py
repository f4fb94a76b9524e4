"""Calculations of what a model costs per image: multiply-adds, and the bytes that training and inference need.

`benchmarks/scaling.py` compares the calculated bytes with the measured memory of processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfdecouple.config import ModelConfig
from tfdecouple.networks.architecture import encoders, flows

if TYPE_CHECKING:
    from tfdecouple.layers.base import Cost

FLOAT32, BFLOAT16 = 4, 2

# Number of maps, each of the size of a layer's input, that a backward pass by inversion holds at once: values and
# gradients of the layer, and of the halves of a coupling.
_INVERSION_MAPS = 8
# Number of maps of the size of the image outside the flow: pixels, noise, x, v, and the gradient for each.
_IMAGE_MAPS = 8

# Numbers of maps that a pass without gradients holds at once: hidden maps of coupling nets, and maps of a stage.
_HIDDEN_MAPS, _STAGE_MAPS = 3, 8


@dataclasses.dataclass(frozen=True)
class Activations:
    """The bytes that activations take, per image of a micro-batch.

    Attributes:
        stored: bytes held from the forward to the backward pass.
        working: bytes that one layer holds in addition while its backward pass runs, at most.
    """

    stored: int
    working: int

    @property
    def total(self) -> int:
        """The sum of stored and working bytes."""
        return self.stored + self.working


def multiply_adds(config: ModelConfig) -> int:
    """Returns the multiply-adds of the forward pass through flows and encoders, per image."""
    in_flows = sum(cost.multiply_adds for cost in _flow_costs(config))
    return in_flows + sum(encoder.cost(x_shape).multiply_adds for encoder, x_shape in encoders(config))


def activations(config: ModelConfig, *, memory: str = "keep", precision: str = "float32") -> Activations:
    """Returns the bytes of activations in a training step, per image of a micro-batch.

    The backward pass needs the inputs of layers, for the gradients of kernels (the gradient of an ELU needs its output,
    which the next convolution stores anyway), and the activations of the transforms. With "recompute" the hidden maps
    of one coupling net at a time are held, the largest in the worst case. With "invert" the input and the output of
    each stage are stored, and each layer in turn holds values and gradients while its backward pass runs.

    Args:
        config: the architecture.
        memory: how activations reach the backward pass, a value of `training.memory`.
        precision: precision of the nets, a value of `training.precision`.
    """
    net_bytes = BFLOAT16 if precision == "mixed_bfloat16" else FLOAT32
    stages = list(itertools.chain(*config.levels, *config.dequantization_levels))
    if memory == "invert":
        stored = sum(2 * FLOAT32 * stage.positions * stage.channels for stage in stages)
    else:
        stored = sum(stored_bytes(cost, net_bytes, memory) for cost in _flow_costs(config))
    stored += FLOAT32 * sum(encoder.cost(x_shape).activations for encoder, x_shape in encoders(config))
    # Bytes of hidden maps held at once, per number of a map: three gradients around an ELU, two maps unless stored.
    hidden = net_bytes * (3 if memory == "keep" else 5)
    inverted = FLOAT32 * (_INVERSION_MAPS if memory == "invert" else 0)
    working = max(stage.positions * (hidden * stage.hidden + inverted * stage.channels) for stage in stages)
    return Activations(stored + FLOAT32 * _IMAGE_MAPS * math.prod(config.image_shape), working)


def inference_bytes(config: ModelConfig, height: int, width: int) -> int:
    """Returns the bytes, without weights, that encoding, decoding or a likelihood bound takes at most for one image.

    Args:
        config: the architecture of a model for images of any size.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
    """
    own_height, own_width, channels = config.image_shape
    # The numbers are counted for an image of the model's size; all maps grow in proportion to the pixels.
    stages = itertools.chain(*config.levels, *config.dequantization_levels)
    widest = [stage.positions * (_HIDDEN_MAPS * stage.hidden + _STAGE_MAPS * stage.channels) for stage in stages]
    if config.has_dequantizer:
        encoder, x_shape = encoders(config)[-1]
        blocks = encoder.children(x_shape)
        widest += [_HIDDEN_MAPS * math.prod(block.compute_output_shape(shape)[1:]) for block, shape, _ in blocks]
    numbers = max(widest) + _IMAGE_MAPS * own_height * own_width * channels
    return FLOAT32 * numbers * height * width // (own_height * own_width)


def stored_bytes(cost: Cost, net_bytes: int, memory: str) -> int:
    """Returns the bytes that a layer stores for its backward pass, per image, for the memory "keep" or "recompute"."""
    hidden_maps = 2 * cost.hidden_map if memory == "keep" else 0
    return FLOAT32 * cost.activations + net_bytes * (cost.net_inputs + hidden_maps)


def _flow_costs(config: ModelConfig) -> Iterator[Cost]:
    """Yields the cost of each step of the flows, and of each `FactorOut` layer."""
    for flow, levels in flows(config):
        for stage, sizes in zip(flow.stages, itertools.chain(*levels), strict=True):
            inputs = (None, sizes.height, sizes.width, sizes.channels), flow.condition_shape(sizes)
            yield from [stage.steps[0].cost(*inputs)] * sizes.steps
            if stage.factor_out is not None:
                yield stage.factor_out.cost(*inputs)
