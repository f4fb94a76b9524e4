"""The options of the model's architecture: `ModelConfig`."""

import dataclasses
from typing import Annotated, Literal

import pydantic

from tfdecouple.config.shapes import ImageShape, StagePlan, count_colour_numbers, is_squeezed_first, plan_flow_levels
from tfdecouple.config.values import (
    Count,
    Fraction,
    Positive,
    format_value,
    require,
    to_json_values,
    validate_options,
)
from tfdecouple.registry import CONDITIONERS, ENCODERS, LAYERS, PRIORS, TRANSFORMS
from tfdecouple.storage.files import Facts

# Type of a factor n: 1/n of a level's channels leave the flow at the end of each stage of the level.
Factor = Annotated[int, pydantic.Field(ge=2)]
# Largest number of levels of a flow or an encoder: with more, a side of the images would have over 16 million pixels.
MOST_LEVELS = 24
# Largest number of flow steps. TensorFlow needs minutes to build that many; the deepest preset has 92.
MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The options of a model's architecture: flow, prior and encoder (paper sections 2.1, 2.2 and appendix B).

    >>> ModelConfig(image_shape=(16, 16, 3), steps=(2, (1, 1), 2), hidden_channels=(16, 32, 32)).image_shape
    (16, 16, 3)

    Attributes:
        image_shape: height, width and channels of the images, such as [32, 32, 3] for RGB or [48, 64, 1] for grey.
            Images of one or two channels are squeezed before the first level, too.
        n_bits: bits per colour channel, 1 to 8. Below 8, pixels are quantised to `2**n_bits` bins.
        latent_dim: number of dimensions of the global code z (the paper's d_z); unused if `conditioning` is "none".
        conditioning: where z enters. "coupling": every coupling of the flow (the paper's model). "base": only the mean
            and scale of the Gaussian of v (the paper's Table 3 baseline). "none": no z, no encoder (refined Glow).
        steps: flow steps of each level. The first and the last level have a number; each inner level, between them,
            has a list with a number for each stage. Some channels leave the flow after a stage (paper Figure 3c).
        hidden_channels: channels of the hidden maps of the coupling nets, one number per level.
        factors: for each inner level, a number n: 1/n of the level's channels leave the flow after each stage. A single
            entry applies to all inner levels.
        transform: transform of the couplings, "affine" (scale 1 + alpha*tanh(h/2), h from the coupling net), "additive"
            or another registered name (docs/extending.md).
        multiscale_transform: as `transform`, for the coupling at the end of each stage, before channels leave the flow.
        alpha: the paper's bound of the affine scale, in (0, 1]: a scale lies in (1 - alpha, 1 + alpha). With a smaller
            alpha, images less similar to the training images are still reconstructed exactly (docs/RESULTS.md,
            "Reconstruction").
        step_layers: further layers at the end of each flow step of the decoder, by registered names such as "actnorm".
        colour_map: whether z begins with mean and covariance of the image's colours, also of images unlike the training
            images, and the flow with a map of the colours, a matrix and a shift made from these numbers; the couplings
            get the other numbers of z. False in the paper.
        conditioner: the net of each coupling of the decoder's flow, by a registered name: "convolutional", the paper's.
        encoder: the network from an image to q(z|x), by a registered name: "resnet", the paper's, whose options are
            the next two.
        encoder_channels: channels of each level of the ResNet; each level halves the resolution.
        encoder_out_channels: channels after the last level of the encoder (the paper's c').
        prior: "flow" (a small flow over z, paper B.3), "normal" (N(0, I), the ablation) or "classes": z is a learned
            function of the label of an image, an embedding and an MLP, and there is no encoder.
        prior_steps: number of flow steps of the prior.
        prior_hidden: hidden units of the prior flow's coupling nets.
        prior_transform: as `transform`, for the couplings of the prior flow.
        prior_alpha: as `alpha`, for the couplings of the prior flow.
        classes: number of different labels; 0 for a model without labels. With `prior` "classes", z is a function of
            the label; with "flow" or "normal", the prior over z has a learned shift and scale for each label.
        class_probabilities: p(y) of each label, up to a common factor, not trained; empty if all labels are equally
            likely.
        base_hidden: hidden units of the net from z to mean and scale of v, for `conditioning` "base" only.
        dequantization: distribution of the noise u within the bins of the pixels: "uniform", or "flow", a learned
            q(u|x): a flow from noise to u, conditioned on a feature map of the image (variational dequantisation, Ho
            et al., 2019). The options that begin with `dequantization_` are for "flow" only.
        dequantization_steps: as `steps`, for the dequantisation flow.
        dequantization_hidden_channels: as `hidden_channels`, for the dequantisation flow.
        dequantization_factors: as `factors`, for the inner levels of the dequantisation flow.
        dequantization_transform: as `transform`, for all couplings of the dequantisation flow.
        dequantization_alpha: as `alpha`, for the couplings of the dequantisation flow.
        dequantization_encoder_channels: channels of each level of the network from the image to the feature map. Each
            level halves the resolution; as many levels then double it again.
        dequantization_map_channels: channels of the feature map.
    """

    image_shape: ImageShape = (32, 32, 3)
    n_bits: Annotated[int, pydantic.Field(ge=1, le=8)] = 8
    latent_dim: Count = 64
    conditioning: Literal["coupling", "base", "none"] = "coupling"
    steps: tuple[int | tuple[int, ...], ...] = (2, (6, 6), (6, 6), 4)
    hidden_channels: tuple[Positive, ...] = (24, 512, 512, 512)
    factors: tuple[Factor, ...] = (4,)
    transform: str = "affine"
    multiscale_transform: str = "affine"
    alpha: Fraction = 1.0
    step_layers: tuple[str, ...] = ()
    colour_map: bool = False
    conditioner: str = "convolutional"
    encoder: str = "resnet"
    encoder_channels: tuple[Positive, ...] = (48, 96, 96)
    encoder_out_channels: Positive = 8
    prior: str = "flow"
    prior_steps: Annotated[int, pydantic.Field(ge=1, le=MOST_STEPS)] = 2
    prior_hidden: Positive = 256
    prior_transform: str = "affine"
    prior_alpha: Fraction = 1.0
    classes: Count = 0
    class_probabilities: tuple[Annotated[float, pydantic.Field(gt=0)], ...] = ()
    base_hidden: Positive = 64
    dequantization: Literal["uniform", "flow"] = "uniform"
    dequantization_steps: tuple[int | tuple[int, ...], ...] = (2, 4)
    dequantization_hidden_channels: tuple[Positive, ...] = (24, 256)
    dequantization_factors: tuple[Factor, ...] = (2,)
    dequantization_transform: str = "affine"
    dequantization_alpha: Fraction = 1.0
    dequantization_encoder_channels: tuple[Positive, ...] = (48, 96)
    dequantization_map_channels: Positive = 4

    def __post_init__(self) -> None:
        validate_options(self, "model.")
        require(
            len(self.image_shape) == 3 and min(self.image_shape) >= 1,
            f"model.image_shape is {format_value([*self.image_shape])}; it must be [height, width, channels], each at "
            "least 1",
        )
        CONDITIONERS.require(self.conditioner, "model.conditioner")
        ENCODERS.require(self.encoder, "model.encoder")
        PRIORS.require(self.prior, "model.prior", "normal", "classes")
        for name in ("transform", "multiscale_transform", "prior_transform", "dequantization_transform"):
            TRANSFORMS.require(getattr(self, name), f"model.{name}")
        for name in self.step_layers:
            LAYERS.require(name, "an entry of model.step_layers")
        self._check_labels()
        self._check_colour_map()
        self._check_flow()
        if self.has_encoder and self.encoder == "resnet":
            self._check_encoder("encoder_channels", "the encoder")
        if self.has_latent:
            least, hint = (2, " for a prior flow (or set model.prior=normal)") if self.prior == "flow" else (1, "")
            message = f"model.latent_dim is {self.latent_dim}; it must be at least {least}{hint}"
            require(self.latent_dim >= least, message)
        if self.has_dequantizer:
            self._check_flow("dequantization_")
            self._check_encoder("dequantization_encoder_channels", "the encoder of the dequantisation")

    def _check_labels(self) -> None:
        require(
            self.prior != "classes" or self.classes >= 1,
            "model.prior is 'classes' and model.classes is 0; give the number of labels there",
        )
        require(
            not self.classes or self.has_latent,
            "model.conditioning is 'none', and labels enter by z; set model.conditioning=coupling, or leave out "
            "model.classes and model.prior",
        )
        count = len(self.class_probabilities)
        require(
            count in (0, self.classes),
            f"model.class_probabilities has {count} entries and model.classes is {self.classes}; give one for each "
            "label, or none",
        )

    def _check_colour_map(self) -> None:
        require(
            not self.colour_map or (self.conditioning == "coupling" and self.has_encoder and self.encoder == "resnet"),
            "model.colour_map needs the encoder resnet and couplings that use z, and model.encoder is "
            f"{self.encoder!r}, model.conditioning {self.conditioning!r} and model.prior {self.prior!r}; set "
            "model.colour_map=false",
        )
        require(
            self.latent_dim > self.colour_numbers or not self.colour_map,
            f"model.latent_dim is {self.latent_dim}; model.colour_map needs at least {self.colour_numbers + 1} for "
            f"images of {self.image_shape[-1]} channels",
        )

    def _check_flow(self, prefix: str = "") -> None:
        option = f"model.{prefix}"
        steps, widths, factors = (getattr(self, f"{prefix}{name}") for name in ("steps", "hidden_channels", "factors"))
        levels = len(steps)
        require(levels <= MOST_LEVELS, f"{option}steps has {levels} levels; there can be {MOST_LEVELS} at most")
        require(levels >= 2, f"{option}steps has {levels} level; a flow needs at least 2, for example [2, 4]")
        require(
            len(widths) == levels,
            f"{option}hidden_channels has {len(widths)} entries and {option}steps {levels}; both need one entry per "
            "level",
        )
        require(
            isinstance(steps[0], int) and isinstance(steps[-1], int),
            f"{option}steps is {format_value(to_json_values(steps))}; its first and last entries must be numbers",
        )
        require(
            len(factors) in (1, levels - 2),
            f"{option}factors has {len(factors)} entries; give one, or one for each of the {levels - 2} inner levels",
        )
        inner_factors = factors * (levels - 2) if len(factors) == 1 else factors
        for level, (counts, factor) in enumerate(zip(steps[1:-1], inner_factors, strict=True), start=1):
            require(
                isinstance(counts, tuple) and 1 <= len(counts) < factor,
                f"{option}steps[{level}] is {format_value(to_json_values(counts))}; an inner level needs a list of 1 "
                f"to {factor - 1} numbers (its factor is {factor})",
            )
        flat = [count for entry in steps for count in (entry if isinstance(entry, tuple) else (entry,))]
        require(min(flat) >= 1, f"an entry of {option}steps is {min(flat)}; it must be at least 1")
        require(sum(flat) <= MOST_STEPS, f"{option}steps adds up to {sum(flat)} steps; at most {MOST_STEPS} are built")
        planned = plan_flow_levels(self.image_shape, steps, widths, factors)
        first = ", with a squeeze before the first" if is_squeezed_first(self.image_shape[-1]) else ""
        self._check_halving(planned[-1][0].reduction, f"{levels} levels halve", f"{option}steps{first}")
        for level, factor in enumerate(inner_factors, start=1):
            channels = planned[level][0].channels
            require(
                channels % factor == 0,
                f"{option}factors gives {factor} at level {level}, which has {channels} channels; it must divide them",
            )

    def _check_encoder(self, name: str, network: str) -> None:
        levels = len(getattr(self, name))
        require(levels >= 1, f"model.{name} is empty; give one number per level")
        require(levels <= MOST_LEVELS, f"model.{name} has {levels} levels; there can be {MOST_LEVELS} at most")
        self._check_halving(2**levels, f"{network} halves", f"model.{name}")

    def _check_halving(self, scale: int, halve: str, option: str) -> None:
        *sides, channels = self.image_shape
        nearest = [*(-(-side // scale) * scale for side in sides), channels]
        require(
            all(side % scale == 0 for side in sides),
            f"model.image_shape is {list(self.image_shape)}; {halve} height and width {scale.bit_length() - 1} "
            f"times ({option}), so both must be multiples of {scale}, such as {nearest}, to which images are resized",
        )

    def to_dict(self) -> Facts:
        """Returns the options of the model: a dict of JSON values by name."""
        return to_json_values(dataclasses.asdict(self))

    @property
    def has_latent(self) -> bool:
        """Whether the model has a global code z."""
        return self.conditioning != "none"

    @property
    def bound_of_scales(self) -> float | None:
        """The option `alpha`, a float that bounds the scales of couplings; None if all couplings are additive."""
        return None if self.transform == self.multiscale_transform == "additive" else self.alpha

    @property
    def has_encoder(self) -> bool:
        """Whether the model has an encoder: z is drawn from a learned q(z|x)."""
        return self.has_latent and self.prior != "classes"

    @property
    def colour_numbers(self) -> int:
        """The count of the first numbers of z, mean and covariance of colours; 0 without `colour_map`."""
        return count_colour_numbers(self.image_shape[-1]) if self.colour_map else 0

    @property
    def has_label_codes(self) -> bool:
        """Whether z is a learned function of an image's label (`prior` "classes"); then there is no encoder."""
        return self.has_latent and self.prior == "classes"

    @property
    def has_labels(self) -> bool:
        """Whether the model is conditioned on labels of the images (`classes` is above 0)."""
        return self.classes > 0

    @property
    def label_shares(self) -> tuple[float, ...]:
        """The probability p(y) of each label, up to a common factor: a tuple of floats; () without labels."""
        return self.class_probabilities or (1.0,) * self.classes

    @property
    def has_dequantizer(self) -> bool:
        """Whether the dequantisation noise u is drawn from a learned q(u|x), not uniformly."""
        return self.dequantization == "flow"

    @property
    def levels(self) -> tuple[tuple[StagePlan, ...], ...]:
        """The plans of the stages (flow steps of one shape) of each level of the flow: a tuple of tuples, by level."""
        return plan_flow_levels(self.image_shape, self.steps, self.hidden_channels, self.factors)

    @property
    def dequantization_levels(self) -> tuple[tuple[StagePlan, ...], ...]:
        """The plans of the stages of each level of the dequantisation flow, a tuple of tuples; () if u is uniform."""
        if not self.has_dequantizer:
            return ()
        widths, factors = self.dequantization_hidden_channels, self.dequantization_factors
        return plan_flow_levels(self.image_shape, self.dequantization_steps, widths, factors)
