"""The whole model: which networks follow from a config, and how many parameters they have."""

from __future__ import annotations

import dataclasses
import math

from tfdecouple.architecture.classes import ClassAffinePlan, ClassCodesPlan
from tfdecouple.architecture.encoders import EncoderPlan, ResNetPlan
from tfdecouple.architecture.flows import FlowPlan, PriorPlan
from tfdecouple.architecture.layers import CouplingPlan, StepPlan, WhiteningPlan
from tfdecouple.architecture.weights import Weights, under
from tfdecouple.config import ModelConfig
from tfdecouple.levels import encoder_blocks, flow_levels, halves, local_blocks

# By the first part of the name of a weight, the network that it is counted with.
_NETWORKS = {
    **{name: name for name in ("flow", "encoder", "class_codes", "dequantizer")},
    "prior_flow": "prior",
    "prior_affine": "prior",
}
# Ends of the names of weights that training does not move by gradients.
_STATE = ("moving_mean", "moving_variance", "permutation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DequantizerPlan:
    """Variational dequantisation: a network from an image to a map, and a flow from noise to u that the map conditions.

    Attributes:
        encoder: from the image to the map, which is as large as the image.
        flow: from noise to u, but for the sigmoid at its end.
    """

    encoder: ResNetPlan
    flow: FlowPlan

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return {**under("encoder", self.encoder.weights()), **under("flow", self.flow.weights())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A model's architecture.

    Attributes:
        config: that it follows from.
        flow: from images to v.
        encoder: of q(z|x); None without z, and where z is a function of the label.
        prior: the flow of the prior over z; None where there is none.
        prior_affine: what stands before that flow for each label; None where the prior knows no labels.
        class_codes: z as a function of the label; None where it is none.
        dequantizer: of q(u|x); None where u is uniform.
    """

    config: ModelConfig
    flow: FlowPlan
    encoder: EncoderPlan | None
    prior: PriorPlan | None
    prior_affine: ClassAffinePlan | None
    class_codes: ClassCodesPlan | None
    dequantizer: DequantizerPlan | None

    def weights(self) -> Weights:
        """Returns `{name: shape}` of every weight of the model, as `DecoupledModel.named_variables` names them."""
        weights = {"initialized": (), **under("flow", self.flow.weights())}
        if self.encoder is not None:
            weights |= under("encoder", self.encoder.weights())
        if self.prior is not None:
            weights |= under("prior_flow", self.prior.weights())
        if self.prior_affine is not None:
            weights |= under("prior_affine", self.prior_affine.weights())
        if self.class_codes is not None:
            weights |= under("class_codes", self.class_codes.weights())
        if self.dequantizer is not None:
            weights |= under("dequantizer", self.dequantizer.weights())
        return weights

    def parameters(self) -> dict[str, int]:
        """Returns the numbers of trainable parameters: of each network, and in total."""
        return count_by_network(self.weights())

    def widest_map(self) -> int:
        """Returns how many numbers the largest map of a single image holds."""
        stages = list(self.flow.stages)
        encoders: list[ResNetPlan] = [] if self.encoder is None else [self.encoder]
        if self.dequantizer is not None:
            stages += self.dequantizer.flow.stages
            encoders.append(self.dequantizer.encoder)
        sizes = [math.prod(self.config.image_shape), *(stage.positions * stage.hidden for stage in stages)]
        for encoder in encoders:
            sizes += [math.prod(encoder.out_sides(block)) * block.planes for block in encoder.blocks]
        return max(sizes)


def plan(config: ModelConfig) -> Plan:
    """Returns the architecture that a config describes.

    >>> tiny = plan(ModelConfig(image_size=8, steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4), encoder_channels=(4,)))
    >>> [(stage.channels, stage.dropped) for stage in tiny.flow.stages]
    [(3, 0), (12, 3), (9, 3), (24, 0)]
    >>> tiny.weights()["flow/level_0_part_0_step_0/linear/kernel"]
    (3, 3)
    """
    encoder = prior = prior_affine = class_codes = whitening = dequantizer = None
    if config.has_encoder:
        encoder = EncoderPlan(
            image_shape=config.image_shape,
            blocks=encoder_blocks(config.encoder_channels, config.image_shape[-1]),
            out_channels=config.encoder_out_channels,
            latent_dim=config.latent_dim,
        )
        if config.prior == "flow":
            prior = PriorPlan(steps=config.prior_steps, step=_prior_step(config))
        if config.has_classes:
            prior_affine = ClassAffinePlan(classes=config.classes, latent_dim=config.latent_dim)
    if config.has_class_codes:
        class_codes = ClassCodesPlan(classes=config.classes, latent_dim=config.latent_dim)
    if config.conditioning == "base":
        whitening = WhiteningPlan(
            condition_size=config.latent_dim, hidden=config.base_hidden, entries=math.prod(config.image_shape)
        )
    flow = FlowPlan(
        image_shape=config.image_shape,
        levels=flow_levels(config.image_shape, config.steps, config.hidden_channels, config.inner_factors),
        condition_size=config.latent_dim if config.conditioning == "coupling" else 0,
        local=False,
        transform=config.transform,
        multiscale_transform=config.multiscale_transform,
        alpha=config.alpha,
        linear=config.linear,
        step_layers=config.step_layers,
        whitening=whitening,
    )
    if config.has_dequantizer:
        dequantizer = _dequantizer(config)
    return Plan(
        config=config,
        flow=flow,
        encoder=encoder,
        prior=prior,
        prior_affine=prior_affine,
        class_codes=class_codes,
        dequantizer=dequantizer,
    )


def count_by_network(weights: Weights) -> dict[str, int]:
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


def _dequantizer(config: ModelConfig) -> DequantizerPlan:
    return DequantizerPlan(
        encoder=ResNetPlan(
            image_shape=config.image_shape,
            blocks=local_blocks(
                config.dequantization_encoder_channels, config.dequantization_map_channels, config.image_shape[-1]
            ),
        ),
        flow=FlowPlan(
            image_shape=config.image_shape,
            levels=flow_levels(
                config.image_shape,
                config.dequantization_steps,
                config.dequantization_hidden_channels,
                config.inner_dequantization_factors,
            ),
            condition_size=config.dequantization_map_channels,
            local=True,
            transform=config.dequantization_transform,
            multiscale_transform=config.dequantization_transform,
            alpha=config.dequantization_alpha,
            linear=config.linear,
        ),
    )


def _prior_step(config: ModelConfig) -> StepPlan:
    kept, transformed = halves(config.latent_dim)
    coupling = CouplingPlan(
        kept=kept,
        transformed=transformed,
        hidden=config.prior_hidden,
        condition_size=0,
        transform=config.prior_transform,
        images=False,
    )
    return StepPlan(channels=config.latent_dim, linear=config.linear, coupling=coupling)
