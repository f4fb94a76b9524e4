"""The names of the reference's weights, and how their arrays become those of this project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tfdecouple.architecture import EncoderPlan, FlowPlan, Plan, ResNetPlan, Weights

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


def correspondence(planned: Plan) -> Iterator[Row]:
    """Yields (name in the reference, name here, conversion) of every weight."""
    yield from _flow("generator.flow", "flow", planned.flow)
    if planned.dequantizer is not None:
        yield from _blocks("dequantizer.encoder.net", "dequantizer/encoder", planned.dequantizer.encoder)
        yield from _flow("dequantizer.flow.core", "dequantizer/flow", planned.dequantizer.flow)
    if planned.encoder is not None:
        yield from _encoder(planned.encoder)
    if planned.class_codes is not None:
        for name in planned.class_codes.weights():
            theirs, convert = _OF_CLASSES[name]
            yield f"discriminator.{theirs}", f"class_codes/{name}", convert
    if planned.prior is not None:
        for index, name in enumerate(planned.prior.step_names):
            theirs, step = f"discriminator.prior.flow.steps.{index}", planned.prior.step
            yield from _rows(theirs, f"prior_flow/{name}", step.weights(), _PRIOR_STEP, _OF_VECTORS)


def _flow(root: str, ours: str, flow: FlowPlan) -> Iterator[Row]:
    weights = _OF_IMAGES_WITH_MAP if flow.local else _OF_IMAGES
    for level, stages in enumerate(flow.levels):
        block = f"{root}.blocks.{level}"
        for number, stage in enumerate(stages):
            steps, step = f"{block}.layers.{number}" if stage.dropped else f"{block}.steps", flow.step(stage)
            for index, name in enumerate(stage.step_names):
                yield from _rows(f"{steps}.{index}", f"{ours}/{name}", step.weights(), _STEP, weights)
            factor_out = flow.factor_out(stage)
            if factor_out is not None:
                theirs, own = f"{block}.priors.{number}", f"{ours}/{stage.factor_out_name}"
                yield from _rows(theirs, own, factor_out.weights(), _FACTOR_OUT, weights)


def _rows(
    theirs: str, ours: str, weights: Weights, layers: Mapping[str, str], names: Mapping[str, tuple[str, Convert]]
) -> Iterator[Row]:
    """Yields the rows of what has these weights, by the names of its layers and of their weights."""
    for name in weights:
        layer, _, weight = name.partition("/")
        their_weight, convert = names[weight]
        yield f"{theirs}.{layers[layer]}.{their_weight}", f"{ours}/{name}", convert


def _blocks(root: str, ours: str, encoder: ResNetPlan) -> Iterator[Row]:
    """Yields the rows of ResNet blocks, of which two belong to a level, down or back up."""
    for index, block in enumerate(encoder.blocks):
        level = (block.reduction if block.transposed else 2 * block.reduction).bit_length() - 2
        level_name = f"{'de' if block.transposed else ''}resnet{level}"
        layers = _TRANSPOSED_BLOCK if block.transposed else _BLOCK
        theirs = f"{root}.{level_name}.main.{index % 2}"
        yield from _rows(theirs, f"{ours}/{block.name}", encoder.block_weights(block), layers, _OF_ENCODER)


def _encoder(encoder: EncoderPlan) -> Iterator[Row]:
    root = "discriminator.encoder.net"
    yield from _blocks(root, "encoder", encoder)
    planes, sides = encoder.out_channels, encoder.out_sides(encoder.blocks[-1])

    def dense(array: np.ndarray) -> np.ndarray:
        """The reference flattens channels first, this project channels last."""
        maps = array.reshape(len(array), planes, *sides).transpose(2, 3, 1, 0)
        return maps.reshape(encoder.features, len(array))

    yield f"{root}.top.weight", "encoder/top/kernel", _kernel
    yield f"{root}.top.bias", "encoder/top/bias", _same
    yield "discriminator.fc.linear.weight_v", "encoder/last_direction", dense
    yield "discriminator.fc.linear.weight_g", "encoder/last_gain", _flat
    yield "discriminator.fc.linear.bias", "encoder/last_bias", _same
