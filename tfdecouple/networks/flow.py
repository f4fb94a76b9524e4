"""The invertible decoder: x to v, conditioned on z (paper section 2.2, Figure 3)."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfdecouple.config import STEP_LAYERS, ModelConfig, from_plain
from tfdecouple.config.shapes import StagePlan, squeezes_first
from tfdecouple.errors import UserError
from tfdecouple.layers import (
    ActNorm,
    ConditionalWhitening,
    Coupling,
    InvertibleConv1x1,
    InvertibleLayer,
    InvertibleSequence,
    Squeeze,
)
from tfdecouple.layers.base import ChildCall, FullLayer, InvertibleComposite
from tfdecouple.runtime.execution import Execution, join_channels
from tfdecouple.runtime.numerics import side_by_side, zero_per_image

# The layers of a step by name, in the forward direction: an actnorm, the linear map of the channels, or a coupling, as
# the pattern of its split and the side that is transformed (paper Figure 3a).
STEP: dict[str, Literal["actnorm", "linear"] | tuple[str, str]] = {
    "actnorm_1": "actnorm",
    "linear": "linear",
    "coupling_continuous_last": ("continuous", "last"),
    "coupling_continuous_first": ("continuous", "first"),
    "actnorm_2": "actnorm",
    "coupling_alternate_last": ("alternate", "last"),
    "coupling_alternate_first": ("alternate", "first"),
}


class _Coupled(InvertibleLayer):
    """The options that all layers made of couplings share."""

    def __init__(
        self,
        hidden: int,
        condition_size: int = 0,
        *,
        transform: str = "affine",
        alpha: float = 1.0,
        linear: str = "full",
        conditioner: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.condition_size = condition_size
        self.transform = transform
        self.alpha = alpha
        self.linear = linear
        self.conditioner = conditioner

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden": self.hidden,
            "condition_size": self.condition_size,
            "transform": self.transform,
            "alpha": self.alpha,
            "linear": self.linear,
            "conditioner": self.conditioner,
        }

    def _coupling(self, name: str, **options: Any) -> Coupling:
        return Coupling(
            self.hidden,
            self.condition_size,
            transform=self.transform,
            alpha=self.alpha,
            conditioner=self.conditioner,
            name=name,
            dtype=self.dtype_policy,
            **options,
        )


@keras.saving.register_keras_serializable(package="tfdecouple")
class FlowStep(_Coupled, InvertibleSequence):
    """One re-organised step: actnorm, 1x1 convolution, two couplings, actnorm, two couplings (paper Figure 3a).

    Args:
        hidden: width of the coupling nets.
        condition_size: size of z, or 0.
        transform: name of a transform, such as "affine" or "additive".
        alpha: bound of the affine scale.
        linear: "full" or "lu".
        conditioner: name of the coupling nets, of `config.CONDITIONERS`; None for the paper's.
        step_layers: names of what stands at its end beside the paper's layers, of `config.STEP_LAYERS`.
        **kwargs: of `InvertibleLayer`.
    """

    def __init__(self, hidden: int, condition_size: int = 0, *, step_layers: Sequence[str] = (), **kwargs: Any):
        super().__init__(hidden, condition_size, **kwargs)
        self.step_layers = tuple(step_layers)

        named = [pkgutil.resolve_name(STEP_LAYERS[name])(name=name, dtype=self.dtype_policy) for name in step_layers]
        self.sequence = [*map(self._named_layer, STEP), *named]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "step_layers": self.step_layers}

    def _named_layer(self, name: str) -> InvertibleLayer:
        """A layer of the paper's; the paths of weights in checkpoints are made of its name."""
        match STEP[name]:
            case "actnorm":
                return ActNorm(name=name, dtype=self.dtype_policy)
            case "linear":
                return self._linear_layer(name=name, dtype=self.dtype_policy)
            case pattern, side:
                return self._coupling(name, pattern=pattern, part=side)

    def _linear_layer(self, **options: Any) -> InvertibleLayer:
        return InvertibleConv1x1(self.linear, **options)


@keras.saving.register_keras_serializable(package="tfdecouple")
class FactorOut(_Coupled, InvertibleComposite):
    """What channels pass before they leave the flow: 1x1 convolution, a coupling that transforms them, actnorm.

    It stands where Glow learns a conditional Gaussian of what leaves (paper Figure 3c; the reference calls it the
    multi-scale prior). The last `dropped` channels of the output are the ones to leave.

    Args:
        dropped: how many channels leave.
        hidden: width of the coupling net.
        condition_size: size of z, or 0.
        transform: name of a transform, such as "affine" or "additive".
        alpha: bound of the affine scale.
        linear: "full" or "lu".
        conditioner: as of a `FlowStep`.
        **kwargs: of `InvertibleLayer`.
    """

    def __init__(self, dropped: int, hidden: int, condition_size: int = 0, **kwargs: Any):
        super().__init__(hidden, condition_size, **kwargs)
        self.dropped = dropped
        self.mixing = InvertibleConv1x1(self.linear, name="linear", dtype=self.dtype_policy)
        self.coupling = self._coupling("coupling", transformed=dropped)
        self.actnorm = ActNorm(name="actnorm", dtype=self.dtype_policy)

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the three layers."""
        self._kept = x_shape[-1] - self.dropped
        return [
            (self.mixing, x_shape, None),
            (self.coupling, x_shape, condition_shape),
            (self.actnorm, (*x_shape[:-1], self.dropped), None),
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "dropped": self.dropped}

    def run_forward(self, x: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x towards v; see `InvertibleComposite`."""
        h, mixing = call(self.mixing, x, None)
        h, coupling = call(self.coupling, h, condition)
        kept, dropped = tf.split(h, [self._kept, self.dropped], -1)
        dropped, actnorm = call(self.actnorm, dropped, None)
        return join_channels([kept, dropped]), mixing + coupling + actnorm

    def run_inverse(self, y: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps v towards x; see `InvertibleComposite`."""
        kept, dropped = tf.split(y, [self._kept, self.dropped], -1)
        dropped, actnorm = call(self.actnorm, dropped, None)
        h, coupling = call(self.coupling, tf.concat([kept, dropped], -1), condition)
        x, mixing = call(self.mixing, h, None)
        return x, mixing + coupling + actnorm


@dataclasses.dataclass(frozen=True)
class Stage:
    """The layers of a stage: steps of flow at one number of channels, and what stands before some of them leave.

    Attributes:
        plan: its sizes.
        steps: the steps.
        factor_out: the layer before the channels that leave, or None where none do.
    """

    plan: StagePlan
    steps: tuple[FlowStep, ...]
    factor_out: FactorOut | None

    @property
    def layers(self) -> tuple[InvertibleLayer, ...]:
        """The layers in the forward direction."""
        return (*self.steps, self.factor_out) if self.factor_out else self.steps


@keras.saving.register_keras_serializable(package="tfdecouple")
class Flow(InvertibleComposite):
    """The whole flow f(x; z), with the fine-grained multi-scale structure (paper Figure 3c).

    The first level works on the colour channels at full resolution; a squeeze stands before every further level, and
    before the first, too, where an image has but one or two channels, which leave nothing to split.
    Each inner level has stages: some steps, after which a quarter of the level's channels leave as finished entries of
    v. v has the shape of the image: what left is put back beside what went on, and unsqueezed, level by level.

    Args:
        config: the model's config, or its plain dict.
        **kwargs: of `InvertibleLayer`.

    Attributes:
        levels: the stages of each level, the highest resolution first.
        condition_size: size of the vector, or channels of the map at full resolution, that conditions it; or 0.
        local: whether that is a map, which is squeezed beside the image: four times the channels at half the side.
        squeezes_first: whether a squeeze stands before the first level, too.

    >>> from tfdecouple.config import ModelConfig
    >>> config = ModelConfig(image_shape=(8, 8, 3), steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4))
    >>> flow = Flow(config)
    >>> v, log_det = flow.forward_and_log_det(tf.zeros([2, 8, 8, 3]), tf.zeros([2, 64]))
    >>> v.shape.as_list(), log_det.shape.as_list()
    ([2, 8, 8, 3], [2])
    """

    def __init__(self, config: ModelConfig | dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else from_plain(ModelConfig, config, "model.")
        self.execution = Execution()
        self.squeezes_first = squeezes_first(self.config.image_shape[-1])
        self.squeeze = Squeeze(name="squeeze", dtype=self.dtype_policy)
        self.levels = self._make_levels()
        # Keras finds the layers here, and its .keras files know them by the name of this list.
        self.parts_layers = [layer for stage in self.stages for layer in stage.layers]
        self.whitening = None
        if self.config.conditioning == "base" and not self.local:
            self.whitening = ConditionalWhitening(
                self.config.base_hidden, self.config.latent_dim, name="whitening", dtype=self.dtype_policy
            )

    @property
    def stages(self) -> Iterator[Stage]:
        """All stages in the forward direction."""
        return (stage for level in self.levels for stage in level)

    def condition_shape(self, stage: StagePlan) -> tuple[int | None, ...]:
        """Returns the shape of what the couplings of a stage are conditioned on, batch first."""
        if not self.local:
            return (None, self.condition_size)
        return (None, stage.height, stage.width, self.condition_size * stage.reduction**2)

    def children(self, x_shape: Any = None, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns every layer, for images of the config's shape."""
        image, found = (None, *self.config.image_shape), []
        for stage in self.stages:
            shape = (None, stage.plan.height, stage.plan.width, stage.plan.channels)
            found += [(layer, shape, self.condition_shape(stage.plan)) for layer in stage.layers]
        return [
            *found,
            (self.squeeze, image, None),
            *([] if self.whitening is None else [(self.whitening, image, None)]),
        ]

    def build(self, x_shape: Any = None, condition_shape: Any = None) -> None:
        """Builds every layer for images of the config's shape."""
        FullLayer.build(self, x_shape)
        self._condition_ndims = 3 if self.local else 1

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "config": self.config.to_dict()}

    def _make_levels(self) -> tuple[tuple[Stage, ...], ...]:
        config = self.config
        self.local, self.condition_size = False, config.latent_dim if config.conditioning == "coupling" else 0
        options = {"alpha": config.alpha, "conditioner": config.conditioner}
        return self._stages(
            config.levels, config.transform, config.multiscale_transform, {"step_layers": config.step_layers}, **options
        )

    def _stages(
        self,
        levels: Sequence[Sequence[StagePlan]],
        transform: str,
        multiscale_transform: str,
        of_steps: dict[str, Any],
        **options: Any,
    ) -> tuple[tuple[Stage, ...], ...]:
        """Returns the stages of each level.

        Args:
            levels: their sizes.
            transform: of the couplings of steps.
            multiscale_transform: of those before channels leave.
            of_steps: further options of steps.
            **options: of both.
        """
        options |= {"linear": self.config.linear, "dtype": self.dtype_policy}

        def stage(sizes: StagePlan) -> Stage:
            hidden, width = sizes.hidden, self.condition_shape(sizes)[-1] or 0
            of_step = {"transform": transform, **of_steps, **options}
            steps = tuple(FlowStep(hidden, width, name=name, **of_step) for name in sizes.step_names)
            leaving = {"transform": multiscale_transform, "name": sizes.factor_out_name, **options}
            return Stage(sizes, steps, FactorOut(sizes.dropped, hidden, width, **leaving) if sizes.dropped else None)

        return tuple(tuple(map(stage, level)) for level in levels)

    def parts(self, v: tf.Tensor) -> list[tf.Tensor]:
        """Splits v into what left the flow at each stage, and what went through all of it.

        Args:
            v: `[batch, height, width, channels]`.

        Returns:
            Each `[batch, height, width, channels]` at the resolution of its level, what left first, first.
        """
        found = []
        for depth, level in enumerate(self.levels):
            if depth or self.squeezes_first:
                v, _ = self.squeeze.forward_and_log_det(v)
            left = [stage.plan.dropped for stage in level if stage.plan.dropped]
            # The later channels leave, the nearer they are to those that go on.
            v, *dropped = tf.split(v, [v.shape[-1] - sum(left), *left[::-1]], -1)
            found += dropped[::-1]
        return [*found, v]

    def _prepare(self, x: Any, condition: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        shape = tuple(tf.convert_to_tensor(x).shape)
        if len(shape) != 4 or shape[1:] != self.config.image_shape:
            raise UserError(f"the flow got an array of shape {shape}; it needs [batch, *{self.config.image_shape}]")
        if not self.condition_size and self.whitening is None:
            condition = None
        return super()._prepare(x, condition)

    def run_forward(self, x: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x towards v; see `InvertibleComposite`."""
        v, log_det = self._level_forward(0, x, condition, call)
        if self.whitening is not None:
            v, change = call(self.whitening, v, condition)
            log_det += change
        return v, log_det

    def _level_forward(
        self, depth: int, h: tf.Tensor, condition: tf.Tensor | None, call: ChildCall
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs the levels from `depth` on; returns what they give of v, at the resolution before its squeeze."""
        log_det = zero_per_image(h)
        squeezes = depth > 0 or self.squeezes_first
        if squeezes:
            h, condition = self.squeeze.forward_and_log_det(h)[0], self._one_level_down(condition)
        left: list[tf.Tensor] = []
        for stage in self.levels[depth]:
            h, change = self._run_chain(stage.layers, h, condition, call)
            log_det += change
            if stage.plan.dropped:
                h, dropped = tf.split(h, [stage.plan.kept, stage.plan.dropped], -1)
                left.insert(0, dropped)
        if depth + 1 < len(self.levels):
            h, change = self._level_forward(depth + 1, h, condition, call)
            log_det += change
        h = side_by_side([h, *left]) if left else h
        return self.squeeze.inverse_and_log_det(h)[0] if squeezes else h, log_det

    def run_inverse(self, y: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps v towards x; see `InvertibleComposite`."""
        log_det = zero_per_image(y)
        if self.whitening is not None:
            y, log_det = call(self.whitening, y, condition)
        x, change = self._level_inverse(0, y, condition, call)
        return x, log_det + change

    def _level_inverse(
        self, depth: int, v: tf.Tensor, condition: tf.Tensor | None, call: ChildCall
    ) -> tuple[tf.Tensor, tf.Tensor]:
        log_det = zero_per_image(v)
        squeezes = depth > 0 or self.squeezes_first
        if squeezes:
            v, condition = self.squeeze.forward_and_log_det(v)[0], self._one_level_down(condition)
        stages = self.levels[depth][::-1]
        left = [stage.plan.dropped for stage in stages if stage.plan.dropped]
        h, *dropped = tf.split(v, [v.shape[-1] - sum(left), *left], -1)
        if depth + 1 < len(self.levels):
            h, change = self._level_inverse(depth + 1, h, condition, call)
            log_det += change
        for stage in stages:
            if stage.plan.dropped:
                h = tf.concat([h, dropped.pop(0)], -1)
            h, change = self._run_chain(stage.layers[::-1], h, condition, call)
            log_det += change
        return self.squeeze.inverse_and_log_det(h)[0] if squeezes else h, log_det

    def _one_level_down(self, condition: tf.Tensor | None) -> tf.Tensor | None:
        """Returns the condition of the next level: a map is squeezed as the image is, a vector stays."""
        if condition is None or not self.local:
            return condition
        return self.squeeze.forward_and_log_det(condition)[0]
