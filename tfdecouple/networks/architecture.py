"""The networks of a model, and what follows from its config alone: weight shapes and memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

from tfdecouple.config import ModelConfig
from tfdecouple.config.shapes import Shape, StagePlan, name_flow_steps
from tfdecouple.errors import ConfigError
from tfdecouple.registry import ENCODERS, PRIORS
from tfdecouple.storage.files import Facts
from tfdecouple.system.devices import format_bytes, read_total_memory

# Bytes of one value.
FLOAT32 = 4

# Outside the flow this many arrays of the image's size are in memory: pixels, noise, x, v, and a gradient for each.
IMAGE_MAPS = 8
# A pass without gradients holds this many hidden maps of a coupling net, and this many maps of a stage, at once.
_HIDDEN_MAPS, _STAGE_MAPS = 3, 8


# A network that is not built, and the shape of its input, batch first.
PlacedNetwork = tuple[Any, Shape]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The networks that a model's config describes, and their sizes, computed without creating weights.

    >>> tiny = ModelConfig(image_shape=(8, 8, 3), steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4))
    >>> Architecture(tiny).compute_weight_shapes()["flow/level_0_part_0_step_0/linear/kernel"]
    (3, 3)
    """

    config: ModelConfig

    def make_networks(self) -> dict[str, PlacedNetwork]:
        """Returns {name: (unbuilt network, input shape)} of all networks of a model; input shapes are batch first."""
        from tfdecouple.networks.dequantizer import Dequantizer
        from tfdecouple.networks.flow import Flow
        from tfdecouple.networks.prior import LabelAffine, LabelCodes

        config = self.config
        image, z = (None, *config.image_shape), (None, config.latent_dim)
        networks: dict[str, PlacedNetwork] = {"flow": (Flow(config, name="flow"), image)}
        if config.has_encoder:
            networks["encoder"] = ENCODERS[config.encoder](config, name="encoder"), image
            if config.prior != "normal":
                networks["prior_flow"] = PRIORS[config.prior](config, name="prior_flow"), z
            if config.has_labels:
                networks["prior_affine"] = LabelAffine(config.classes, config.latent_dim, name="prior_affine"), z
        if config.has_label_codes:
            networks["class_codes"] = LabelCodes(config.classes, config.latent_dim, name="class_codes"), (None,)
        if config.has_dequantizer:
            networks["dequantizer"] = Dequantizer(config, name="dequantizer"), image
        return networks

    @property
    def stages(self) -> list[StagePlan]:
        """The `StagePlan` of each stage in the model's flow, then of each stage in the dequantizer's flow."""
        return list(itertools.chain(*self.config.levels, *self.config.dequantization_levels))

    @property
    def encoders(self) -> list[PlacedNetwork]:
        """[(unbuilt encoder, input shape)]: the encoder of z and the dequantizer's, if the model has them."""
        networks = _make_smallest_networks(self.config)
        encoders = [networks["encoder"]] if self.config.has_encoder else []
        if self.config.has_dequantizer:
            dequantizer, x_shape = networks["dequantizer"]
            encoders.append((dequantizer.encoder, x_shape))
        return encoders

    def compute_weight_shapes(self) -> dict[str, Shape]:
        """Returns {path: shape} of all weights of a model, with the paths of `DecoupledModel.named_variables`."""
        config = self.config
        repeated = {"prior_flow/step_0": [f"prior_flow/{name}" for name in name_flow_steps(config.prior_steps)]}
        for flow, levels in (("flow", config.levels), ("dequantizer/flow", config.dequantization_levels)):
            for stage in itertools.chain(*levels):
                repeated[f"{flow}/{stage.step_names[0]}"] = [f"{flow}/{name}" for name in stage.step_names]
        shapes: dict[str, Shape] = {"initialized": ()}
        for name, (network, x_shape) in _make_smallest_networks(config).items():
            for path, shape in network.compute_weight_shapes(x_shape).items():
                parts = f"{name}/{path}".split("/")
                end = 3 if name == "dequantizer" else 2
                step, weight = "/".join(parts[:end]), "/".join(parts[end:])
                shapes |= {f"{equal}/{weight}".rstrip("/"): shape for equal in repeated.get(step, [step])}
        return shapes

    def count_parameters(self) -> dict[str, int]:
        """Returns {network: count of trainable parameters}, and the sum as "total"."""
        return count_by_network(self.compute_weight_shapes())

    def require_memory(self) -> None:
        """Raises ConfigError, which names an option, if weights or the largest map of an image exceed the memory."""
        memory, counts = read_total_memory(), self.count_parameters()
        weights, image = counts["total"] * FLOAT32, self._count_widest_map() * FLOAT32
        if max(weights, image) <= memory:
            return
        largest = max((name for name in counts if name != "total"), key=counts.__getitem__)
        what = (
            f"{format_bytes(weights)} for {counts['total']:,} parameters, most of them of the {largest}"
            if weights >= image
            else f"{format_bytes(image)} for a single image"
        )
        options = {name: value if isinstance(value, list) else [value] for name, value in self.config.to_dict().items()}
        sizes = {name: max((n for n in values if type(n) is int), default=0) for name, values in options.items()}
        name = max(sizes, key=sizes.__getitem__)
        raise ConfigError(
            f"the model is too large: it needs {what}, and this machine has {format_bytes(memory)} of memory; "
            f"the largest of its sizes is in model.{name}, {sizes[name]}"
        )

    def _count_widest_map(self) -> int:
        config, (height, width, channels) = self.config, self.config.image_shape
        sizes = [height * width * max(channels, config.has_dequantizer * config.dequantization_map_channels)]
        sizes += [stage.positions * stage.hidden for stage in self.stages]
        for encoder, x_shape in self.encoders:
            sizes += [math.prod(shape[1:]) for _, shape, _ in encoder.children(x_shape)]
        return max(sizes)

    def count_inference_bytes(self, height: int, width: int) -> int:
        """Returns the bytes, besides weights, that `encode`, `decode` or `bound` needs for an image of this size."""
        own_height, own_width, channels = self.config.image_shape
        # Values are counted for an image of the config's size; the result is scaled by the ratio of the pixel counts.
        maps = [stage.positions * (_HIDDEN_MAPS * stage.hidden + _STAGE_MAPS * stage.channels) for stage in self.stages]
        if self.config.has_dequantizer:
            encoder, x_shape = self.encoders[-1]
            blocks = encoder.children(x_shape)
            maps += [_HIDDEN_MAPS * math.prod(block.compute_output_shape(shape)[1:]) for block, shape, _ in blocks]
        numbers = max(maps) + IMAGE_MAPS * own_height * own_width * channels
        return FLOAT32 * numbers * height * width // (own_height * own_width)


@functools.lru_cache(maxsize=8)
def _make_smallest_networks(config: ModelConfig) -> dict[str, PlacedNetwork]:
    """Returns the networks of a config, but with one flow step per stage, whose steps all have equal shapes."""

    def reduce(steps: tuple) -> tuple:
        return tuple((1,) * len(entry) if isinstance(entry, tuple) else 1 for entry in steps)

    fewest: Facts = {name: reduce(getattr(config, name)) for name in ("steps", "dequantization_steps")}
    return Architecture(dataclasses.replace(config, prior_steps=1, **fewest)).make_networks()


def count_by_network(weights: Mapping[str, Shape]) -> dict[str, int]:
    """Returns {network: count of trainable parameters}, with the sum as "total", given {path: shape} of all weights.

    Flow, encoder and prior are always listed; dequantizer and class codes only if the model has them.

    >>> count_by_network({"flow/a/bias": (3,), "encoder/b/kernel": (2, 2), "encoder/b/moving_mean": (2,)})
    {'flow': 3, 'encoder': 4, 'prior': 0, 'total': 7}
    """
    counts = {"flow": 0, "encoder": 0, "prior": 0}
    for name, shape in weights.items():
        network, _, rest = name.partition("/")
        # The flag `initialized` belongs to no network, and moving statistics are not trainable parameters.
        if rest and not rest.endswith(("moving_mean", "moving_variance")):
            network = "prior" if network in ("prior_flow", "prior_affine") else network
            counts[network] = counts.get(network, 0) + math.prod(shape)
    return {**counts, "total": sum(counts.values())}
