"""Functions that compute the weights' names, shapes and number, and the memory of a model, without building it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

from tfdecouple.config import ModelConfig
from tfdecouple.config.shapes import StagePlan, step_names
from tfdecouple.errors import ConfigError
from tfdecouple.runtime.devices import machine_memory, shown_bytes

Shape = tuple[int, ...]

_FLOAT_BYTES = 4
# Options on which the size of a model depends most.
_SIZES = (
    "image_shape", "hidden_channels", "latent_dim", "prior_hidden", "encoder_channels", "encoder_out_channels",
    "classes", "base_hidden", "dequantization_hidden_channels", "dequantization_encoder_channels",
    "dequantization_map_channels",
)  # fmt: skip


def make_networks(config: ModelConfig) -> dict[str, tuple[Any, tuple]]:
    """Returns the unbuilt networks of a model by name, each with the shape of its input, batch first."""
    from tfdecouple.networks.class_layers import ClassAffine, ClassCodes
    from tfdecouple.networks.dequantizer import Dequantizer
    from tfdecouple.networks.encoder import Encoder
    from tfdecouple.networks.flow import Flow
    from tfdecouple.networks.prior import PriorFlow

    image, z = (None, *config.image_shape), (None, config.latent_dim)
    networks: dict[str, tuple[Any, tuple]] = {"flow": (Flow(config, name="flow"), image)}
    if config.has_encoder:
        encoder = Encoder(config.latent_dim, config.encoder_channels, config.encoder_out_channels, name="encoder")
        networks["encoder"] = encoder, image
        if config.prior == "flow":
            width, transform, alpha = config.prior_hidden, config.prior_transform, config.prior_alpha
            prior = PriorFlow(config.prior_steps, width, transform=transform, alpha=alpha, name="prior_flow")
            networks["prior_flow"] = prior, z
        if config.has_classes:
            networks["prior_affine"] = ClassAffine(config.classes, config.latent_dim, name="prior_affine"), z
    if config.has_class_codes:
        networks["class_codes"] = ClassCodes(config.classes, config.latent_dim, name="class_codes"), (None,)
    if config.has_dequantizer:
        networks["dequantizer"] = Dequantizer(config, name="dequantizer"), image
    return networks


@functools.lru_cache(maxsize=8)
def _smallest_networks(config: ModelConfig) -> dict[str, tuple[Any, tuple]]:
    """Returns the same as `make_networks`, but with one step a stage: all steps of a stage have the same shapes."""

    def reduce(steps: tuple) -> tuple:
        return tuple((1,) * len(entry) if isinstance(entry, tuple) else 1 for entry in steps)

    fewest: dict[str, Any] = {name: reduce(getattr(config, name)) for name in ("steps", "dequantization_steps")}
    return make_networks(dataclasses.replace(config, prior_steps=1, **fewest))


def flows(config: ModelConfig) -> list[tuple[Any, tuple[tuple[StagePlan, ...], ...]]]:
    """Returns the unbuilt flows of decoder and dequantizer (if any), with one step a stage, and their level plans."""
    networks = _smallest_networks(config)
    pairs = [(networks["flow"][0], config.levels)]
    if config.has_dequantizer:
        pairs.append((networks["dequantizer"][0].flow, config.dequantization_levels))
    return pairs


def encoders(config: ModelConfig) -> list[tuple[Any, tuple]]:
    """Returns the unbuilt encoders of z and of the dequantizer, if the model has them, each with its input shape."""
    networks = _smallest_networks(config)
    pairs = [networks["encoder"]] if config.has_encoder else []
    if config.has_dequantizer:
        dequantizer, x_shape = networks["dequantizer"]
        pairs.append((dequantizer.encoder, x_shape))
    return pairs


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Returns `{name: shape}` of every weight of a model, with the names of `DecoupledModel.named_variables`.

    >>> tiny = ModelConfig(image_shape=(8, 8, 3), steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4))
    >>> weight_shapes(tiny)["flow/level_0_part_0_step_0/linear/kernel"]
    (3, 3)
    """
    repeated = {"prior_flow/step_0": [f"prior_flow/{name}" for name in step_names(config.prior_steps)]}
    for flow, levels in (("flow", config.levels), ("dequantizer/flow", config.dequantization_levels)):
        for stage in itertools.chain(*levels):
            repeated[f"{flow}/{stage.step_names[0]}"] = [f"{flow}/{name}" for name in stage.step_names]
    shapes: dict[str, Shape] = {"initialized": ()}
    for name, (network, x_shape) in _smallest_networks(config).items():
        for path, shape in network.weight_shapes(x_shape).items():
            parts = f"{name}/{path}".split("/")
            end = 3 if name == "dequantizer" else 2
            step, weight = "/".join(parts[:end]), "/".join(parts[end:])
            shapes |= {f"{each}/{weight}".rstrip("/"): shape for each in repeated.get(step, [step])}
    return shapes


def count_by_network(weights: Mapping[str, Shape]) -> dict[str, int]:
    """Returns the number of trainable parameters of each of a model's networks, and in total.

    Flow, encoder and prior are always listed; dequantizer and class codes only if the model has them.

    >>> count_by_network({"flow/a/bias": (3,), "encoder/b/kernel": (2, 2), "encoder/b/moving_mean": (2,)})
    {'flow': 3, 'encoder': 4, 'prior': 0, 'total': 7}
    """
    counts = {"flow": 0, "encoder": 0, "prior": 0}
    for name, shape in weights.items():
        network, _, rest = name.partition("/")
        # The flag `initialized` belongs to no network, and moving statistics are not trained by gradients.
        if rest and not rest.endswith(("moving_mean", "moving_variance")):
            network = "prior" if network in ("prior_flow", "prior_affine") else network
            counts[network] = counts.get(network, 0) + math.prod(shape)
    return {**counts, "total": sum(counts.values())}


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Returns the numbers of trainable parameters, as `DecoupledModel.parameter_count`, without building a model."""
    return count_by_network(weight_shapes(config))


def widest_map(config: ModelConfig) -> int:
    """Returns how many numbers the largest map of a model holds for a single image."""
    sizes = [math.prod(config.image_shape)]
    sizes += [
        stage.positions * stage.hidden for level in config.levels + config.dequantization_levels for stage in level
    ]
    for encoder, shape in encoders(config):
        for block in encoder.blocks:
            shape = block.compute_output_shape(shape)
            sizes.append(math.prod(shape[1:]))
    return max(sizes)


def require_memory(config: ModelConfig, copies: int = 1) -> None:
    """Raises ConfigError if this machine has too little memory for a model, before any weight is created.

    Args:
        config: the architecture.
        copies: how many copies of the weights are in memory: 1 to use a model, more to train it.

    Raises:
        ConfigError: if the weights, or the largest map of one image, need more memory than the machine has; the message
            names the largest size in the config.
    """
    memory = machine_memory()
    counts = count_parameters(config)
    weights, image = copies * counts["total"] * _FLOAT_BYTES, widest_map(config) * _FLOAT_BYTES
    if max(weights, image) <= memory:
        return
    largest = max((name for name in counts if name != "total"), key=counts.__getitem__)
    what = (
        f"{shown_bytes(weights)} for {counts['total']:,} parameters, most of them of the {largest}"
        if weights >= image
        else f"{shown_bytes(image)} for a single image"
    )
    values = {name: getattr(config, name) for name in _SIZES}
    sizes = {name: max(value) if isinstance(value, tuple) else value for name, value in values.items()}
    name = max(sizes, key=sizes.__getitem__)
    raise ConfigError(
        f"the model is too large: it needs {what}, and this machine has {shown_bytes(memory)} of memory; "
        f"the largest of its sizes is in model.{name}, {sizes[name]}"
    )
