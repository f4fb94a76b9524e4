"""The flow and the prior as they are deployed: steps, what stands before channels leave, levels, whitening."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from export.deployed.deployed_layers import (
    Conditioning,
    DeployedActNorm,
    DeployedCoupling,
    DeployedLinear,
    DeployedMix,
    DeployedRegistered,
    normalised,
)
from export.deployed.graph import Deployed, Layout, LogDets, scope, values
from tfdecouple.layers import ActNorm, ConditionalWhitening, Coupling, InvertibleConv1x1
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.networks.prior import PriorFlow

Conditions = Sequence[tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedSequence(Deployed):
    """Invertible layers one after the other: a step of flow, or what stands before channels leave.

    Attributes:
        sequence: the layers in the forward direction.
    """

    sequence: tuple[Any, ...]

    @classmethod
    def from_layer(cls, layer: FlowStep | FactorOut, name: str, layout: Layout, conditioning: Conditioning) -> Self:
        """Folds a step, or a `FactorOut`."""
        made = _factor_out if isinstance(layer, FactorOut) else _step
        return cls(name=name, sequence=tuple(made(layer, name, layout, conditioning)))

    def forward(self, x: tf.Tensor, conditions: Conditions = (), log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x towards v."""
        with self.scope():
            for layer in self.sequence:
                x = layer.forward(x, conditions, log_dets)
            return x

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Maps v towards x."""
        with self.scope():
            for layer in reversed(self.sequence):
                y = layer.inverse(y, conditions)
            return y


def _step(step: FlowStep, name: str, layout: Layout, conditioning: Conditioning) -> list[Deployed]:
    """The layers of a step, of which the first two, an actnorm and a linear map, become one linear map."""
    actnorm, linear, *others = step.sequence
    matrix, images = values(linear.matrix()), isinstance(linear, InvertibleConv1x1)
    scale, shift = np.exp(values(actnorm.log_scale)), values(actnorm.bias)
    layers: list[Deployed] = [DeployedMix.of(name, matrix * scale, matrix @ shift, layout, images=images)]
    for layer in others:
        inner = f"{name}/{layer.name}"
        if isinstance(layer, ActNorm):
            layers.append(DeployedActNorm.from_layer(layer, inner, layout, images=images))
        elif isinstance(layer, Coupling):
            layers.append(DeployedCoupling.from_layer(layer, inner, layout, len(matrix), conditioning))
        else:
            layers.append(DeployedRegistered.from_layer(layer, inner, layout))
    return layers


def _factor_out(layer: FactorOut, name: str, layout: Layout, conditioning: Conditioning) -> list[Deployed]:
    """Linear map, coupling, and the actnorm of the channels that will leave."""
    matrix = values(layer.mixing.matrix())
    channels = len(matrix)
    return [
        DeployedMix.of(name, matrix, np.zeros(channels), layout, images=True),
        DeployedCoupling.from_layer(layer.coupling, f"{name}/coupling", layout, channels, conditioning),
        DeployedActNorm.from_layer(layer.actnorm, f"{name}/actnorm", layout, before=channels - layer.dropped),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedStage(Deployed):
    """A stage of the flow: its steps, and what stands before some of its channels leave.

    Attributes:
        sequence: steps, and the layer before channels leave, in the forward direction.
        kept: channels that go on.
        dropped: channels that leave, 0 where all go on.
    """

    sequence: tuple[DeployedSequence, ...]
    kept: int
    dropped: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedWhitening(Deployed):
    """v = (h - mu(z)) / sigma(z), mean and logarithm of the scale from a net of two layers.

    Attributes:
        first: the first layer.
        last: the last, its entries in the order of the layout.
        shape: of h.
        layout: of the images.
    """

    first: DeployedLinear
    last: DeployedLinear
    shape: tuple[int, int, int]
    layout: Layout

    @classmethod
    def from_layer(cls, layer: ConditionalWhitening, name: str, layout: Layout, shape: tuple[int, int, int]) -> Self:
        """Folds the whitening of images of a shape `(height, width, channels)`."""
        kernel, bias = normalised(layer.last)
        order = layout.flattened(*shape)
        order = np.concatenate([order, len(order) + order])
        return cls(
            name=name,
            first=DeployedLinear.of(f"{name}/first", values(layer.first), values(layer.first_bias), layout),
            last=DeployedLinear.of(f"{name}/last", kernel[:, order], bias[order], layout),
            shape=layout.shape(*shape),
            layout=layout,
        )

    def forward(self, x: tf.Tensor, z: tf.Tensor, log_dets: LogDets | None) -> tf.Tensor:
        """Maps h to v."""
        with self.scope():
            mean, log_scale = self._gaussian(z)
            if log_dets is not None:
                log_dets.append(-tf.reduce_sum(log_scale, [1, 2, 3]))
            return (x - mean) * tf.exp(-log_scale)

    def inverse(self, y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """Maps v to h."""
        with self.scope():
            mean, log_scale = self._gaussian(z)
            return y * tf.exp(log_scale) + mean

    def _gaussian(self, z: tf.Tensor) -> list[tf.Tensor]:
        both = tf.split(self.last(self.layout.elu(self.first(z))), 2, -1)
        return [tf.reshape(one, [-1, *self.shape]) for one in both]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedFlow(Deployed):
    """The flow over images in the layout of the graph.

    Attributes:
        levels: the stages of each level, the highest resolution first.
        squeezes_first: whether a squeeze stands before the first level, too.
        condition: what z is multiplied with for all nets at once, or None.
        widths: of these nets.
        local: whether a map conditions the nets instead, which is squeezed beside the image.
        whitening: of v by z, or None.
        layout: of the images.
    """

    levels: tuple[tuple[DeployedStage, ...], ...]
    squeezes_first: bool
    condition: DeployedLinear | None
    widths: tuple[int, ...]
    local: bool
    whitening: DeployedWhitening | None
    layout: Layout

    @classmethod
    def from_layer(cls, flow: Flow, layout: Layout, name: str = "flow") -> Self:
        """Folds a flow that has been built, under its name."""
        conditioning = Conditioning()

        def stage(of: Any) -> DeployedStage:
            layers = (
                DeployedSequence.from_layer(layer, f"{name}/{layer.name}", layout, conditioning) for layer in of.layers
            )
            plan = of.plan
            return DeployedStage(
                name=f"{name}/{plan.name}", sequence=tuple(layers), kept=plan.kept, dropped=plan.dropped
            )

        levels = tuple(tuple(map(stage, level)) for level in flow.levels)
        whitening = None
        if flow.whitening is not None:
            shape = flow.config.image_shape
            whitening = DeployedWhitening.from_layer(flow.whitening, f"{name}/whitening", layout, shape)
        return cls(
            name=name,
            levels=levels,
            squeezes_first=flow.squeezes_first,
            condition=conditioning.linear(f"{name}/condition", layout),
            widths=tuple(map(len, conditioning.biases)),
            local=flow.local,
            whitening=whitening,
            layout=layout,
        )

    def forward(self, x: tf.Tensor, z: tf.Tensor | None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x to v; `log_dets` takes the log-determinants, where they are asked for; z may be a map."""
        with self.scope():
            conditions = self._conditions(z)
            if self.squeezes_first:
                below = self._level_forward(0, self.layout.squeezed(x), self._one_level_down(conditions), log_dets)
                v = self.layout.unsqueezed(below)
            else:
                v = self._level_forward(0, x, conditions, log_dets)
            return v if self.whitening is None else self.whitening.forward(v, z, log_dets)

    def inverse(self, v: tf.Tensor, z: tf.Tensor | None) -> tf.Tensor:
        """Maps v to x."""
        with self.scope():
            h = v if self.whitening is None else self.whitening.inverse(v, z)
            conditions = self._conditions(z)
            if not self.squeezes_first:
                return self._level_inverse(0, h, conditions)
            h = self._level_inverse(0, self.layout.squeezed(h), self._one_level_down(conditions))
            return self.layout.unsqueezed(h)

    def parts(self, v: tf.Tensor) -> list[tf.Tensor]:
        """Splits v as `Flow.parts` does."""
        found = []
        for depth, stages in enumerate(self.levels):
            if depth or self.squeezes_first:
                v = self.layout.squeezed(v)
            left = [stage.dropped for stage in stages if stage.dropped]
            v, *dropped = self.layout.split(v, [stages[-1].kept, *left[::-1]])
            found += dropped[::-1]
        return [*found, v]

    def _conditions(self, z: tf.Tensor | None) -> Conditions:
        """What z adds to the hidden maps of each net, and z; a local condition alone, which each net convolves."""
        if self.local or self.condition is None:
            return () if z is None else (z,)
        with self.condition.scope():
            return (*self.layout.pieces(self.layout.as_pixel(self.condition(z)), self.widths), z)

    def _level_forward(self, depth: int, h: tf.Tensor, conditions: Conditions, log_dets: LogDets | None) -> tf.Tensor:
        with scope(f"{self.name}/level_{depth}"):
            left: list[tf.Tensor] = []
            for stage in self.levels[depth]:
                for layer in stage.sequence:
                    h = layer.forward(h, conditions, log_dets)
                if stage.dropped:
                    h, dropped = self.layout.split(h, [stage.kept, stage.dropped])
                    left.insert(0, dropped)
            if depth + 1 < len(self.levels):
                below = self._one_level_down(conditions)
                h = self._level_forward(depth + 1, self.layout.squeezed(h), below, log_dets)
                h = self.layout.unsqueezed(h)
            return self.layout.join([h, *left])

    def _level_inverse(self, depth: int, v: tf.Tensor, conditions: Conditions) -> tf.Tensor:
        with scope(f"{self.name}/level_{depth}"):
            stages = self.levels[depth][::-1]
            h, *dropped = self.layout.split(v, [stages[0].kept, *(s.dropped for s in stages if s.dropped)])
            if depth + 1 < len(self.levels):
                h = self._level_inverse(depth + 1, self.layout.squeezed(h), self._one_level_down(conditions))
                h = self.layout.unsqueezed(h)
            for stage in stages:
                if stage.dropped:
                    h = self.layout.join([h, dropped.pop(0)])
                for layer in reversed(stage.sequence):
                    h = layer.inverse(h, conditions)
            return h

    def _one_level_down(self, conditions: Conditions) -> Conditions:
        return tuple(map(self.layout.squeezed, conditions)) if self.local else conditions


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedPrior(DeployedSequence):
    """The flow of the prior over vectors, from z to standard normal noise; without steps, z is that noise."""

    @classmethod
    def from_layer(cls, flow: PriorFlow | None, layout: Layout) -> Self:  # type: ignore[override]
        """Folds the prior's flow; None stands for a prior that is a standard normal itself."""
        steps = () if flow is None else flow.sequence
        made = (DeployedSequence.from_layer(step, f"prior/{step.name}", layout, Conditioning()) for step in steps)
        return cls(name="prior", sequence=tuple(made))


def total(log_dets: LogDets) -> tf.Tensor:
    """Returns the sum of log-determinants: `[batch]`, or a scalar where it is the same for all images."""
    # Numbers first: of them none becomes an operation.
    numbers = sum(value for value in log_dets if isinstance(value, float))
    tensors = (value for value in log_dets if not isinstance(value, float))
    return functools.reduce(operator.add, tensors, tf.constant(numbers, tf.float32))
