"""The flow, which is the invertible decoder: it maps x to v, conditioned on z (paper section 2.2, Figure 3)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.config import ModelConfig, parse_config
from tfdecouple.config.shapes import Shape, StagePlan, is_squeezed_first
from tfdecouple.errors import UserError
from tfdecouple.layers import (
    ActNorm,
    ColourMap,
    ConditionalWhitening,
    Coupling,
    InvertibleConv1x1,
    InvertibleLayer,
    InvertibleLinear,
    InvertibleSequence,
    Squeeze,
)
from tfdecouple.layers.base import BaseLayer, Children, Condition, InvertibleComposite, Mapped, Run
from tfdecouple.layers.conditioners import require_condition
from tfdecouple.numerics.arithmetic import make_zero_log_det
from tfdecouple.numerics.kernels import get_kernels
from tfdecouple.registry import LAYERS
from tfdecouple.storage.files import Facts


@keras.saving.register_keras_serializable(package="tfdecouple")
class FlowStep(InvertibleSequence):
    """A step of the flow: actnorm, 1x1 convolution, two couplings, actnorm, two couplings (paper Figure 3a).

    Args:
        couplings: keyword arguments of each `Coupling`: `hidden`, and optionally `condition_size`, `transform`, `alpha`
            and `conditioner`.
        step_layers: names (keys of `registry.LAYERS`) of additional layers at the end of the step.
        **kwargs: arguments of `InvertibleLayer`.
    """

    _linear: type[InvertibleLinear] = InvertibleConv1x1

    def __init__(self, couplings: Mapping[str, Any], step_layers: Sequence[str] = (), **kwargs: object):
        super().__init__(**kwargs)
        self.couplings, self.step_layers = dict(couplings), tuple(step_layers)
        dtype = self.dtype_policy

        def make_couplings(pattern: str) -> list[Coupling]:
            names = {part: f"coupling_{pattern}_{part}" for part in ("last", "first")}
            return [Coupling(**couplings, pattern=pattern, part=part, name=names[part], dtype=dtype) for part in names]

        # A new name of a layer would change the paths of weights, by which checkpoints identify the weights.
        self.sequence = [
            ActNorm(name="actnorm_1", dtype=dtype),
            self._linear(name="linear", dtype=dtype),
            *make_couplings("continuous"),
            ActNorm(name="actnorm_2", dtype=dtype),
            *make_couplings("alternate"),
            *(LAYERS[name](name=name, dtype=dtype) for name in step_layers),
        ]


@keras.saving.register_keras_serializable(package="tfdecouple")
class FactorOut(InvertibleComposite):
    """A layer at the end of a stage, for the channels that leave the flow next: 1x1 convolution, coupling, actnorm.

    The last `dropped` channels of the output leave (paper Figure 3c; the paper's code calls this layer the multi-scale
    prior). Coupling and actnorm change only these channels. Glow instead learns a conditional Gaussian of the channels
    that leave. `couplings` are keyword arguments of the `Coupling`, as for `FlowStep`.
    """

    def __init__(self, dropped: int, couplings: Mapping[str, Any], **kwargs: object):
        super().__init__(**kwargs)
        self.dropped, self.couplings = dropped, dict(couplings)
        self.mixing = InvertibleConv1x1(name="linear", dtype=self.dtype_policy)
        self.coupling = Coupling(**couplings, transformed=dropped, name="coupling", dtype=self.dtype_policy)
        self.actnorm = ActNorm(name="actnorm", dtype=self.dtype_policy)

    def children(self, x_shape: Shape, condition_shape: Shape | None = None) -> Children:
        self._remaining = x_shape[-1] - self.dropped
        return [
            (self.mixing, x_shape, condition_shape),
            (self.coupling, x_shape, condition_shape),
            (self.actnorm, (*x_shape[:-1], self.dropped), None),
        ]

    def run_forward(self, run: Run, x: tf.Tensor, condition: Condition) -> Mapped:
        h, log_det = run([self.mixing, self.coupling], x, condition)
        remaining, dropped = get_kernels().split_channels(h, [self._remaining, self.dropped])
        dropped, change = run([self.actnorm], dropped, None)
        return tf.concat([remaining, dropped], -1), log_det + change

    def run_inverse(self, run: Run, y: tf.Tensor, condition: Condition) -> Mapped:
        remaining, dropped = get_kernels().split_channels(y, [self._remaining, self.dropped])
        dropped, change = run([self.actnorm], dropped, None)
        x, log_det = run([self.coupling, self.mixing], tf.concat([remaining, dropped], -1), condition)
        return x, log_det + change


@dataclasses.dataclass(frozen=True)
class Stage:
    """The layers of a stage: flow steps with equally many channels, then a `FactorOut` layer if channels leave."""

    plan: StagePlan
    layers: list[InvertibleLayer]


@keras.saving.register_keras_serializable(package="tfdecouple")
class Flow(InvertibleComposite):
    """The whole flow v = f(x; z), with the fine-grained multi-scale structure of the paper's Figure 3c.

    The first level works on the colour channels at full resolution. Every further level begins with a squeeze. The
    first level does so only if an image has one or two channels, too few to split. A level between the first and the
    last consists of stages; after the steps of each stage some of the level's channels (by default a quarter) leave the
    flow as finished entries of v. To give v the shape of the image, the channels that left are joined with the
    remaining channels and unsqueezed, level by level.

    The argument `config` is the model's config, or its options as a dict.

    Attributes:
        levels: the stages of each level, the highest resolution first.
        condition_size: size of the vector, or channels of the full-resolution map, that conditions the couplings; 0 for
            no condition.
        local: whether the condition is a map, which is squeezed like the image, level by level.
        is_squeezed_first: whether the first level begins with a squeeze.

    >>> from tfdecouple.config import ModelConfig
    >>> config = ModelConfig(image_shape=(8, 8, 3), steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4))
    >>> flow = Flow(config)
    >>> v, log_det = flow.forward_and_log_det(tf.zeros([2, 8, 8, 3]), tf.zeros([2, 64]))
    >>> v.shape.as_list(), log_det.shape.as_list()
    ([2, 8, 8, 3], [2])
    """

    # Count of the numbers at the beginning of z that only the colour map gets.
    _colours = 0

    def __init__(self, config: ModelConfig | Facts, **kwargs: object):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else parse_config(ModelConfig, config, "model.")
        self.is_squeezed_first = is_squeezed_first(self.config.image_shape[-1])
        self.squeeze = Squeeze(name="squeeze", dtype=self.dtype_policy)
        self.levels = self._make_levels()
        # Keras finds layers in lists, but not in the dataclass `Stage`.
        self.stage_layers = [layer for stage in self.stages for layer in stage.layers]
        self.colour_map = self.whitening = None
        if self._colours:
            self.colour_map = ColourMap(name="colour_map", dtype=self.dtype_policy)
        if self.config.conditioning == "base" and not self.local:
            self.whitening = ConditionalWhitening(
                self.config.base_hidden, self.config.latent_dim, name="whitening", dtype=self.dtype_policy
            )

    @property
    def stages(self) -> Iterator[Stage]:
        """The stages of all levels of this flow, an iterator in the order of the forward direction (from x to v)."""
        return (stage for level in self.levels for stage in level)

    def compute_condition_shape(self, stage: StagePlan) -> tuple[int | None, ...]:
        """Returns the shape, batch first, of the condition (z or a feature map) of the couplings in a stage."""
        if not self.local:
            return (None, self.condition_size)
        return (None, stage.height, stage.width, self.condition_size * stage.reduction**2)

    def children(self, x_shape: Shape | None = None, condition_shape: Shape | None = None) -> Children:
        image = (None, *self.config.image_shape)
        children: Children = []
        if self.colour_map is not None:
            children.append((self.colour_map, image, (None, self._colours)))
        for stage in self.stages:
            shape = (None, stage.plan.height, stage.plan.width, stage.plan.channels)
            children += [(layer, shape, self.compute_condition_shape(stage.plan)) for layer in stage.layers]
        children.append((self.squeeze, image, None))
        return children if self.whitening is None else [*children, (self.whitening, image, None)]

    def build(self, x_shape: Shape | None = None, condition_shape: Shape | None = None) -> None:
        """Creates all weights of the flow, for images of the config's shape; both arguments are ignored."""
        BaseLayer.build(self, (None, *self.config.image_shape))
        self._condition_ndims = 3 if self.local else 1

    def _make_levels(self) -> tuple[tuple[Stage, ...], ...]:
        config = self.config
        self.local, self._colours = False, config.colour_numbers
        self.condition_size = config.latent_dim - self._colours if config.conditioning == "coupling" else 0
        transforms = config.transform, config.multiscale_transform
        couplings = {"alpha": config.alpha, "conditioner": config.conditioner}
        return self._make_stages(config.levels, *transforms, config.step_layers, couplings)

    def _make_stages(
        self,
        levels: Sequence[Sequence[StagePlan]],
        transform: str,
        multiscale_transform: str,
        step_layers: Sequence[str],
        couplings: Mapping[str, Any],
    ) -> tuple[tuple[Stage, ...], ...]:
        dtype = self.dtype_policy

        def make_stage(plan: StagePlan) -> Stage:
            common = {"hidden": plan.hidden, "condition_size": self.compute_condition_shape(plan)[-1] or 0, **couplings}
            in_steps, before_leaving = {**common, "transform": transform}, {**common, "transform": multiscale_transform}
            layers: list[InvertibleLayer] = [
                FlowStep(in_steps, step_layers, name=name, dtype=dtype) for name in plan.step_names
            ]
            if plan.dropped:
                layers.append(FactorOut(plan.dropped, before_leaving, name=f"{plan.name}_factor_out", dtype=dtype))
            return Stage(plan, layers)

        return tuple(tuple(map(make_stage, level)) for level in levels)

    def split_v(self, v: tf.Tensor) -> list[tf.Tensor]:
        """Splits v into a list of maps, in the order in which they leave the flow, each at its level's resolution."""
        parts = []
        for level in range(len(self.levels)):
            v, dropped = self._split_level(level, self._enter_level(level, v, None)[0])
            parts += dropped
        return [*parts, v]

    def _prepare_inputs(self, x: tf.Tensor, condition: Condition) -> tuple[tf.Tensor, Condition]:
        shape, multiple = tuple(tf.convert_to_tensor(x).shape), self.levels[-1][0].plan.reduction
        if self.whitening is not None and shape[1:] != self.config.image_shape:
            raise UserError(f"the flow got an array of shape {shape}; it needs [batch, *{self.config.image_shape}]")
        if len(shape) != 4 or shape[-1] != self.config.image_shape[-1] or any(n and n % multiple for n in shape[1:3]):
            raise UserError(
                f"the flow got an array of shape {shape}; it needs [batch, height, width, "
                f"{self.config.image_shape[-1]}] with sides that are multiples of {multiple}"
            )
        size = self._colours + self.condition_size if self.whitening is None else self.config.latent_dim
        x, condition = super()._prepare_inputs(x, condition if size else None)
        # The layers inside see the shapes of a trace, which may have no sizes.
        if condition is not None:
            require_condition(self, size, condition, self.local)
        return x, condition

    def run_forward(self, run: Run, x: tf.Tensor, condition: Condition) -> Mapped:
        h, log_det = x, make_zero_log_det(x)
        colours, level_condition = self._split_condition(condition)
        if self.colour_map is not None:
            h, log_det = run([self.colour_map], h, colours)
        left: list[list[tf.Tensor]] = []
        log_dets = []
        for level, stages in enumerate(self.levels):
            h, level_condition = self._enter_level(level, h, level_condition)
            left.append([])
            log_dets.append(make_zero_log_det(h))
            for stage in stages:
                h, change = run(stage.layers, h, level_condition)
                log_dets[-1] += change
                if stage.plan.dropped:
                    counts = [stage.plan.channels - stage.plan.dropped, stage.plan.dropped]
                    h, dropped = get_kernels().split_channels(h, counts)
                    left[-1].append(dropped)
        for level in reversed(range(len(self.levels))):
            # In v the channels that remained come first, then the channels that left, from the last stage to the first.
            h = tf.concat([h, *reversed(left[level])], -1) if left[level] else h
            h = self._leave_level(level, h)
            log_det = log_dets[level] + log_det
        if self.whitening is None:
            return h, log_det
        v, change = run([self.whitening], h, condition)
        return v, log_det + change

    def run_inverse(self, run: Run, y: tf.Tensor, condition: Condition) -> Mapped:
        h, log_det = y, make_zero_log_det(y)
        colours, level_condition = self._split_condition(condition)
        if self.whitening is not None:
            h, whitening_log_det = run([self.whitening], y, condition)
        left, conditions = [], []
        for level in range(len(self.levels)):
            h, level_condition = self._enter_level(level, h, level_condition)
            h, dropped = self._split_level(level, h)
            left.append(dropped)
            conditions.append(level_condition)
        for level, stages in reversed(list(enumerate(self.levels))):
            for stage in reversed(stages):
                if stage.plan.dropped:
                    h = tf.concat([h, left[level].pop()], -1)
                h, change = run(stage.layers[::-1], h, conditions[level])
                log_det += change
            h = self._leave_level(level, h)
        log_det = log_det if self.whitening is None else whitening_log_det + log_det
        if self.colour_map is None:
            return h, log_det
        x, change = run([self.colour_map], h, colours)
        return x, log_det + change

    def _split_condition(self, condition: Condition) -> tuple[Condition, Condition]:
        """Splits z into the numbers that the colour map gets, None without one, and the condition of the couplings."""
        if condition is None or not self._colours:
            return None, condition
        return condition[:, : self._colours], condition[:, self._colours :]

    def _enter_level(self, level: int, h: tf.Tensor, condition: Condition) -> tuple[tf.Tensor, Condition]:
        if not (level or self.is_squeezed_first):
            return h, condition
        if condition is not None and self.local:
            condition = self.squeeze.forward_and_log_det(condition)[0]
        return self.squeeze.forward_and_log_det(h)[0], condition

    def _leave_level(self, level: int, h: tf.Tensor) -> tf.Tensor:
        return self.squeeze.inverse_and_log_det(h)[0] if level or self.is_squeezed_first else h

    def _split_level(self, level: int, v: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Splits v at a level into the channels that remained and a list of those that left after each stage."""
        counts = [stage.plan.dropped for stage in self.levels[level] if stage.plan.dropped]
        remaining, *dropped = get_kernels().split_channels(v, [v.shape[-1] - sum(counts), *counts[::-1]])
        return remaining, dropped[::-1]
