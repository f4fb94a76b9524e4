"""The invertible decoder: x to v, conditioned on z (paper section 2.2, Figure 3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.config import ModelConfig, from_plain
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
from tfdecouple.layers.base import ChildCall, InvertibleComposite
from tfdecouple.runtime.programs import SharedPrograms
from tfdecouple.runtime.shapes import zero_per_image
from tfdecouple.runtime.shards import divides, run_in_parts


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
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.condition_size = condition_size
        self.transform = transform
        self.alpha = alpha
        self.linear = linear

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden": self.hidden,
            "condition_size": self.condition_size,
            "transform": self.transform,
            "alpha": self.alpha,
            "linear": self.linear,
        }

    def _coupling(self, name: str, **options: Any) -> Coupling:
        return Coupling(
            self.hidden,
            self.condition_size,
            transform=self.transform,
            alpha=self.alpha,
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
        transform: "affine" or "additive".
        alpha: bound of the affine scale.
        linear: "full" or "lu".
        **kwargs: of `InvertibleLayer`.
    """

    def __init__(self, hidden: int, condition_size: int = 0, **kwargs: Any):
        super().__init__(hidden, condition_size, **kwargs)

        def coupling(pattern: str, part: str) -> InvertibleLayer:
            return self._coupling(f"coupling_{pattern}_{part}", pattern=pattern, part=part)

        # Explicit names: the paths of the weights in a checkpoint are made of them.
        self.sequence = [
            ActNorm(name="actnorm_1", dtype=self.dtype_policy),
            self._linear_layer(name="linear", dtype=self.dtype_policy),
            coupling("continuous", "last"),
            coupling("continuous", "first"),
            ActNorm(name="actnorm_2", dtype=self.dtype_policy),
            coupling("alternate", "last"),
            coupling("alternate", "first"),
        ]

    def _linear_layer(self, **options: Any) -> InvertibleLayer:
        return InvertibleConv1x1(self.linear, **options)


@keras.saving.register_keras_serializable(package="tfdecouple")
class FactorOut(_Coupled, InvertibleComposite):
    """What channels pass before they leave the flow: 1x1 convolution, a coupling that transforms them, actnorm.

    It stands where Glow learns a conditional Gaussian of the part that leaves (paper Figure 3c; the reference calls
    it the multi-scale prior). The last `dropped` channels of the output are the ones to leave.

    Args:
        dropped: how many channels leave.
        hidden: width of the coupling net.
        condition_size: size of z, or 0.
        transform: "affine" or "additive".
        alpha: bound of the affine scale.
        linear: "full" or "lu".
        **kwargs: of `InvertibleLayer`.
    """

    def __init__(self, dropped: int, hidden: int, condition_size: int = 0, **kwargs: Any):
        super().__init__(hidden, condition_size, **kwargs)
        self.dropped = dropped
        self.mixing = InvertibleConv1x1(self.linear, name="linear", dtype=self.dtype_policy)
        self.coupling = self._coupling("coupling", transformed=dropped)
        self.actnorm = ActNorm(name="actnorm", dtype=self.dtype_policy)

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Builds the three layers for inputs `[batch, height, width, channels]`."""
        self._remember_shape(x_shape)
        self._kept = x_shape[-1] - self.dropped
        self.mixing.build(x_shape)
        self.coupling.build(x_shape, condition_shape)
        self.actnorm.build((*x_shape[:-1], self.dropped))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "dropped": self.dropped}

    def _run_forward(self, x: tf.Tensor, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        h, mixing = call(self.mixing, x)
        h, coupling = call(self.coupling, h)
        kept, dropped = tf.split(h, [self._kept, self.dropped], -1)
        dropped, actnorm = call(self.actnorm, dropped)
        return tf.concat([kept, dropped], -1), mixing + coupling + actnorm

    def _run_inverse(self, y: tf.Tensor, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        kept, dropped = tf.split(y, [self._kept, self.dropped], -1)
        dropped, actnorm = call(self.actnorm, dropped)
        h, coupling = call(self.coupling, tf.concat([kept, dropped], -1))
        x, mixing = call(self.mixing, h)
        return x, mixing + coupling + actnorm


class Part:
    """Steps of flow of one channel count, and what they drop at their end.

    Attributes:
        steps: the steps.
        factor_out: the layer before the drop, or None where nothing leaves.
        channels: channels of the steps.
        dropped: channels that leave at the end.
    """

    def __init__(self, steps: list[FlowStep], factor_out: FactorOut | None, channels: int, dropped: int):
        self.steps = steps
        self.factor_out = factor_out
        self.channels = channels
        self.dropped = dropped

    @property
    def layers(self) -> list[InvertibleLayer]:
        """The layers in the forward direction."""
        return [*self.steps, *([self.factor_out] if self.factor_out else [])]


@keras.saving.register_keras_serializable(package="tfdecouple")
class Flow(InvertibleComposite):
    """The whole flow f(x; z), with the fine-grained multi-scale structure (paper Figure 3c).

    The first level works on the three colour channels at full resolution; a squeeze stands before every further level.
    Each inner level has parts: some steps, after which a quarter of the level's channels leave as finished entries of
    v. v has the shape of the image: what left is put back beside what went on, and unsqueezed, level by level.

    Args:
        config: the model's config, or its plain dict.
        **kwargs: of `InvertibleLayer`.

    >>> from tfdecouple.config import ModelConfig
    >>> config = ModelConfig(image_size=8, steps=(1, (1, 1), 1), hidden_channels=(4, 4, 4), encoder_channels=(4,))
    >>> flow = Flow(config)
    >>> v, log_det = flow.forward_and_log_det(tf.zeros([2, 8, 8, 3]), tf.zeros([2, 64]))
    >>> v.shape.as_list(), log_det.shape.as_list()
    ([2, 8, 8, 3], [2])
    """

    def __init__(self, config: ModelConfig | dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else from_plain(ModelConfig, config, "model.")
        self.condition_size = self.config.latent_dim if self.config.conditioning == "coupling" else 0
        self.squeeze = Squeeze(name="squeeze", dtype=self.dtype_policy)
        self._levels = self._make_levels()
        # Keras finds the layers here; `_levels` holds the same ones by their place.
        self.parts_layers = [layer for level in self._levels for part in level for layer in part.layers]
        self.whitening = None
        if self.config.conditioning == "base":
            self.whitening = ConditionalWhitening(
                self.config.base_hidden, self.config.latent_dim, name="whitening", dtype=self.dtype_policy
            )
        self._programs = SharedPrograms()

    @property
    def levels(self) -> tuple[tuple[Part, ...], ...]:
        """The parts of each level, bottom (full resolution) first."""
        return self._levels

    def build(self, x_shape: Any = None, condition_shape: Any = None) -> None:
        """Builds every layer for images `[batch, image_size, image_size, 3]`."""
        size = self.config.image_size
        batch = None
        for depth, level in enumerate(self._levels):
            side = size // 2**depth
            for part in level:
                for layer in part.layers:
                    layer.build((batch, side, side, part.channels), (batch, self.condition_size))
        self.squeeze.build((batch, size, size, 3))
        if self.whitening is not None:
            self.whitening.build((batch, *self.config.image_shape))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}

    def _make_levels(self) -> tuple[tuple[Part, ...], ...]:
        config = self.config
        options: dict[str, Any] = {"alpha": config.alpha, "linear": config.linear, "dtype": self.dtype_policy}
        levels: list[tuple[Part, ...]] = []
        channels = 3
        for depth, (steps, hidden) in enumerate(zip(config.steps, config.hidden_channels, strict=True)):
            if depth:
                channels *= 4
            parts = []
            inner = isinstance(steps, tuple)
            dropped = channels // config.inner_factors[depth - 1] if inner else 0
            for index, count in enumerate(steps if isinstance(steps, tuple) else (steps,)):
                place = f"level_{depth}_part_{index}"
                sizes = (hidden, self.condition_size)
                layers = [
                    FlowStep(*sizes, transform=config.transform, name=f"{place}_step_{number}", **options)
                    for number in range(count)
                ]
                factor_out = None
                if inner:
                    factor_out = FactorOut(
                        dropped, *sizes, transform=config.multiscale_transform, name=f"{place}_factor_out", **options
                    )
                parts.append(Part(layers, factor_out, channels, dropped))
                channels -= dropped
            levels.append(tuple(parts))
        return tuple(levels)

    def _prepare(self, x: Any, condition: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        shape = tuple(tf.convert_to_tensor(x).shape)
        if len(shape) != 4 or shape[1:] != self.config.image_shape:
            raise UserError(f"the flow got an array of shape {shape}; it needs [batch, *{self.config.image_shape}]")
        if not self.condition_size and self.whitening is None:
            condition = None
        return super()._prepare(x, condition)

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._divided("_forward_whole", "_forward_in_parts", x, condition)

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._divided("_inverse_whole", "_inverse_in_parts", y, condition)

    def _divided(
        self, whole: str, in_parts: str, x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs one of two methods: that for a batch as it is, or that for one which is worth dividing."""
        method = in_parts if divides(x) else whole
        if tf.executing_eagerly():
            return self._programs.run_network(method, self, x, condition)
        return getattr(self, method)(x, condition)

    def _forward_whole(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_forward(x, lambda layer, h: self._programs.forward_and_log_det(layer, h, condition))

    def _inverse_whole(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_inverse(y, lambda layer, h: self._programs.inverse_and_log_det(layer, h, condition))

    def _forward_in_parts(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return run_in_parts(self._forward_whole, x, condition)

    def _inverse_in_parts(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return run_in_parts(self._inverse_whole, y, condition)

    def _run_forward(self, x: tf.Tensor, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        v, log_det = self._level_forward(0, x, call)
        if self.whitening is not None:
            v, change = call(self.whitening, v)
            log_det += change
        return v, log_det

    def _level_forward(self, depth: int, h: tf.Tensor, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs the levels from `depth` on; returns their part of v, at this level's resolution and channels."""
        log_det = zero_per_image(h)
        left: list[tf.Tensor] = []
        for part in self._levels[depth]:
            for layer in part.layers:
                h, change = call(layer, h)
                log_det += change
            if part.dropped:
                h, dropped = tf.split(h, [part.channels - part.dropped, part.dropped], -1)
                left.insert(0, dropped)
        if depth + 1 < len(self._levels):
            h, _ = self.squeeze.forward_and_log_det(h)
            h, change = self._level_forward(depth + 1, h, call)
            log_det += change
            h, _ = self.squeeze.inverse_and_log_det(h)
        return (tf.concat([h, *left], -1) if left else h), log_det

    def _run_inverse(self, y: tf.Tensor, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        log_det = zero_per_image(y)
        if self.whitening is not None:
            y, log_det = call(self.whitening, y)
        x, change = self._level_inverse(0, y, call)
        return x, log_det + change

    def _level_inverse(self, depth: int, v: tf.Tensor, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        log_det = zero_per_image(v)
        parts = self._levels[depth]
        left = [part.dropped for part in reversed(parts) if part.dropped]
        h, *dropped = tf.split(v, [v.shape[-1] - sum(left), *left], -1)
        if depth + 1 < len(self._levels):
            h, _ = self.squeeze.forward_and_log_det(h)
            h, change = self._level_inverse(depth + 1, h, call)
            log_det += change
            h, _ = self.squeeze.inverse_and_log_det(h)
        for part in reversed(parts):
            if part.dropped:
                h = tf.concat([h, dropped.pop(0)], -1)
            for layer in reversed(part.layers):
                h, change = call(layer, h)
                log_det += change
        return h, log_det
