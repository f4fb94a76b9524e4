"""The names of the reference's weights, and how their arrays become those of this project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tfdecouple.model import DecoupledModel
from tfdecouple.networks.encoder import ResNetBlock
from tfdecouple.networks.flow import Flow

Convert = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, str, Convert]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.T


def _kernel(array: np.ndarray) -> np.ndarray:
    """Torch's [out, in, height, width] to TensorFlow's [height, width, in, out]; of transposed ones, in for out."""
    return array.transpose(2, 3, 1, 0)


# Names of our layers in a step, a factor-out and a block of the encoder, and of theirs.
_STEP = {
    "actnorm_1": "actnorm",
    "linear": "conv1x1",
    "actnorm_2": "unit.actnorm",
    "coupling_continuous_last": "unit.coupling1_up",
    "coupling_continuous_first": "unit.coupling1_dn",
    "coupling_alternate_last": "unit.coupling2_up",
    "coupling_alternate_first": "unit.coupling2_dn",
}
_PRIOR_STEP = {**_STEP, "linear": "linear"}
_FACTOR_OUT = {"linear": "conv1x1", "coupling": "coupling", "actnorm": "actnorm"}
_BLOCK = {
    "convolution_1": "conv1",
    "norm_1": "bn1",
    "convolution_2": "conv2",
    "norm_2": "bn2",
    "shortcut_convolution": "downsample.0",
    "shortcut_norm": "downsample.1",
}
_TRANSPOSED_BLOCK = {**_BLOCK, "convolution_1": "deconv1", "convolution_2": "deconv2"}

# Names of our weights in such a layer, of theirs, and the conversion.
_OF_IMAGES: dict[str, tuple[str, Convert]] = {
    "log_scale": ("log_scale", _flat),
    "bias": ("bias", _flat),
    "kernel": ("weight", _same),
    "net/first": ("net.conv1.weight", _kernel),
    "net/second": ("net.conv2.weight", _kernel),
    "net/condition_kernel": ("h_net.net.weight", _transposed),
    "net/condition_bias": ("h_net.net.bias", _same),
    "net/last_direction": ("net.conv3.conv.weight_v", _kernel),
    "net/last_gain": ("net.conv3.conv.weight_g", _flat),
    "net/last_bias": ("net.conv3.conv.bias", _same),
}
_OF_IMAGES_WITH_MAP = {**_OF_IMAGES, "net/condition_kernel": ("h_net.net.weight", _kernel)}
_OF_VECTORS: dict[str, tuple[str, Convert]] = {
    **_OF_IMAGES,
    "net/first": ("net.fc1.weight", _transposed),
    "net/first_bias": ("net.fc1.bias", _same),
    "net/second": ("net.fc2.weight", _transposed),
    "net/second_bias": ("net.fc2.bias", _same),
    "net/last_direction": ("net.fc3.linear.weight_v", _transposed),
    "net/last_gain": ("net.fc3.linear.weight_g", _flat),
    "net/last_bias": ("net.fc3.linear.bias", _same),
}
_OF_ENCODER: dict[str, tuple[str, Convert]] = {
    "kernel": ("weight", _kernel),
    "gamma": ("weight", _same),
    "beta": ("bias", _same),
    "moving_mean": ("running_mean", _same),
    "moving_variance": ("running_var", _same),
}


_OF_CLASSES: dict[str, tuple[str, Convert]] = {
    "embedding": ("embed.weight", _same),
    "first": ("net.0.weight", _transposed),
    "first_bias": ("net.0.bias", _same),
    "second": ("net.2.weight", _transposed),
    "second_bias": ("net.2.bias", _same),
    "last": ("net.4.weight", _transposed),
    "last_bias": ("net.4.bias", _same),
}


def match_weights(model: DecoupledModel) -> Iterator[Row]:
    """Yields (name in the reference, name here, conversion) of every weight."""
    weights = list(model.named_variables())
    yield from _flow("generator.flow", "flow", model.flow, weights)
    if model.dequantizer is not None:
        yield from _blocks("dequantizer.encoder.net", "dequantizer/encoder", model.dequantizer.encoder.blocks, weights)
        yield from _flow("dequantizer.flow.core", "dequantizer/flow", model.dequantizer.flow, weights)
    if model.encoder is not None:
        yield from _encoder(model, weights)
    if model.code_net is not None:
        for name, (theirs, convert) in _OF_CLASSES.items():
            yield f"discriminator.{theirs}", f"class_codes/{name}", convert
    if model.prior_flow is not None:
        for index, step in enumerate(model.prior_flow.sequence):
            theirs = f"discriminator.prior.flow.steps.{index}"
            yield from _rows(theirs, f"prior_flow/{step.name}", weights, _PRIOR_STEP, _OF_VECTORS)


def _flow(root: str, ours: str, flow: Flow, weights: list[str]) -> Iterator[Row]:
    names = _OF_IMAGES_WITH_MAP if flow.local else _OF_IMAGES
    for level, stages in enumerate(flow.levels):
        block = f"{root}.blocks.{level}"
        for number, stage in enumerate(stages):
            steps = f"{block}.layers.{number}" if stage.factor_out else f"{block}.steps"
            for index, step in enumerate(stage.steps):
                yield from _rows(f"{steps}.{index}", f"{ours}/{step.name}", weights, _STEP, names)
            if stage.factor_out is not None:
                theirs, own = f"{block}.priors.{number}", f"{ours}/{stage.factor_out.name}"
                yield from _rows(theirs, own, weights, _FACTOR_OUT, names)


def _rows(
    theirs: str, ours: str, weights: list[str], layers: Mapping[str, str], names: Mapping[str, tuple[str, Convert]]
) -> Iterator[Row]:
    """Yields the rows of the weights under `ours`, by the names of their layers and their own."""
    for path in weights:
        if path.startswith(f"{ours}/"):
            layer, _, weight = path.removeprefix(f"{ours}/").partition("/")
            their_weight, convert = names[weight]
            yield f"{theirs}.{layers[layer]}.{their_weight}", path, convert


def _blocks(root: str, ours: str, blocks: list[ResNetBlock], weights: list[str]) -> Iterator[Row]:
    """Yields the rows of ResNet blocks, of which two belong to a level, down or back up."""
    levels = sum(not block.transposed for block in blocks) // 2
    for index, block in enumerate(blocks):
        level = 2 * levels - 1 - index // 2 if block.transposed else index // 2
        level_name = f"{'de' if block.transposed else ''}resnet{level}"
        layers = _TRANSPOSED_BLOCK if block.transposed else _BLOCK
        theirs = f"{root}.{level_name}.main.{index % 2}"
        yield from _rows(theirs, f"{ours}/{block.name}", weights, layers, _OF_ENCODER)


def _encoder(model: DecoupledModel, weights: list[str]) -> Iterator[Row]:
    root, encoder = "discriminator.encoder.net", model.encoder
    assert encoder is not None
    yield from _blocks(root, "encoder", encoder.blocks, weights)
    *sides, planes = encoder.map_shape(model.input_shape)[1:]

    def dense(array: np.ndarray) -> np.ndarray:
        """The reference flattens channels first, this project channels last."""
        maps = array.reshape(len(array), planes, *sides).transpose(2, 3, 1, 0)
        return maps.reshape(-1, len(array))

    yield f"{root}.top.weight", "encoder/top/kernel", _kernel
    yield f"{root}.top.bias", "encoder/top/bias", _same
    yield "discriminator.fc.linear.weight_v", "encoder/last_direction", dense
    yield "discriminator.fc.linear.weight_g", "encoder/last_gain", _flat
    yield "discriminator.fc.linear.bias", "encoder/last_bias", _same
