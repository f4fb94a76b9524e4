"""Translation of the JSON config of wolf, the reference, into a `ModelConfig`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tfdecouple.config import ModelConfig
from tfdecouple.config.shapes import RGB_CHANNELS, Shape
from tfdecouple.errors import ConfigError, WolfError


def translate_config(values: Mapping[str, Any], *, image_shape: Shape, n_bits: int = 8) -> ModelConfig:
    """Returns the options of the model that the reference's JSON config describes.

    Raises:
        WolfError: where this project lacks a part, or a value is missing; the message names the part or value.
    """
    _supported("the number of channels", image_shape[-1], (RGB_CHANNELS,))
    flow = _get(values, "generator.flow", dict)
    discriminator = _get(values, "discriminator", dict)
    kind = discriminator.get("type")
    _supported("discriminator.type", kind, ("gaussian", "base", "categorical"))
    # `inverse` is the direction that a flow computes without inverting: x to v in the decoder, noise to u in the
    # dequantisation.
    options: dict[str, Any] = {
        "image_shape": image_shape,
        "n_bits": n_bits,
        **_flow_options(values, "generator.flow", inverse=True),
        **_dequantization_options(values),
    }
    if kind == "base":
        options["conditioning"] = "none"
        if flow.get("h_channels"):
            raise WolfError(f"generator.flow.h_channels is {flow['h_channels']} without a latent model; it must be 0")
    elif kind == "categorical":
        options |= _class_options(values, flow, discriminator)
    else:
        options |= _latent_options(values, flow, discriminator, image_shape)
    try:
        return ModelConfig(**options)
    except ConfigError as error:
        raise WolfError(f"the reference's config asks for something impossible: {error}") from error


def _flow_options(values: Mapping[str, Any], name: str, inverse: bool) -> dict[str, Any]:
    """Returns the options of the flow in the section `name`, whose entry `inverse` must have the given value."""
    flow = _get(values, name, dict)
    _supported(f"{name}.type", flow.get("type"), ("glow",))
    _require_fixed(name, flow, activation="elu", coupling_type="conv", in_channels=3, normalize=None)
    _supported(f"{name}.inverse", flow.get("inverse", True), (inverse,))
    steps = _whole_numbers(values, f"{name}.num_steps")
    if not steps:
        raise WolfError(f"the reference's config has {name}.num_steps []; it must have an entry for each level")
    hidden: tuple = (flow.get("hidden_channels"),) * len(steps)
    if not isinstance(hidden[0], int):
        hidden = _whole_numbers(values, f"{name}.hidden_channels")
    if flow.get("levels", len(steps)) != len(steps):
        raise WolfError(f"{name}.levels is {flow['levels']}, but num_steps has {len(steps)} entries")
    return {
        "steps": steps,
        "hidden_channels": hidden,
        "factors": _whole_numbers(values, f"{name}.factors", [4] * (len(steps) - 2)) or (4,),
        "transform": _transform(f"{name}.transform", flow),
        "multiscale_transform": _transform(f"{name}.prior_transform", flow),
        "alpha": _get(values, f"{name}.alpha", float, 1.0),
    }


def _dequantization_options(values: Mapping[str, Any]) -> dict[str, Any]:
    kind = _get(values, "dequantizer", dict).get("type")
    _supported("dequantizer.type", kind, ("uniform", "flow"))
    if kind == "uniform":
        return {}
    encoder, flow = (_get(values, f"dequantizer.{name}", dict) for name in ("encoder", "flow"))
    _supported("dequantizer.encoder.type", encoder.get("type"), ("local_resnet_bn",))
    _require_fixed("dequantizer.encoder", encoder, activation="elu", in_planes=3)
    map_channels = _get(values, "dequantizer.encoder.out_planes", int)
    _supported("dequantizer.flow.h_type", flow.get("h_type"), ("local_linear",))
    _supported("dequantizer.flow.h_channels", flow.get("h_channels"), (map_channels,))
    options = _flow_options(values, "dequantizer.flow", inverse=False)
    multiscale = options.pop("multiscale_transform")
    if any(isinstance(entry, tuple) for entry in options["steps"]):
        _supported("dequantizer.flow.prior_transform", multiscale, (options["transform"],))
    return {
        "dequantization": "flow",
        "dequantization_encoder_channels": _whole_numbers(values, "dequantizer.encoder.hidden_planes"),
        "dequantization_map_channels": map_channels,
        **{f"dequantization_{name}": value for name, value in options.items()},
    }


def _latent_dim(values: Mapping[str, Any], flow: Mapping[str, Any]) -> int:
    dim = _get(values, "discriminator.dim", int)
    _supported("generator.flow.h_type", flow.get("h_type"), ("global_linear",))
    _supported("generator.flow.h_channels", flow.get("h_channels"), (dim,))
    return dim


def _class_options(values: Mapping[str, Any], flow: Mapping[str, Any], discriminator: Mapping[str, Any]) -> dict:
    _require_fixed("discriminator", discriminator, activation="elu")
    return {
        "conditioning": "coupling",
        "latent_dim": _latent_dim(values, flow),
        "prior": "classes",
        "classes": _get(values, "discriminator.num_events", int),
        "class_probabilities": _class_probabilities(values, discriminator),
    }


def _class_probabilities(values: Mapping[str, Any], discriminator: Mapping[str, Any]) -> tuple[float, ...]:
    """Returns p(y), up to a factor, from the entry `probs` or `logits`; () for equal probabilities without either."""
    given = {name: discriminator[name] for name in ("probs", "logits") if discriminator.get(name) is not None}
    if len(given) > 1:
        raise WolfError("the reference's config has both discriminator.probs and discriminator.logits; leave out one")
    for name, numbers in given.items():
        if not isinstance(numbers, list) or not all(isinstance(each, int | float) for each in numbers):
            raise WolfError(f"the reference's config has discriminator.{name} {numbers!r}, which is no list of numbers")
        highest = max(numbers, default=0)
        return tuple(map(float, numbers if name == "probs" else (math.exp(each - highest) for each in numbers)))
    return ()


def _latent_options(
    values: Mapping[str, Any], flow: Mapping[str, Any], discriminator: Mapping[str, Any], image_shape: Shape
) -> dict[str, Any]:
    encoder, prior = (_get(values, f"discriminator.{name}", dict) for name in ("encoder", "prior"))
    dim = _latent_dim(values, flow)
    _supported("discriminator.encoder.type", encoder.get("type"), ("global_resnet_bn",))
    _require_fixed("discriminator.encoder", encoder, activation="elu", in_planes=3)
    _supported("discriminator.prior.type", prior.get("type"), ("flow", "normal"))
    planes = _whole_numbers(values, "discriminator.encoder.hidden_planes")
    out_planes = _get(values, "discriminator.encoder.out_planes", int)
    in_dim = _get(values, "discriminator.in_dim", int)
    height, width = (side // 2 ** len(planes) for side in image_shape[:2])
    if out_planes * height * width != in_dim:
        raise WolfError(
            f"--image-shape {' '.join(map(str, image_shape))} does not fit discriminator.in_dim {in_dim}: "
            f"{len(planes)} encoder levels leave {height} x {width} x {out_planes} values"
        )
    options = {
        "conditioning": "coupling",
        "latent_dim": dim,
        "encoder_channels": planes,
        "encoder_out_channels": out_planes,
        "prior": prior["type"],
    }
    if prior["type"] == "flow":
        _require_fixed("discriminator.prior", prior, coupling_type="mlp", activation="elu", heads=1)
        options |= {
            "prior_steps": _get(values, "discriminator.prior.num_steps", int),
            "prior_hidden": _get(values, "discriminator.prior.hidden_features", int),
            "prior_transform": _transform("discriminator.prior.transform", prior),
            "prior_alpha": _get(values, "discriminator.prior.alpha", float, 1.0),
        }
    return options


def _get(values: Any, name: str, kind: type = object, default: Any = None) -> Any:
    """Returns the value in the config with this dotted name, or the default; WolfError where both are missing."""
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
    """Returns the whole numbers, or lists of whole numbers, in the config's list `name`, as tuples; else WolfError."""

    def checked(value: Any, deeper: bool) -> Any:
        if isinstance(value, list) and deeper:
            return tuple(checked(inner, False) for inner in value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise WolfError(f"the reference's config has {name} with {value!r} in it, which is no whole number")

    return tuple(checked(value, True) for value in _get(values, name, list, default))


def _require_fixed(name: str, section: Mapping[str, Any], **values: Any) -> None:
    """Raises WolfError if an option of a section has another value than the only one that this project has."""
    for option, value in values.items():
        _supported(f"{name}.{option}", section.get(option, value), (value,))


def _supported(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise WolfError(f"{name} is {value!r}, which is not supported; supported: {', '.join(map(str, choices))}")


def _transform(name: str, section: Mapping[str, Any]) -> str:
    value = section.get(name.rpartition(".")[2], "affine")
    _supported(name, value, ("affine", "additive"))
    return value
