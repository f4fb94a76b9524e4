"""Checkpoints of the reference, the PyTorch code of the paper's authors, taken over into a run folder."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfdecouple.architecture import EncoderPlan, Plan, Weights, plan
from tfdecouple.config import Config, DataConfig, ModelConfig, TrainingConfig
from tfdecouple.errors import ConfigError, WolfError, one_line
from tfdecouple.levels import encoder_blocks
from tfdecouple.model import DecoupledModel
from tfdecouple.parameters import require_memory
from tfdecouple.runs import CHECKPOINTS, CONFIG, SUMMARY
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.storage.files import parse_json, write_json, write_text

Arrays = Mapping[str, np.ndarray]

# Caches and counters of the reference that carry no information of their own.
_DERIVED = ("weight_inv", "num_batches_tracked")


def import_wolf(
    config_path: str | pathlib.Path,
    weights_path: str | pathlib.Path,
    *,
    image_size: int,
    n_bits: int = 8,
    workdir: str | pathlib.Path,
) -> DecoupledModel:
    """Turns a checkpoint of the reference into a run folder that `load_model` opens.

    Args:
        config_path: the reference's JSON config.
        weights_path: its state dict, `.npz` (one array a name) or `.pt` (as torch saves it; needs torch).
        image_size: side of the images in pixels, which the reference's config does not say.
        n_bits: bits per colour channel, which it does not say either.
        workdir: the run folder to make.

    Returns:
        The model.

    Raises:
        WolfError: for something that this project does not have (variational dequantisers, label models, MaCow flows
            and others), naming it; for weights that do not fit the config; for a folder that is already in use.
    """
    folder = pathlib.Path(workdir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WolfError(f"--workdir {workdir} exists and is not empty; name a new folder")
    model_config = model_config_of(_read_json(config_path), image_size=image_size, n_bits=n_bits)
    require_memory(model_config)
    model = DecoupledModel(model_config)
    assign(model, read_state(weights_path))
    config = Config(
        name=folder.name,
        description=f"imported from a checkpoint of the reference, {pathlib.Path(weights_path).name}",
        model=model_config,
        data=DataConfig(),
        training=TrainingConfig(init_images=1),
    )
    CheckpointFolder(folder / CHECKPOINTS).write("best", 0, {"model": model.named_variables()})
    write_json(folder / SUMMARY, {"imported_from": str(weights_path), "parameters": model.parameter_count()})
    write_text(folder / CONFIG, config.to_json())
    return model


def model_config_of(values: Mapping[str, Any], *, image_size: int, n_bits: int = 8) -> ModelConfig:
    """Translates the reference's JSON config.

    Raises:
        WolfError: naming what this project does not have, or what is missing.
    """
    flow = _get(values, "generator.flow", dict)
    _supported("generator.flow.type", flow.get("type"), ("glow",))
    _supported("dequantizer.type", _get(values, "dequantizer", dict).get("type"), ("uniform",))
    discriminator = _get(values, "discriminator", dict)
    kind = discriminator.get("type")
    _supported("discriminator.type", kind, ("gaussian", "base"))
    _supported("generator.flow.activation", flow.get("activation", "elu"), ("elu",))
    _supported("generator.flow.coupling_type", flow.get("coupling_type", "conv"), ("conv",))
    _supported("generator.flow.normalize", flow.get("normalize"), (None,))
    _supported("generator.flow.in_channels", flow.get("in_channels", 3), (3,))
    _supported("generator.flow.inverse", flow.get("inverse", True), (True,))
    steps = _whole_numbers(values, "generator.flow.num_steps")
    hidden: tuple = (flow.get("hidden_channels"),) * len(steps)
    if not isinstance(hidden[0], int):
        hidden = _whole_numbers(values, "generator.flow.hidden_channels")
    if flow.get("levels", len(steps)) != len(steps):
        raise WolfError(f"generator.flow.levels is {flow['levels']}, but num_steps has {len(steps)} entries")
    options: dict[str, Any] = {
        "image_size": image_size,
        "n_bits": n_bits,
        "steps": steps,
        "hidden_channels": hidden,
        "factors": _whole_numbers(values, "generator.flow.factors", [4] * (len(steps) - 2)) or (4,),
        "transform": _transform("generator.flow.transform", flow),
        "multiscale_transform": _transform("generator.flow.prior_transform", flow),
        "alpha": _get(values, "generator.flow.alpha", float, 1.0),
    }
    if kind == "base":
        options["conditioning"] = "none"
        if flow.get("h_channels"):
            raise WolfError(f"generator.flow.h_channels is {flow['h_channels']} without a latent model; it must be 0")
    else:
        options |= _latent_options(values, flow, discriminator, image_size)
    try:
        return ModelConfig(**options)
    except ConfigError as error:
        raise WolfError(f"the reference's config asks for something impossible: {error}") from error


def _latent_options(
    values: Mapping[str, Any], flow: Mapping[str, Any], discriminator: Mapping[str, Any], image_size: int
) -> dict[str, Any]:
    encoder, prior = (_get(values, f"discriminator.{name}", dict) for name in ("encoder", "prior"))
    dim = _get(values, "discriminator.dim", int)
    _supported("generator.flow.h_type", flow.get("h_type"), ("global_linear",))
    _supported("generator.flow.h_channels", flow.get("h_channels"), (dim,))
    _supported("discriminator.encoder.type", encoder.get("type"), ("global_resnet_bn",))
    _supported("discriminator.encoder.activation", encoder.get("activation", "elu"), ("elu",))
    _supported("discriminator.encoder.in_planes", encoder.get("in_planes", 3), (3,))
    _supported("discriminator.prior.type", prior.get("type"), ("flow", "normal"))
    planes = _whole_numbers(values, "discriminator.encoder.hidden_planes")
    out_planes = _get(values, "discriminator.encoder.out_planes", int)
    in_dim = _get(values, "discriminator.in_dim", int)
    side = image_size // max((block.out_reduction for block in encoder_blocks(planes)), default=1)
    if out_planes * side**2 != in_dim:
        raise WolfError(
            f"--image-size {image_size} does not fit discriminator.in_dim {in_dim}: {len(planes)} encoder levels leave "
            f"{side} x {side} x {out_planes} values"
        )
    options = {
        "conditioning": "coupling",
        "latent_dim": dim,
        "encoder_channels": planes,
        "encoder_out_channels": out_planes,
        "prior": prior["type"],
    }
    if prior["type"] == "flow":
        _supported("discriminator.prior.coupling_type", prior.get("coupling_type", "mlp"), ("mlp",))
        _supported("discriminator.prior.activation", prior.get("activation", "elu"), ("elu",))
        _supported("discriminator.prior.heads", prior.get("heads", 1), (1,))
        options |= {
            "prior_steps": _get(values, "discriminator.prior.num_steps", int),
            "prior_hidden": _get(values, "discriminator.prior.hidden_features", int),
            "prior_transform": _transform("discriminator.prior.transform", prior),
            "prior_alpha": _get(values, "discriminator.prior.alpha", float, 1.0),
        }
    return options


def read_state(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict of the reference, names to arrays.

    Raises:
        WolfError: where the file is missing, of another kind, or needs torch and torch is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WolfError(f"there is no file {path}")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise WolfError(f"{path} is no readable .npz file: {error}") from error
    if path.suffix not in (".pt", ".pth"):
        raise WolfError(f"{path} is neither .npz nor .pt; these two can be read")
    try:
        import torch
    except ImportError as error:
        raise WolfError(f"reading {path.name} needs torch, which is missing: pip install 'tfdecouple[wolf]'") from error
    try:
        # Only weights: a pickle could run any code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WolfError(f"torch cannot read {path}: {one_line(error, first=True)}") from error
    state = state.get("core", state)
    return {name.removeprefix("module."): tensor.numpy() for name, tensor in state.items()}


def assign(model: DecoupledModel, state: Arrays) -> None:
    """Fills a model with the weights of the reference and marks it initialised.

    Raises:
        WolfError: where a weight is missing, superfluous or of another shape, naming it.
    """
    variables = model.named_variables()
    left = {name for name in state if not name.endswith(_DERIVED)}
    for theirs, ours, convert in _correspondence(plan(model.config)):
        if theirs not in state:
            raise WolfError(f"the weights lack {theirs}, which the config asks for")
        variable = variables.pop(ours)
        try:
            value = convert(np.asarray(state[theirs]))
        except ValueError:
            value = None  # not even of the rank or size that the conversion needs
        if value is None or value.shape != tuple(variable.shape):
            raise WolfError(f"{theirs} has the shape {state[theirs].shape}, which does not fit the config")
        variable.assign(value)
        left.discard(theirs)
    if left:
        raise WolfError(f"the weights hold {sorted(left)[0]}, which has no place in this model ({len(left)} in all)")
    variables.pop("initialized").assign(True)
    assert not variables, f"weights without a source: {sorted(variables)}"


Convert = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, str, Convert]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.T


def _kernel(array: np.ndarray) -> np.ndarray:
    """Torch's [out, in, height, width] to TensorFlow's [height, width, in, out]."""
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


def _correspondence(planned: Plan) -> Iterator[Row]:
    """Yields (name in the reference, name here, conversion) of every weight."""
    for level, stages in enumerate(planned.levels):
        block = f"generator.flow.blocks.{level}"
        for number, stage in enumerate(stages):
            steps, step = f"{block}.layers.{number}" if stage.dropped else f"{block}.steps", planned.step(stage)
            for index, name in enumerate(stage.step_names):
                yield from _rows(f"{steps}.{index}", f"flow/{name}", step.weights(), _STEP, _OF_IMAGES)
            factor_out = planned.factor_out(stage)
            if factor_out is not None:
                ours = f"flow/{stage.factor_out_name}"
                yield from _rows(f"{block}.priors.{number}", ours, factor_out.weights(), _FACTOR_OUT, _OF_IMAGES)
    if planned.encoder is not None:
        yield from _encoder(planned.encoder)
    if planned.prior is not None:
        for index, name in enumerate(planned.prior.step_names):
            theirs, step = f"discriminator.prior.flow.steps.{index}", planned.prior.step
            yield from _rows(theirs, f"prior_flow/{name}", step.weights(), _PRIOR_STEP, _OF_VECTORS)


def _rows(
    theirs: str, ours: str, weights: Weights, layers: Mapping[str, str], names: Mapping[str, tuple[str, Convert]]
) -> Iterator[Row]:
    """Yields the rows of what has these weights, by the names of its layers and of their weights."""
    for name in weights:
        layer, _, weight = name.partition("/")
        their_weight, convert = names[weight]
        yield f"{theirs}.{layers[layer]}.{their_weight}", f"{ours}/{name}", convert


def _encoder(encoder: EncoderPlan) -> Iterator[Row]:
    root = "discriminator.encoder.net"
    for index, block in enumerate(encoder.blocks):
        theirs, weights = f"{root}.resnet{index // 2}.main.{index % 2}", encoder.block_weights(block)
        yield from _rows(theirs, f"encoder/{block.name}", weights, _BLOCK, _OF_ENCODER)
    planes, side = encoder.out_channels, encoder.out_side

    def dense(array: np.ndarray) -> np.ndarray:
        """The reference flattens channels first, this project channels last."""
        maps = array.reshape(len(array), planes, side, side).transpose(2, 3, 1, 0)
        return maps.reshape(encoder.features, len(array))

    yield f"{root}.top.weight", "encoder/top/kernel", _kernel
    yield f"{root}.top.bias", "encoder/top/bias", _same
    yield "discriminator.fc.linear.weight_v", "encoder/last_direction", dense
    yield "discriminator.fc.linear.weight_g", "encoder/last_gain", _flat
    yield "discriminator.fc.linear.bias", "encoder/last_bias", _same


def _read_json(path: str | pathlib.Path) -> dict[str, Any]:
    try:
        return parse_json(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WolfError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise WolfError(f"{path} is not valid JSON: {error}") from error


def _get(values: Any, name: str, kind: type = object, default: Any = None) -> Any:
    """Returns a value of the config by its dotted name; without a default it must be there.

    Raises:
        WolfError: where it is missing or of another kind.
    """
    for key in name.split("."):
        if not isinstance(values, Mapping) or key not in values:
            if default is not None:
                return default
            raise WolfError(f"the reference's config lacks {name}")
        values = values[key]
    if kind is float and isinstance(values, int):
        values = float(values)
    if not isinstance(values, kind):
        raise WolfError(f"the reference's config has {name} {values!r}, which is no {kind.__name__}")
    return values


def _whole_numbers(values: Any, name: str, default: Any = None) -> tuple:
    """Returns a list of whole numbers (or of lists of them) of the config, as tuples.

    Raises:
        WolfError: where it is missing or something else.
    """

    def checked(value: Any, deeper: bool) -> Any:
        if isinstance(value, list) and deeper:
            return tuple(checked(inner, False) for inner in value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise WolfError(f"the reference's config has {name} with {value!r} in it, which is no whole number")

    return tuple(checked(value, True) for value in _get(values, name, list, default))


def _supported(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise WolfError(f"{name} is {value!r}, which is not supported; supported: {', '.join(map(str, choices))}")


def _transform(name: str, section: Mapping[str, Any]) -> str:
    value = section.get(name.rpartition(".")[2], "affine")
    _supported(name, value, ("affine", "additive"))
    return value
