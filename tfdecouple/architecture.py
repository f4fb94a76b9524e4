"""The plan of a model: which layers it has, their sizes, and the name and shape of every weight.

Whatever needs to know how a model follows from its config reads it here: the networks, the number of parameters, the
weights of reference checkpoints, the export and the estimates of cost. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from tfdecouple.config import ModelConfig
from tfdecouple.levels import COLOURS, BlockPlan, StagePlan, encoder_blocks, flow_levels, halves, step_names
from tfdecouple.transforms import TRANSFORMS

Shape = tuple[int, ...]
Weights = dict[str, Shape]

# The couplings of a step by name, in the forward direction: pattern of the split, and which side is transformed.
FIRST_PAIR = {"coupling_continuous_last": ("continuous", "last"), "coupling_continuous_first": ("continuous", "first")}
SECOND_PAIR = {"coupling_alternate_last": ("alternate", "last"), "coupling_alternate_first": ("alternate", "first")}

# Ends of the names of weights that training does not move by gradients.
_STATE = ("moving_mean", "moving_variance", "permutation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CouplingPlan:
    """A coupling: a net reads the channels that are kept and says how to transform the others.

    Attributes:
        kept: channels that the net reads.
        transformed: channels that are transformed.
        hidden: width of the net.
        condition_size: size of z where the net takes it, or 0.
        transform: name of the transform, of `transforms.TRANSFORMS`.
        images: whether the net is convolutional; else it is for vectors.
    """

    kept: int
    transformed: int
    hidden: int
    condition_size: int
    transform: str
    images: bool = True

    @property
    def outputs(self) -> int:
        """Channels of the net's output."""
        return self.transformed * TRANSFORMS[self.transform].parameters

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its net's weights."""
        kernel, hidden = ((3, 3) if self.images else ()), self.hidden
        weights = {
            "first": (*kernel, self.kept, hidden),
            "second": ((1, 1, hidden, hidden) if self.images else (hidden, hidden)),
            **_weight_norm((*kernel, hidden, self.outputs)),
        }
        if not self.images:
            weights |= {"first_bias": (hidden,), "second_bias": (hidden,)}
        if self.condition_size:
            weights |= {"condition_kernel": (self.condition_size, hidden), "condition_bias": (hidden,)}
        return _under("net", weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A step of flow: actnorm, linear map of the channels, two couplings, actnorm, two couplings (paper Figure 3a).

    Attributes:
        channels: of its input and output.
        linear: form of the linear map, "full" or "lu".
        coupling: each of its four couplings.
    """

    channels: int
    linear: str
    coupling: CouplingPlan

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        weights = {
            **_actnorm("actnorm_1", self.channels),
            **_linear("linear", self.channels, self.linear),
            **_actnorm("actnorm_2", self.channels),
        }
        for name in (*FIRST_PAIR, *SECOND_PAIR):
            weights |= _under(name, self.coupling.weights())
        return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorOutPlan:
    """What channels pass before they leave: linear map, a coupling that transforms those that leave, their actnorm.

    Attributes:
        channels: of its input and output.
        linear: form of the linear map, "full" or "lu".
        coupling: of the channels that leave.
    """

    channels: int
    linear: str
    coupling: CouplingPlan

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return {
            **_linear("linear", self.channels, self.linear),
            **_under("coupling", self.coupling.weights()),
            **_actnorm("actnorm", self.coupling.transformed),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhiteningPlan:
    """The net from z to mean and scale of every entry of v (the paper's Table 3 baseline).

    Attributes:
        condition_size: size of z.
        hidden: width of the net.
        entries: of v.
    """

    condition_size: int
    hidden: int
    entries: int

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        first = {"first": (self.condition_size, self.hidden), "first_bias": (self.hidden,)}
        return {**first, **_weight_norm((self.hidden, 2 * self.entries))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderPlan:
    """The encoder: ResNet blocks, a 1x1 convolution, and a dense layer to mean and log-variance of z (paper B.1).

    Attributes:
        image_size: side of the images.
        blocks: in their order.
        out_channels: of the 1x1 convolution, whose output is flattened.
        latent_dim: size of z.
    """

    image_size: int
    blocks: tuple[BlockPlan, ...]
    out_channels: int
    latent_dim: int

    def side(self, block: BlockPlan) -> int:
        """Returns height and width of a block's input."""
        return self.image_size // block.reduction

    @property
    def out_side(self) -> int:
        """Height and width of the last block's output."""
        return self.image_size // self.blocks[-1].out_reduction

    @property
    def features(self) -> int:
        """How many numbers the dense layer reads."""
        return self.out_side**2 * self.out_channels

    def block_weights(self, block: BlockPlan) -> Weights:
        """Returns `{name: shape}` of a block's weights."""
        weights = {
            "convolution_1/kernel": (3, 3, block.channels, block.planes),
            **_batch_norm("norm_1", block.planes),
            "convolution_2/kernel": (3, 3, block.planes, block.planes),
            **_batch_norm("norm_2", block.planes),
        }
        if block.shortcut:
            weights["shortcut_convolution/kernel"] = (1, 1, block.channels, block.planes)
            weights |= _batch_norm("shortcut_norm", block.planes)
        return weights

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        weights: Weights = {}
        for block in self.blocks:
            weights |= _under(block.name, self.block_weights(block))
        weights["top/kernel"] = (1, 1, self.blocks[-1].planes, self.out_channels)
        weights["top/bias"] = (self.out_channels,)
        return weights | _weight_norm((self.features, 2 * self.latent_dim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorPlan:
    """The flow of the prior over z: some steps on vectors (paper B.3).

    Attributes:
        steps: how many.
        step: each of them.
    """

    steps: int
    step: StepPlan

    @property
    def step_names(self) -> tuple[str, ...]:
        """Names of its steps, in the forward direction."""
        return step_names(self.steps)

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        one = self.step.weights()
        return {name: shape for step in self.step_names for name, shape in _under(step, one).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A model's architecture.

    Attributes:
        config: that it follows from.
        levels: the stages of each level of the flow, full resolution first.
        condition_size: size of z where the couplings of the flow take it, or 0.
        whitening: of v by z, where z enters nowhere else; else None.
        encoder: None without z.
        prior: the flow of the prior over z; None where the prior is a standard normal, or without z.
    """

    config: ModelConfig
    levels: tuple[tuple[StagePlan, ...], ...]
    condition_size: int
    whitening: WhiteningPlan | None
    encoder: EncoderPlan | None
    prior: PriorPlan | None

    @property
    def stages(self) -> Iterator[StagePlan]:
        """All stages of the flow in the forward direction."""
        return (stage for level in self.levels for stage in level)

    def step(self, stage: StagePlan) -> StepPlan:
        """Returns what each step of a stage is."""
        kept, transformed = halves(stage.channels)
        coupling = self._coupling(stage, kept, transformed, self.config.transform)
        return StepPlan(channels=stage.channels, linear=self.config.linear, coupling=coupling)

    def factor_out(self, stage: StagePlan) -> FactorOutPlan | None:
        """Returns what stands at the end of a stage before channels leave; None where none leave."""
        if not stage.dropped:
            return None
        coupling = self._coupling(stage, stage.kept, stage.dropped, self.config.multiscale_transform)
        return FactorOutPlan(channels=stage.channels, linear=self.config.linear, coupling=coupling)

    def weights(self) -> Weights:
        """Returns `{name: shape}` of every weight of the model, as `DecoupledModel.named_variables` names them."""
        flow: Weights = {}
        for stage in self.stages:
            step, factor_out = self.step(stage).weights(), self.factor_out(stage)
            for name in stage.step_names:
                flow |= _under(name, step)
            if factor_out is not None:
                flow |= _under(stage.factor_out_name, factor_out.weights())
        if self.whitening is not None:
            flow |= _under("whitening", self.whitening.weights())
        weights = {"initialized": (), **_under("flow", flow)}
        if self.encoder is not None:
            weights |= _under("encoder", self.encoder.weights())
        if self.prior is not None:
            weights |= _under("prior_flow", self.prior.weights())
        return weights

    def parameters(self) -> dict[str, int]:
        """Returns the numbers of trainable parameters: of flow, encoder and prior, and in total."""
        return count_by_network(self.weights())

    def widest_map(self) -> int:
        """Returns how many numbers the largest map of a single image holds."""
        sizes = [self.config.image_size**2 * COLOURS, *(stage.side**2 * stage.hidden for stage in self.stages)]
        if self.encoder is not None:
            sizes += [(self.config.image_size // b.out_reduction) ** 2 * b.planes for b in self.encoder.blocks]
        return max(sizes)

    def _coupling(self, stage: StagePlan, kept: int, transformed: int, transform: str) -> CouplingPlan:
        return CouplingPlan(
            kept=kept,
            transformed=transformed,
            hidden=stage.hidden,
            condition_size=self.condition_size,
            transform=transform,
        )


def plan(config: ModelConfig) -> Plan:
    """Returns the architecture that a config describes.

    >>> tiny = plan(ModelConfig(image_size=8, steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4), encoder_channels=(4,)))
    >>> [(stage.channels, stage.dropped) for stage in tiny.stages]
    [(3, 0), (12, 3), (9, 3), (24, 0)]
    >>> tiny.weights()["flow/level_0_part_0_step_0/linear/kernel"]
    (3, 3)
    """
    encoder = prior = whitening = None
    if config.has_latent:
        encoder = EncoderPlan(
            image_size=config.image_size,
            blocks=encoder_blocks(config.encoder_channels),
            out_channels=config.encoder_out_channels,
            latent_dim=config.latent_dim,
        )
        if config.prior == "flow":
            prior = PriorPlan(steps=config.prior_steps, step=_prior_step(config))
    if config.conditioning == "base":
        whitening = WhiteningPlan(
            condition_size=config.latent_dim, hidden=config.base_hidden, entries=math.prod(config.image_shape)
        )
    return Plan(
        config=config,
        levels=flow_levels(config.image_size, config.steps, config.hidden_channels, config.inner_factors),
        condition_size=config.latent_dim if config.conditioning == "coupling" else 0,
        whitening=whitening,
        encoder=encoder,
        prior=prior,
    )


def count_by_network(weights: Weights) -> dict[str, int]:
    """Returns how many of a model's weights are trainable parameters: of flow, encoder and prior, and in total.

    >>> count_by_network({"flow/a/bias": (3,), "encoder/b/kernel": (2, 2), "encoder/b/moving_mean": (2,)})
    {'flow': 3, 'encoder': 4, 'prior': 0, 'total': 7}
    """
    counts = {"flow": 0, "encoder": 0, "prior_flow": 0}
    for name, shape in weights.items():
        network = name.partition("/")[0]
        if network in counts and name.rpartition("/")[2] not in _STATE:
            counts[network] += math.prod(shape)
    flow, encoder, prior = counts.values()
    return {"flow": flow, "encoder": encoder, "prior": prior, "total": flow + encoder + prior}


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


def _under(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}/{name}": shape for name, shape in weights.items()}


def _actnorm(name: str, channels: int) -> Weights:
    return _under(name, {"log_scale": (channels,), "bias": (channels,)})


def _linear(name: str, channels: int, form: str) -> Weights:
    square = (channels, channels)
    return _under(name, {"kernel": square} if form == "full" else {"factors": square, "permutation": (channels,)})


def _weight_norm(shape: Shape) -> Weights:
    """A weight-normalised last layer: direction, gain and bias."""
    return {"last_direction": shape, "last_gain": shape[-1:], "last_bias": shape[-1:]}


def _batch_norm(name: str, channels: int) -> Weights:
    return _under(name, dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,)))
