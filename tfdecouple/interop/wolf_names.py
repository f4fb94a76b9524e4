"""Names of the weights of wolf (the authors' PyTorch code), and conversions of its arrays to this project's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tfdecouple.model import DecoupledModel
from tfdecouple.networks.encoder import ResNetBlock
from tfdecouple.networks.flow import Flow

Convert = Callable[[np.ndarray], np.ndarray]
# A weight's name in wolf (the authors' code), its name in this project, and the function that converts wolf's array.
WeightMatch = tuple[str, str, Convert]


def _convert_kernel(array: np.ndarray) -> np.ndarray:
    """Returns Torch's kernel `[out, in, h, w]` as TensorFlow's `[h, w, in, out]`; also if transposed."""
    return array.transpose(2, 3, 1, 0)


# Each table from `_STEP` to `_TRANSPOSED_BLOCK` maps this project's names of layers to those of wolf (authors' code).
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

# Each table below maps this project's names of weights to pairs: the name in wolf (the authors' code), and the function
# that converts wolf's array.
_IMAGE_WEIGHTS: dict[str, tuple[str, Convert]] = {
    "log_scale": ("log_scale", np.ravel),
    "bias": ("bias", np.ravel),
    "kernel": ("weight", np.asarray),
    "net/first": ("net.conv1.weight", _convert_kernel),
    "net/second": ("net.conv2.weight", _convert_kernel),
    "net/condition_kernel": ("h_net.net.weight", np.transpose),
    "net/condition_bias": ("h_net.net.bias", np.asarray),
    "net/last_direction": ("net.conv3.conv.weight_v", _convert_kernel),
    "net/last_gain": ("net.conv3.conv.weight_g", np.ravel),
    "net/last_bias": ("net.conv3.conv.bias", np.asarray),
}
_IMAGE_WEIGHTS_WITH_MAP = {**_IMAGE_WEIGHTS, "net/condition_kernel": ("h_net.net.weight", _convert_kernel)}
_VECTOR_WEIGHTS: dict[str, tuple[str, Convert]] = {
    **_IMAGE_WEIGHTS,
    "net/first": ("net.fc1.weight", np.transpose),
    "net/first_bias": ("net.fc1.bias", np.asarray),
    "net/second": ("net.fc2.weight", np.transpose),
    "net/second_bias": ("net.fc2.bias", np.asarray),
    "net/last_direction": ("net.fc3.linear.weight_v", np.transpose),
    "net/last_gain": ("net.fc3.linear.weight_g", np.ravel),
    "net/last_bias": ("net.fc3.linear.bias", np.asarray),
}
_ENCODER_WEIGHTS: dict[str, tuple[str, Convert]] = {
    "kernel": ("weight", _convert_kernel),
    "gamma": ("weight", np.asarray),
    "beta": ("bias", np.asarray),
    "moving_mean": ("running_mean", np.asarray),
    "moving_variance": ("running_var", np.asarray),
}
_CLASS_WEIGHTS: dict[str, tuple[str, Convert]] = {
    "embedding": ("embed.weight", np.asarray),
    "first": ("net.0.weight", np.transpose),
    "first_bias": ("net.0.bias", np.asarray),
    "second": ("net.2.weight", np.transpose),
    "second_bias": ("net.2.bias", np.asarray),
    "last": ("net.4.weight", np.transpose),
    "last_bias": ("net.4.bias", np.asarray),
}


def match_weights(model: DecoupledModel) -> Iterator[WeightMatch]:
    """Yields (name in wolf, name in this project, function that converts wolf's array) for each weight of a model."""
    weights = list(model.named_variables())
    yield from _match_flow("generator.flow", "flow", model.flow, weights)
    if model.dequantizer is not None:
        yield from _match_blocks(
            "dequantizer.encoder.net", "dequantizer/encoder", model.dequantizer.encoder.blocks, weights
        )
        yield from _match_flow("dequantizer.flow.core", "dequantizer/flow", model.dequantizer.flow, weights)
    if model.encoder is not None:
        yield from _match_encoder(model, weights)
    if model.code_net is not None:
        for name, (theirs, convert) in _CLASS_WEIGHTS.items():
            yield f"discriminator.{theirs}", f"class_codes/{name}", convert
    if model.prior_flow is not None:
        for index, step in enumerate(model.prior_flow.sequence):
            theirs = f"discriminator.prior.flow.steps.{index}"
            yield from _match_layer(theirs, f"prior_flow/{step.name}", weights, _PRIOR_STEP, _VECTOR_WEIGHTS)


def _match_flow(root: str, ours: str, flow: Flow, weights: list[str]) -> Iterator[WeightMatch]:
    names = _IMAGE_WEIGHTS_WITH_MAP if flow.local else _IMAGE_WEIGHTS
    for level, stages in enumerate(flow.levels):
        block = f"{root}.blocks.{level}"
        for number, stage in enumerate(stages):
            steps = f"{block}.layers.{number}" if stage.factor_out else f"{block}.steps"
            for index, step in enumerate(stage.steps):
                yield from _match_layer(f"{steps}.{index}", f"{ours}/{step.name}", weights, _STEP, names)
            if stage.factor_out is not None:
                theirs, name = f"{block}.priors.{number}", f"{ours}/{stage.factor_out.name}"
                yield from _match_layer(theirs, name, weights, _FACTOR_OUT, names)


def _match_layer(
    theirs: str, ours: str, weights: list[str], layers: Mapping[str, str], names: Mapping[str, tuple[str, Convert]]
) -> Iterator[WeightMatch]:
    """Yields a `WeightMatch` (two names, converter) for each of `weights` whose name begins with `ours` and "/".

    In wolf (the authors' code) these names begin with `theirs`. `layers` maps this project's names of layers to wolf's
    names; `names` maps this project's names of weights to pairs of wolf's name and a function that converts the array.
    """
    for path in weights:
        if path.startswith(f"{ours}/"):
            layer, _, weight = path.removeprefix(f"{ours}/").partition("/")
            their_weight, convert = names[weight]
            yield f"{theirs}.{layers[layer]}.{their_weight}", path, convert


def _match_blocks(root: str, ours: str, blocks: list[ResNetBlock], weights: list[str]) -> Iterator[WeightMatch]:
    """Yields a `WeightMatch` for each weight in an encoder's blocks."""
    levels = sum(not block.transposed for block in blocks) // 2
    for index, block in enumerate(blocks):
        level = 2 * levels - 1 - index // 2 if block.transposed else index // 2
        level_name = f"{'de' if block.transposed else ''}resnet{level}"
        layers = _TRANSPOSED_BLOCK if block.transposed else _BLOCK
        theirs = f"{root}.{level_name}.main.{index % 2}"
        yield from _match_layer(theirs, f"{ours}/{block.name}", weights, layers, _ENCODER_WEIGHTS)


def _match_encoder(model: DecoupledModel, weights: list[str]) -> Iterator[WeightMatch]:
    root, encoder = "discriminator.encoder.net", model.encoder
    assert encoder is not None
    yield from _match_blocks(root, "encoder", encoder.blocks, weights)
    *sides, planes = encoder.compute_map_shape(model.input_shape)[1:]

    def convert_dense_kernel(array: np.ndarray) -> np.ndarray:
        """Returns wolf's kernel `[out, in]` as `[in, out]`, with flattened inputs channels last, not channels first."""
        maps = array.reshape(len(array), planes, *sides).transpose(2, 3, 1, 0)
        return maps.reshape(-1, len(array))

    yield f"{root}.top.weight", "encoder/top/kernel", _convert_kernel
    yield f"{root}.top.bias", "encoder/top/bias", np.asarray
    yield "discriminator.fc.linear.weight_v", "encoder/last_direction", convert_dense_kernel
    yield "discriminator.fc.linear.weight_g", "encoder/last_gain", np.ravel
    yield "discriminator.fc.linear.bias", "encoder/last_bias", np.asarray
