"""The networks of a config, not built: their weights by name and shape, how many there are, and whether they fit."""

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
from tfdecouple.runtime.memory import machine_memory, shown_bytes

Shape = tuple[int, ...]

_FLOAT_BYTES = 4
# By the first part of the name of a weight, the network that it is counted with.
_NETWORKS = {
    **{name: name for name in ("flow", "encoder", "class_codes", "dequantizer")},
    "prior_flow": "prior",
    "prior_affine": "prior",
}
# Ends of the names of weights that training does not move by gradients.
_STATE = ("moving_mean", "moving_variance", "permutation")


def make_networks(config: ModelConfig) -> dict[str, tuple[Any, tuple]]:
    """Returns the networks of a model by name, none of them built, each with the shape of its input, batch first."""
    from tfdecouple.networks.classes import ClassAffine, ClassCodes
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
            prior = PriorFlow(
                config.prior_steps,
                config.prior_hidden,
                transform=config.prior_transform,
                alpha=config.prior_alpha,
                linear=config.linear,
                name="prior_flow",
            )
            networks["prior_flow"] = prior, z
        if config.has_classes:
            networks["prior_affine"] = ClassAffine(config.classes, config.latent_dim, name="prior_affine"), z
    if config.has_class_codes:
        networks["class_codes"] = ClassCodes(config.classes, config.latent_dim, name="class_codes"), (None,)
    if config.has_dequantizer:
        networks["dequantizer"] = Dequantizer(config, name="dequantizer"), image
    return networks


@functools.lru_cache(maxsize=8)
def planned(config: ModelConfig) -> dict[str, tuple[Any, tuple]]:
    """Returns `make_networks` with one step in each stage, for those who only read them: steps of a stage are alike."""

    def one_each(steps: tuple) -> tuple:
        return tuple((1,) * len(entry) if isinstance(entry, tuple) else 1 for entry in steps)

    fewest: dict[str, Any] = {name: one_each(getattr(config, name)) for name in ("steps", "dequantization_steps")}
    return make_networks(dataclasses.replace(config, prior_steps=1, **fewest))


def flows(config: ModelConfig) -> list[tuple[Any, tuple[tuple[StagePlan, ...], ...]]]:
    """Returns the flow over images, and that of the dequantisation where there is one, each with its stages."""
    networks = planned(config)
    found = [(networks["flow"][0], config.levels)]
    return (
        [*found, (networks["dequantizer"][0].flow, config.dequantization_levels)] if config.has_dequantizer else found
    )


def encoders(config: ModelConfig) -> list[tuple[Any, tuple]]:
    """Returns the encoder, and that of the dequantisation, where there are any, each with the shape of its input."""
    networks = planned(config)
    found = [networks["encoder"]] if config.has_encoder else []
    if config.has_dequantizer:
        dequantizer, x_shape = networks["dequantizer"]
        found.append((dequantizer.encoder, x_shape))
    return found


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Returns `{name: shape}` of every weight of a model, as `DecoupledModel.named_variables` names them.

    >>> tiny = ModelConfig(image_shape=(8, 8, 3), steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4))
    >>> weight_shapes(tiny)["flow/level_0_part_0_step_0/linear/kernel"]
    (3, 3)
    """
    alike = {"prior_flow/step_0": [f"prior_flow/{name}" for name in step_names(config.prior_steps)]}
    for flow, levels in (("flow", config.levels), ("dequantizer/flow", config.dequantization_levels)):
        for stage in itertools.chain(*levels):
            alike[f"{flow}/{stage.step_names[0]}"] = [f"{flow}/{name}" for name in stage.step_names]
    shapes: dict[str, Shape] = {"initialized": ()}
    for name, (network, x_shape) in planned(config).items():
        for path, shape in network.weight_shapes(x_shape).items():
            parts = f"{name}/{path}".split("/")
            end = 3 if name == "dequantizer" else 2
            step, weight = "/".join(parts[:end]), "/".join(parts[end:])
            shapes |= {f"{each}/{weight}".rstrip("/"): shape for each in alike.get(step, [step])}
    return shapes


def count_by_network(weights: Mapping[str, Shape]) -> dict[str, int]:
    """Returns how many of a model's weights are trainable parameters: of each of its networks, and in total.

    Flow, encoder and prior are always named, the dequantizer and the net behind the codes of labels where there is one.

    >>> count_by_network({"flow/a/bias": (3,), "encoder/b/kernel": (2, 2), "encoder/b/moving_mean": (2,)})
    {'flow': 3, 'encoder': 4, 'prior': 0, 'total': 7}
    """
    counts = {"flow": 0, "encoder": 0, "prior": 0}
    for name, shape in weights.items():
        network = _NETWORKS.get(name.partition("/")[0])
        if network and name.rpartition("/")[2] not in _STATE:
            counts[network] = counts.get(network, 0) + math.prod(shape)
    return {**counts, "total": sum(counts.values())}


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Returns the numbers of trainable parameters: of each network, and in total.

    It equals `DecoupledModel(config).parameter_count()`, but takes next to no time.
    """
    return count_by_network(weight_shapes(config))


def widest_map(config: ModelConfig) -> int:
    """Returns how many numbers the largest map of a single image holds."""
    sizes = [math.prod(config.image_shape)]
    sizes += [
        stage.positions * stage.hidden for level in config.levels + config.dequantization_levels for stage in level
    ]
    for encoder, x_shape in encoders(config):
        sizes += [math.prod(block.compute_output_shape(shape)[1:]) for block, shape, _ in encoder.children(x_shape)]
    return max(sizes)


def require_memory(config: ModelConfig, copies: int = 1) -> None:
    """Refuses a model that this machine cannot hold, before a weight of it is made.

    Args:
        config: of the model.
        copies: of the weights that are held: 1 to use a model, more to train it.

    Raises:
        ConfigError: naming the largest of its sizes, where the weights or the widest map of one image need more memory
            than the machine has.
    """
    memory = machine_memory()
    counts = count_parameters(config)
    weights, image = copies * counts["total"] * _FLOAT_BYTES, widest_map(config) * _FLOAT_BYTES
    if max(weights, image) <= memory:
        return
    most = max((name for name in counts if name != "total"), key=counts.__getitem__)
    what = (
        f"{shown_bytes(weights)} for {counts['total']:,} parameters, most of them of the {most}"
        if weights >= image
        else f"{shown_bytes(image)} for a single image"
    )
    sizes = {
        "a side of model.image_shape": max(config.image_shape[:2]),
        "the channels of model.image_shape": config.image_shape[-1],
        "model.latent_dim": config.latent_dim if config.has_latent else 0,
        "an entry of model.hidden_channels": max(config.hidden_channels),
        "an entry of model.encoder_channels": max(config.encoder_channels) if config.has_encoder else 0,
        "model.encoder_out_channels": config.encoder_out_channels if config.has_encoder else 0,
        "model.prior_hidden": config.prior_hidden if config.has_latent and config.prior == "flow" else 0,
        "model.classes": config.classes,
        "model.base_hidden": config.base_hidden if config.conditioning == "base" else 0,
        **_dequantization_sizes(config),
    }
    name = max(sizes, key=sizes.__getitem__)
    raise ConfigError(
        f"the model is too large: it needs {what}, and this machine has {shown_bytes(memory)} of memory; "
        f"the largest of its sizes is {name}, {sizes[name]}"
    )


def _dequantization_sizes(config: ModelConfig) -> dict[str, int]:
    if not config.has_dequantizer:
        return {}
    return {
        "an entry of model.dequantization_hidden_channels": max(config.dequantization_hidden_channels),
        "an entry of model.dequantization_encoder_channels": max(config.dequantization_encoder_channels),
        "model.dequantization_map_channels": config.dequantization_map_channels,
    }
