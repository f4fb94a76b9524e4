"""Calculates the memory of training from a model's config, as a sum of the `Cost` of its layers.

`benchmarks/scaling.py` compares the calculated bytes with the measured memory of processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tfdecouple.config import ModelConfig
from tfdecouple.networks.architecture import FLOAT32, IMAGE_MAPS, Architecture

if TYPE_CHECKING:
    from tfdecouple.layers.base import Cost

# Bytes of one value in the coupling nets with precision "mixed_bfloat16".
BFLOAT16 = 2
# A backward pass by inversion holds this many feature maps of the size of a layer's input at once: values and gradients
# of the layer, and of the halves of a coupling.
_INVERSION_MAPS = 8


def count_activation_bytes(config: ModelConfig, *, memory: str = "keep", precision: str = "float32") -> int:
    """Returns the bytes of activations in a training step, for each image of a micro-batch.

    The backward pass needs the inputs of layers, for the gradients of kernels, and the activations of the transforms.
    (The gradient of an ELU needs the ELU's output, which the next convolution stores anyway.) With "recompute" the
    hidden maps of one coupling net at a time are in memory, in the worst case those of the largest net. With "invert"
    the input and the output of each stage are stored, and one layer at a time holds values and gradients. `memory` and
    `precision` are values of `training.memory` and `training.precision`.
    """
    net_bytes = BFLOAT16 if precision == "mixed_bfloat16" else FLOAT32
    architecture = Architecture(config)
    stages = architecture.stages
    if memory == "invert":
        stored = sum(2 * FLOAT32 * stage.positions * stage.channels for stage in stages)
    else:
        stored = sum(count_stored_bytes(cost, net_bytes, memory) for cost in architecture.compute_flow_costs())
    stored += FLOAT32 * sum(encoder.cost(x_shape).activations for encoder, x_shape in architecture.encoders)
    # A coupling net's backward pass holds three gradients of hidden maps and, except with "keep", two recomputed maps.
    hidden = net_bytes * (3 if memory == "keep" else 5)
    inverted = FLOAT32 * (_INVERSION_MAPS if memory == "invert" else 0)
    working = max(stage.positions * (hidden * stage.hidden + inverted * stage.channels) for stage in stages)
    return stored + working + FLOAT32 * IMAGE_MAPS * math.prod(config.image_shape)


def count_stored_bytes(cost: Cost, net_bytes: int, memory: str) -> int:
    """Returns how many bytes for each image a layer with this `Cost` stores for the backward pass, in mode `memory`.

    `memory` is "keep" or "recompute"; values in the coupling nets have `net_bytes` bytes.
    """
    hidden_maps = 2 * cost.hidden_map if memory == "keep" else 0
    return FLOAT32 * cost.activations + net_bytes * (cost.net_inputs + hidden_maps)
