"""Calculates the memory and the multiply-adds of training from a model's config, without creating weights.

`benchmarks/scaling.py` compares the calculated bytes with the measured memory of processes.
"""

import functools
import math
from typing import Any

from tfdecouple.config import Config, ModelConfig
from tfdecouple.config.shapes import Shape
from tfdecouple.layers import Coupling, InvertibleLayer, InvertibleLinear
from tfdecouple.layers.conditioners import CouplingNet
from tfdecouple.networks.architecture import FLOAT32, IMAGE_MAPS, Architecture, PlacedNetwork
from tfdecouple.networks.encoder import Convolution, ResNetBlock

# Bytes of one value in the coupling nets with precision "mixed_bfloat16".
BFLOAT16 = 2
# A backward pass by inversion holds this many feature maps of the size of a layer's input at once: values and gradients
# of the layer, and of the halves of a coupling.
_INVERSION_MAPS = 8
# Published peaks of GPUs (H100 SXM, A100, GeForce RTX 4090) in TFLOP/s by `training.precision`, without sparsity.
# Products of bfloat16 are summed in float32.
PEAKS = {
    "H100": {"float32": 66.9, "tf32": 494.7, "mixed_bfloat16": 989.4},
    "A100": {"float32": 19.5, "tf32": 156.0, "mixed_bfloat16": 312.0},
    "RTX 4090": {"float32": 82.6, "tf32": 82.6, "mixed_bfloat16": 165.2},
}


def compute_ceiling(config: Config, phase: str, gpu: str) -> float:
    """Returns the images/s that a GPU can reach at most in a phase: its published peak over the products of an image.

    `gpu` is a key of `PEAKS`, and `phase` is "train" or "eval". Only training has another precision than float32. A
    training step computes as many products as three forward passes: one forward, and two gradients of each product.
    """
    precision, passes = (config.training.precision, 3) if phase == "train" else ("float32", 1)
    return 1e12 * PEAKS[gpu][precision] / (2 * passes * count_multiply_adds(config.model))


@functools.cache
def make_networks(config: ModelConfig) -> dict[str, PlacedNetwork]:
    """Returns the networks of a config, with the shapes of their inputs; many steps take a second."""
    return Architecture(config).make_networks()


@functools.cache
def count_multiply_adds(config: ModelConfig) -> int:
    """Returns the multiply-adds for one image in encoder, flow and dequantizer (if there is one), without prior."""
    networks = make_networks(config)
    return sum(count_products(*networks[name]) for name in ("encoder", "flow", "dequantizer") if name in networks)


def count_products(layer: Any, x_shape: Shape, condition_shape: Shape | None = None) -> int:
    """Returns the multiply-adds of a layer and its inner layers for one image; shapes are batch first."""
    positions, count = math.prod(x_shape[1:-1]), 0
    if isinstance(layer, Convolution):
        # A convolution applies its kernel at each output position, a transposed one at each input position; the smaller
        # of the two counts is right in both cases.
        positions = min(positions, math.prod(layer.compute_output_shape(x_shape)[1:-1]))
    for weight in layer.declare(x_shape, condition_shape).values():
        if len(weight.shape) > 1:
            # A matrix multiplies one vector for each image, except in a 1x1 convolution.
            is_everywhere = len(weight.shape) == 4 or isinstance(layer, InvertibleLinear)
            count += math.prod(weight.shape) * (positions if is_everywhere else 1)
    return count + sum(count_products(*child) for child in layer.children(x_shape, condition_shape))


@functools.cache
def count_activation_bytes(config: ModelConfig, *, memory: str = "keep", precision: str = "float32") -> int:
    """Returns the bytes of activations in a training step, for each image of a micro-batch.

    The backward pass needs the inputs of layers, for the gradients of kernels, and the activations of the transforms.
    (The gradient of an ELU needs the ELU's output, which the next convolution stores anyway.) With "recompute" the
    hidden maps of one coupling net at a time are in memory, in the worst case those of the largest net. With "invert"
    the input and the output of each stage are stored, and one layer at a time holds values and gradients. `memory` and
    `precision` are values of `training.memory` and `training.precision`.
    """
    net_bytes = BFLOAT16 if precision == "mixed_bfloat16" else FLOAT32
    architecture, networks = Architecture(config), make_networks(config)
    stages, flows = architecture.stages, [networks["flow"]]
    if "dequantizer" in networks:
        dequantizer, x_shape = networks["dequantizer"]
        flows.append((dequantizer.flow, x_shape))
    if memory == "invert":
        stored = sum(2 * FLOAT32 * stage.positions * stage.channels for stage in stages)
    else:
        stored = sum(count_stored_bytes(*flow, net_bytes=net_bytes, memory=memory) for flow in flows)
    stored += sum(count_stored_bytes(*encoder) for encoder in architecture.encoders)
    # A coupling net's backward pass holds three gradients of hidden maps and, except with "keep", two recomputed maps.
    hidden = net_bytes * (3 if memory == "keep" else 5)
    inverted = FLOAT32 * (_INVERSION_MAPS if memory == "invert" else 0)
    working = max(stage.positions * (hidden * stage.hidden + inverted * stage.channels) for stage in stages)
    return stored + working + FLOAT32 * IMAGE_MAPS * math.prod(config.image_shape)


def count_stored_bytes(
    layer: Any,
    x_shape: Shape,
    condition_shape: Shape | None = None,
    net_bytes: int = FLOAT32,
    memory: str = "keep",
) -> int:
    """Returns how many bytes for each image a layer stores for the backward pass, in mode `memory`.

    `memory` is "keep" or "recompute"; values in the coupling nets have `net_bytes` bytes.
    """
    positions, channels = math.prod(x_shape[1:-1]), x_shape[-1]
    if isinstance(layer, CouplingNet):
        is_local = condition_shape is not None and len(condition_shape) == 4
        inputs = channels + (layer.condition_size if is_local else 0)
        return net_bytes * positions * (inputs + (2 * layer.hidden if memory == "keep" else 0))
    children = layer.children(x_shape, condition_shape)
    if isinstance(layer, ResNetBlock):
        return FLOAT32 * _count_block_values(layer, x_shape)
    count = 0
    if isinstance(layer, InvertibleLayer) and layer.declare(x_shape, condition_shape):
        # The gradients for the weights of a layer are computed from its stored input.
        count += positions * channels
    if isinstance(layer, Coupling) and layer.transform == "affine":
        # Additive couplings store no value, because x, b and y have the same gradient.
        count += positions * layer.split.count_channels(channels)[1] * (3 if layer.alpha == 1 else 4)
    return FLOAT32 * count + sum(
        count_stored_bytes(inner, x, condition, net_bytes, memory) for inner, x, condition in children
    )


def _count_block_values(block: ResNetBlock, x_shape: Shape) -> int:
    """Returns how many values a block stores: padded inputs of convolutions, inputs of norms, outputs of two ELUs."""
    *sides, planes = block.compute_output_shape(x_shape)[1:]
    border, has_shortcut = 0 if block.transposed else 2, bool(block.shortcut)
    before, inner = ([side + border for side in map_sides] for map_sides in (x_shape[1:-1], sides))
    maps = (2 + has_shortcut + 2) * math.prod(sides)
    return x_shape[-1] * math.prod(before) + planes * (math.prod(inner) + maps)
