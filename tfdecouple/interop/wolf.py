"""Imports checkpoints of wolf, the PyTorch code of the paper's authors; error messages call wolf "the reference"."""

import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfdecouple.config import Config, ModelConfig, TrainingConfig
from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape
from tfdecouple.errors import ConfigError, WolfError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.networks.encoder import ResNetBlock
from tfdecouple.networks.flow import Flow
from tfdecouple.runs.opened_run import write_run
from tfdecouple.storage.files import open_npz, read_json
from tfdecouple.system.requirements import require_packages

Arrays = Mapping[str, np.ndarray]
Convert = Callable[[np.ndarray], np.ndarray]
# A weight's name in wolf (the authors' code), its name in this project, and the function that converts wolf's array.
WeightMatch = tuple[str, str, Convert]

# Advice at the end of error messages about files that hold more than a state dict.
_SAVE = "save the model's state dict alone: torch.save(model.state_dict(), FILE)"
# Entries with these endings in a state dict of wolf (the authors' code) are caches and counters, and are not imported.
_DERIVED = ("weight_inv", "num_batches_tracked")
# Transforms of couplings that both this project and wolf (the authors' code) have.
_TRANSFORMS = ("affine", "additive")


def import_wolf(
    config_path: str | pathlib.Path,
    weights_path: str | pathlib.Path,
    *,
    image_shape: ImageShape,
    n_bits: int = 8,
    workdir: str | pathlib.Path,
) -> DecoupledModel:
    """Converts a checkpoint of wolf, the authors' PyTorch code, to a new run folder, and returns the model.

    `config_path` is wolf's JSON config, and `weights_path` its state dict, `.npz` (one array per name) or `.pt` (needs
    torch). WolfError is raised if the config has parts that this project does not have, such as MaCow flows, the
    weights do not fit the config, or the run folder `workdir` is not empty; ConfigError if its name is not valid.
    """
    folder = pathlib.Path(workdir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WolfError(f"--workdir {workdir} exists and is not empty; name a new folder")
    try:
        values = read_json(config_path)
    except (OSError, ValueError) as error:
        raise WolfError(f"{config_path} cannot be read: {getattr(error, 'strerror', error)}") from error
    weights_name = pathlib.Path(weights_path).name
    # The config is made before the weights are read, so that an invalid folder name raises its error at once.
    config = Config(
        name=folder.absolute().name,
        description=f"imported from a checkpoint of the reference, {weights_name}",
        model=translate_config(values, image_shape=image_shape, n_bits=n_bits),
        training=TrainingConfig(init_images=1),
    )
    model = DecoupledModel(config.model)
    assign_weights(model, read_state_dict(weights_path))
    summary = {"imported_from": weights_name, "parameters": model.parameter_count()}
    write_run(folder, model, config, 0, summary)
    return model


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the weights in a `.npz` or `.pt` file of wolf (the authors' PyTorch code) as {wolf's name: array}.

    WolfError is raised if the file is missing, damaged or in another format, torch is too old, or the file holds an
    object that is no tensor or would run code.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WolfError(f"there is no file {path}")
    if path.suffix == ".npz":
        try:
            with open_npz(path) as arrays:
                return dict(arrays)
        # Every exception is caught, because damaged archives raise many classes: zlib.error, BadZipFile and more.
        except Exception as error:
            # NumPy's own message can advise to run code in the file.
            reason = type(error).__name__ if "allow_pickle" in str(error) else one_line(error)
            raise WolfError(f"{path} is no readable .npz file: {reason}; save it with np.savez") from error
    if path.suffix not in (".pt", ".pth"):
        raise WolfError(f"{path} is neither .npz nor .pt; these two can be read")
    require_packages("torch", what=f"reading {path.name}")
    import torch

    # Versions of torch before 2.6 can run code in the file despite weights_only=True (CVE-2025-32434).
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 6):
        raise WolfError(
            f"reading {path.name} safely needs torch 2.6 or later, and {torch.__version__} is installed: "
            "pip install -U torch"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # Torch's own message is replaced, because it can advise weights_only=False, which would run code in the file.
    except Exception as error:
        raise WolfError(
            f"torch cannot read {path} ({type(error).__name__}): it is damaged or holds more than tensors, and no code "
            f"in it was run; {_SAVE}"
        ) from error
    if isinstance(state, Mapping):
        state = state.get("core", state)
    if not isinstance(state, Mapping):
        raise WolfError(f"{path} is of type {type(state).__name__}, no mapping of names to tensors; {_SAVE}")
    weights = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WolfError(f"{path} holds {name!r}, of type {type(tensor).__name__}, which is no tensor; {_SAVE}")
        # NumPy has no bfloat16, so tensors of this dtype become float32.
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        weights[name.removeprefix("module.")] = tensor.detach().numpy()
    return weights


def assign_weights(model: DecoupledModel, state: Arrays) -> None:
    """Copies wolf's weights, {name: array}, into a model; WolfError names a missing, superfluous or wrong array."""
    variables = model.named_variables()
    unused = {name for name in state if not name.endswith(_DERIVED)}
    for theirs, ours, convert in match_weights(model):
        if theirs not in state:
            raise WolfError(f"the weights lack {theirs}, which the config needs")
        variable = variables.pop(ours)
        try:
            value = convert(np.asarray(state[theirs], np.float32))
        except (ValueError, TypeError):
            # An array of text, or of the wrong rank or size, cannot be converted; the error below reports its shape.
            value = None
        if value is None or value.shape != tuple(variable.shape):
            array = np.asarray(state[theirs])
            raise WolfError(f"{theirs} is {array.dtype} of the shape {array.shape}, which does not fit the config")
        variable.assign(value)
        unused.discard(theirs)
    if unused:
        raise WolfError(f"the weights hold {sorted(unused)[0]}, which this model does not have ({len(unused)} in all)")
    variables.pop("initialized").assign(True)
    assert not variables, f"weights without a source: {sorted(variables)}"


def translate_config(values: Mapping[str, Any], *, image_shape: ImageShape, n_bits: int = 8) -> ModelConfig:
    """Returns the `ModelConfig` for wolf's JSON config `values`; WolfError for a missing value or an unknown part."""
    if image_shape[-1] != RGB_CHANNELS:
        raise WolfError(f"the number of channels is {image_shape[-1]}; models of the reference have {RGB_CHANNELS}")
    kind = _get_choice(values, "discriminator.type", ("gaussian", "base", "categorical"))
    # In the config of wolf (the authors' code), a flow's entry `inverse` tells which direction is computed directly: x
    # to v in the flow for images (inverse=True), noise to u in the flow for dequantisation (inverse=False).
    options: dict[str, Any] = {
        "image_shape": image_shape,
        "n_bits": n_bits,
        **_translate_flow(values, "generator.flow", inverse=True),
        **_translate_dequantizer(values),
    }
    if kind == "base":
        options["conditioning"] = "none"
        _get_choice(values, "generator.flow.h_channels", (0, None), 0)
    elif kind == "categorical":
        _require_values(values, "discriminator", activation="elu")
        options |= {"prior": "classes", "latent_dim": _get_latent_dim(values)}
        options["classes"] = _get_value(values, "discriminator.num_events", int)
        options["class_probabilities"] = _get_class_probabilities(values)
    else:
        options |= _translate_encoder_and_prior(values, image_shape)
    try:
        return ModelConfig(**options)
    except ConfigError as error:
        raise WolfError(f"the reference's config describes an impossible model: {error}") from error


def _translate_flow(values: Mapping[str, Any], name: str, inverse: bool) -> dict[str, Any]:
    """Returns {option: value} of the flow in section `name` of wolf's config; WolfError for another `inverse`."""
    _get_choice(values, f"{name}.type", ("glow",))
    _require_values(values, name, activation="elu", coupling_type="conv", in_channels=3, normalize=None)
    _get_choice(values, f"{name}.inverse", (inverse,), True)
    steps = _get_whole_numbers(values, f"{name}.num_steps")
    if not steps:
        raise WolfError(f"the reference's config has {name}.num_steps []; it must have an entry for each level")
    hidden = _get_value(values, f"{name}.hidden_channels")
    is_same = isinstance(hidden, int)
    _require_values(values, name, levels=len(steps))
    return {
        "steps": steps,
        "hidden_channels": (hidden,) * len(steps) if is_same else _get_whole_numbers(values, f"{name}.hidden_channels"),
        "factors": _get_whole_numbers(values, f"{name}.factors", [4] * (len(steps) - 2)) or (4,),
        "transform": _get_choice(values, f"{name}.transform", _TRANSFORMS, "affine"),
        "multiscale_transform": _get_choice(values, f"{name}.prior_transform", _TRANSFORMS, "affine"),
        "alpha": _get_value(values, f"{name}.alpha", float, 1.0),
    }


def _translate_dequantizer(values: Mapping[str, Any]) -> dict[str, Any]:
    if _get_choice(values, "dequantizer.type", ("uniform", "flow")) == "uniform":
        return {}
    _get_choice(values, "dequantizer.encoder.type", ("local_resnet_bn",))
    _require_values(values, "dequantizer.encoder", activation="elu", in_planes=3)
    map_channels = _get_value(values, "dequantizer.encoder.out_planes", int)
    _get_choice(values, "dequantizer.flow.h_type", ("local_linear",))
    _get_choice(values, "dequantizer.flow.h_channels", (map_channels,))
    options = _translate_flow(values, "dequantizer.flow", inverse=False)
    del options["multiscale_transform"]
    if any(isinstance(entry, tuple) for entry in options["steps"]):
        _get_choice(values, "dequantizer.flow.prior_transform", (options["transform"],), "affine")
    return {
        "dequantization": "flow",
        "dequantization_encoder_channels": _get_whole_numbers(values, "dequantizer.encoder.hidden_planes"),
        "dequantization_map_channels": map_channels,
        **{f"dequantization_{name}": value for name, value in options.items()},
    }


def _get_class_probabilities(values: Mapping[str, Any]) -> tuple[float, ...]:
    """Returns p(y) of each class y up to a factor, from the config of wolf (authors' code); () if it has none."""
    names = ("discriminator.probs", "discriminator.logits")
    given = {name: numbers for name in names if (numbers := _get_value(values, name, default=None)) is not None}
    if len(given) > 1:
        raise WolfError(f"the authors' config.json has {' and '.join(names)}; remove one")
    for name, numbers in given.items():
        if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
            raise WolfError(f"the reference's config has {name} {numbers!r}, which is no list of numbers")
        highest = max(numbers, default=0)
        return tuple(map(float, numbers if name == names[0] else (math.exp(number - highest) for number in numbers)))
    return ()


def _translate_encoder_and_prior(values: Mapping[str, Any], image_shape: ImageShape) -> dict[str, Any]:
    dim = _get_latent_dim(values)
    _get_choice(values, "discriminator.encoder.type", ("global_resnet_bn",))
    _require_values(values, "discriminator.encoder", activation="elu", in_planes=3)
    prior = _get_choice(values, "discriminator.prior.type", ("flow", "normal"))
    planes = _get_whole_numbers(values, "discriminator.encoder.hidden_planes")
    out_planes = _get_value(values, "discriminator.encoder.out_planes", int)
    in_dim = _get_value(values, "discriminator.in_dim", int)
    height, width = (side // 2 ** len(planes) for side in image_shape[:2])
    if out_planes * height * width != in_dim:
        raise WolfError(
            f"--image-shape {' '.join(map(str, image_shape))} does not fit discriminator.in_dim {in_dim}: "
            f"{len(planes)} encoder levels leave {height} x {width} x {out_planes} values"
        )
    options = {"latent_dim": dim, "encoder_channels": planes, "encoder_out_channels": out_planes, "prior": prior}
    if prior == "flow":
        _require_values(values, "discriminator.prior", coupling_type="mlp", activation="elu", heads=1)
        options |= {
            "prior_steps": _get_value(values, "discriminator.prior.num_steps", int),
            "prior_hidden": _get_value(values, "discriminator.prior.hidden_features", int),
            "prior_transform": _get_choice(values, "discriminator.prior.transform", _TRANSFORMS, "affine"),
            "prior_alpha": _get_value(values, "discriminator.prior.alpha", float, 1.0),
        }
    return options


def _get_latent_dim(values: Mapping[str, Any]) -> int:
    """Returns the dimension of z in the config of wolf (authors' code); WolfError if the flow expects another."""
    dim = _get_value(values, "discriminator.dim", int)
    _get_choice(values, "generator.flow.h_type", ("global_linear",))
    return _get_choice(values, "generator.flow.h_channels", (dim,))


def _get_value(values: object, name: str, kind: type = object, default: object = ...) -> Any:
    """Returns the value at a dotted name in wolf's config, or `default`; WolfError without one or for a wrong type."""
    for key in name.split("."):
        if not isinstance(values, Mapping) or key not in values:
            if default is not ...:
                return default
            raise WolfError(f"the reference's config lacks {name}")
        values = values[key]
    if kind is float and isinstance(values, int):
        values = float(values)
    if not isinstance(values, kind):
        raise WolfError(f"the reference's config has {name} {values!r}, which is no {kind.__name__}")
    return values


def _get_whole_numbers(values: object, name: str, default: object = ...) -> tuple:
    def make_tuple(value: object, may_nest: bool) -> object:
        if isinstance(value, list) and may_nest:
            return tuple(make_tuple(inner, False) for inner in value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise WolfError(f"the reference's config has {name} with {value!r} in it, which is no whole number")

    return tuple(make_tuple(value, True) for value in _get_value(values, name, list, default))


def _get_choice(values: object, name: str, choices: tuple[Any, ...], default: object = ...) -> Any:
    value = _get_value(values, name, default=default)
    if value not in choices:
        raise WolfError(f"{name} is {value!r}, which is not supported; supported: {', '.join(map(str, choices))}")
    return value


def _require_values(values: object, section: str, **required: object) -> None:
    for option, value in required.items():
        _get_choice(values, f"{section}.{option}", (value,), value)


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
    if (dequantizer := model.dequantizer) is not None:
        yield from _match_blocks("dequantizer.encoder.net", "dequantizer/encoder", dequantizer.encoder.blocks, weights)
        yield from _match_flow("dequantizer.flow.core", "dequantizer/flow", dequantizer.flow, weights)
    if (encoder := model.encoder) is not None:
        root = "discriminator.encoder.net"
        yield from _match_blocks(root, "encoder", encoder.blocks, weights)
        *sides, planes = encoder.compute_map_shape((None, *model.config.image_shape))[1:]

        def convert_dense_kernel(array: np.ndarray) -> np.ndarray:
            """Returns wolf's kernel `[out, in]` as `[in, out]`, with flattened inputs channels last, not first."""
            return _convert_kernel(array.reshape(len(array), planes, *sides)).reshape(-1, len(array))

        yield f"{root}.top.weight", "encoder/top/kernel", _convert_kernel
        yield f"{root}.top.bias", "encoder/top/bias", np.asarray
        yield "discriminator.fc.linear.weight_v", "encoder/last_direction", convert_dense_kernel
        yield "discriminator.fc.linear.weight_g", "encoder/last_gain", np.ravel
        yield "discriminator.fc.linear.bias", "encoder/last_bias", np.asarray
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
    """Yields a `WeightMatch` for each of `weights` below `ours`; names in wolf (authors' code) begin with `theirs`.

    `layers` and `names` are two of the tables above, of names of layers and of names of weights.
    """
    for path in weights:
        if path.startswith(f"{ours}/"):
            layer, _, weight = path.removeprefix(f"{ours}/").partition("/")
            their_weight, convert = names[weight]
            yield f"{theirs}.{layers[layer]}.{their_weight}", path, convert


def _match_blocks(root: str, ours: str, blocks: list[ResNetBlock], weights: list[str]) -> Iterator[WeightMatch]:
    levels = sum(not block.transposed for block in blocks) // 2
    for index, block in enumerate(blocks):
        level = 2 * levels - 1 - index // 2 if block.transposed else index // 2
        layers = _TRANSPOSED_BLOCK if block.transposed else _BLOCK
        theirs = f"{root}.{'de' if block.transposed else ''}resnet{level}.main.{index % 2}"
        yield from _match_layer(theirs, f"{ours}/{block.name}", weights, layers, _ENCODER_WEIGHTS)
