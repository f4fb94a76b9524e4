"""Imports checkpoints of wolf, the PyTorch code of the paper's authors; error messages call wolf "the reference"."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdecouple.config import Config, ModelConfig, TrainingConfig
from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape
from tfdecouple.errors import ConfigError, WolfError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import write_run
from tfdecouple.storage.files import Facts, open_npz, read_json
from tfdecouple.system.requirements import require_packages

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


def assign_weights(model: DecoupledModel, state: Mapping[str, np.ndarray]) -> None:
    """Copies wolf's weights, {name: array}, into a model; WolfError names a missing, superfluous or wrong array."""
    variables = model.named_variables()
    unused = {name for name in state if not name.endswith(_DERIVED)}
    for ours, theirs in match_weights(model).items():
        if theirs not in state:
            raise WolfError(f"the weights lack {theirs}, which the config needs")
        variable = variables[ours]
        try:
            value = _convert_array(np.asarray(state[theirs], np.float32), ours, len(variable.shape), model)
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
    variables["initialized"].assign(True)


def translate_config(values: Facts, *, image_shape: ImageShape, n_bits: int = 8) -> ModelConfig:
    """Returns the `ModelConfig` for wolf's JSON config `values`; WolfError for a missing value or an unknown part."""
    if image_shape[-1] != RGB_CHANNELS:
        raise WolfError(f"the number of channels is {image_shape[-1]}; models of the reference have {RGB_CHANNELS}")
    kind = _get_choice(values, "discriminator.type", ("gaussian", "base", "categorical"))
    # In the config of wolf (the authors' code), a flow's entry `inverse` tells which direction is computed directly: x
    # to v in the flow for images (inverse=True), noise to u in the flow for dequantisation (inverse=False).
    options: Facts = {
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


def _translate_flow(values: Facts, name: str, inverse: bool) -> Facts:
    """Returns {option: value} of the flow in section `name` of wolf's config; WolfError for another `inverse`."""
    _get_choice(values, f"{name}.type", ("glow",))
    _require_values(values, name, activation="elu", coupling_type="conv", in_channels=3, normalize=None)
    _get_choice(values, f"{name}.inverse", (inverse,), True)
    steps, hidden = _get_value(values, f"{name}.num_steps", list), _get_value(values, f"{name}.hidden_channels")
    if not steps:
        raise WolfError(f"the reference's config has {name}.num_steps []; it must have an entry for each level")
    _require_values(values, name, levels=len(steps))
    return {
        "steps": steps,
        "hidden_channels": [hidden] * len(steps) if isinstance(hidden, int) else hidden,
        "factors": _get_value(values, f"{name}.factors", list, [4] * (len(steps) - 2)) or (4,),
        "transform": _get_choice(values, f"{name}.transform", _TRANSFORMS, "affine"),
        "multiscale_transform": _get_choice(values, f"{name}.prior_transform", _TRANSFORMS, "affine"),
        "alpha": _get_value(values, f"{name}.alpha", default=1.0),
    }


def _translate_dequantizer(values: Facts) -> Facts:
    if _get_choice(values, "dequantizer.type", ("uniform", "flow")) == "uniform":
        return {}
    _get_choice(values, "dequantizer.encoder.type", ("local_resnet_bn",))
    _require_values(values, "dequantizer.encoder", activation="elu", in_planes=3)
    map_channels = _get_value(values, "dequantizer.encoder.out_planes", int)
    _get_choice(values, "dequantizer.flow.h_type", ("local_linear",))
    _get_choice(values, "dequantizer.flow.h_channels", (map_channels,))
    options = _translate_flow(values, "dequantizer.flow", inverse=False)
    del options["multiscale_transform"]
    if any(isinstance(entry, list) for entry in options["steps"]):
        _get_choice(values, "dequantizer.flow.prior_transform", (options["transform"],), "affine")
    return {
        "dequantization": "flow",
        "dequantization_encoder_channels": _get_value(values, "dequantizer.encoder.hidden_planes"),
        "dequantization_map_channels": map_channels,
        **{f"dequantization_{name}": value for name, value in options.items()},
    }


def _get_class_probabilities(values: Facts) -> tuple[float, ...]:
    """Returns p(y) of each class y up to a factor, from the config of wolf (authors' code); () if it has none."""
    probabilities, logits = (_get_value(values, f"discriminator.{name}", default=None) for name in ("probs", "logits"))
    if probabilities is not None and logits is not None:
        raise WolfError("the authors' config.json has discriminator.probs and discriminator.logits; remove one")
    numbers = probabilities or logits or []
    if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
        name = "probs" if probabilities else "logits"
        raise WolfError(f"the reference's config has discriminator.{name} {numbers!r}, which is no list of numbers")
    return tuple(map(float, numbers if probabilities else np.exp(np.subtract(numbers, max(numbers, default=0)))))


def _translate_encoder_and_prior(values: Facts, image_shape: ImageShape) -> Facts:
    dim = _get_latent_dim(values)
    _get_choice(values, "discriminator.encoder.type", ("global_resnet_bn",))
    _require_values(values, "discriminator.encoder", activation="elu", in_planes=3)
    prior = _get_choice(values, "discriminator.prior.type", ("flow", "normal"))
    planes = _get_value(values, "discriminator.encoder.hidden_planes", list)
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
            "prior_steps": _get_value(values, "discriminator.prior.num_steps"),
            "prior_hidden": _get_value(values, "discriminator.prior.hidden_features"),
            "prior_transform": _get_choice(values, "discriminator.prior.transform", _TRANSFORMS, "affine"),
            "prior_alpha": _get_value(values, "discriminator.prior.alpha", default=1.0),
        }
    return options


def _get_latent_dim(values: Facts) -> int:
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
    if not isinstance(values, kind):
        raise WolfError(f"the reference's config has {name} {values!r}, which is no {kind.__name__}")
    return values


def _get_choice(values: object, name: str, choices: tuple, default: object = ...) -> Any:
    value = _get_value(values, name, default=default)
    if value not in choices:
        raise WolfError(f"{name} is {value!r}, which is not supported; supported: {', '.join(map(str, choices))}")
    return value


def _require_values(values: object, section: str, **required: object) -> None:
    for option, value in required.items():
        _get_choice(values, f"{section}.{option}", (value,), value)


def _convert_array(array: np.ndarray, name: str, rank: int, model: DecoupledModel) -> np.ndarray:
    """Returns wolf's array for the weight `name`, of rank `rank`, of this project; ValueError for a wrong rank."""
    if name.endswith(("linear/kernel", "class_codes/embedding")):
        return array
    if name == "encoder/last_direction" and model.encoder is not None:
        # The inputs of wolf's kernel `[out, in]` are flattened feature maps with channels first.
        *sides, planes = model.encoder.compute_map_shape((None, *model.config.image_shape))[1:]
        return array.reshape(len(array), planes, *sides).transpose(2, 3, 1, 0).reshape(-1, len(array))
    if rank == 1:
        return array.ravel()
    # Kernels of torch are `[out, in, h, w]` and `[out, in]`; transposed convolutions exchange in and out in both.
    return array.transpose(2, 3, 1, 0) if rank == 4 else array.transpose()


# Rules that turn names of this project's weights into those of wolf: patterns and their replacements, in this order.
_RENAMES = {
    # Weights of nets, before their net is renamed.
    r"/(first|second|last)$": r"/\1_kernel",
    r"/net/condition_": r"/h_net.net/",
    r"^(prior_flow/.*)/net/last_": r"\1/net.fc3.linear/",
    r"/net/last_": "/net.conv3.conv/",
    r"^(prior_flow/.*)/net/first_": r"\1/net.fc1/",
    r"/net/first_": "/net.conv1/",
    r"^(prior_flow/.*)/net/second_": r"\1/net.fc2/",
    r"/net/second_": "/net.conv2/",
    r"^class_codes/embedding": "discriminator.embed.weight",
    r"^class_codes/first_": "discriminator.net.0/",
    r"^class_codes/second_": "discriminator.net.2/",
    r"^class_codes/last_": "discriminator.net.4/",
    r"^encoder/last_": "discriminator.fc.linear/",
    r"/(kernel|gamma)$": "/weight",
    r"/beta$": "/bias",
    r"/direction$": "/weight_v",
    r"/gain$": "/weight_g",
    r"/moving_variance$": "/running_var",
    r"/moving_": "/running_",
    # Layers.
    r"/actnorm_1/": "/actnorm/",
    r"/actnorm_2/": "/unit.actnorm/",
    r"/coupling_continuous_": "/unit.coupling1_",
    r"/coupling_alternate_": "/unit.coupling2_",
    r"(coupling\d)_first/": r"\1_dn/",
    r"(coupling\d)_last/": r"\1_up/",
    r"^(flow|dequantizer)/(.*)/linear/": r"\1/\2/conv1x1/",
    r"/shortcut_convolution/": "/downsample.0/",
    r"/shortcut_norm/": "/downsample.1/",
    r"(/up_.*)/convolution_": r"\1/deconv",
    r"/convolution_": "/conv",
    r"/norm_": "/bn",
    # Parts of networks, and networks.
    r"/level_(\d+)_part_(\d+)_factor_out/": r"/blocks.\1.priors.\2/",
    r"/level_(\d+)_part_(\d+)_step_(\d+)/": r"/blocks.\1.layers.\2.\3/",
    r"/level_(\d+)_block_": r"/resnet\1.main.",
    r"/up_(\d+)_block_": r"/deresnet\1.main.",
    r"main.1/": "main.0/",
    r"main.2/": "main.1/",
    r"^flow/": "generator.flow/",
    r"^dequantizer/flow/": "dequantizer.flow.core/",
    r"^prior_flow/step_": "discriminator.prior.flow.steps.",
    r"^dequantizer/encoder/": "dequantizer.encoder.net/",
    r"^encoder/": "discriminator.encoder.net/",
    r"/": ".",
}


def match_weights(model: DecoupledModel) -> dict[str, str]:
    """Returns {name in this project: name in wolf} of all weights of a model."""
    variables, matches = model.named_variables(), {}
    for name in variables:
        theirs = name
        for pattern, replacement in _RENAMES.items():
            theirs = re.sub(pattern, replacement, theirs)
        # wolf numbers the parts of a level only where channels leave the flow after a part.
        is_numbered = f"{name.partition('_step_')[0]}_factor_out/linear/kernel" in variables
        matches[name] = theirs if is_numbered else re.sub(r"layers\.\d+", "steps", theirs)
    del matches["initialized"]
    return matches
