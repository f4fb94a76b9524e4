"""The flow and the prior as they are deployed: steps, the layers before channels leave, levels, whitening."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.deployed.deployed_layers import (
    Conditioning,
    DeployedActNorm,
    DeployedCoupling,
    DeployedLinear,
    DeployedMix,
    DeployedRegistered,
    fold_weight_norm,
)
from export.deployed.graph import Deployed, Layout, LogDets, to_float64
from tfdecouple.layers import ActNorm, ConditionalWhitening, Coupling, InvertibleConv1x1
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.networks.prior import PriorFlow

Conditions = Sequence[tf.Tensor]


class DeployedSequence(Deployed):
    """Invertible layers one after the other.

    Args:
        name: of the layer.
        layout: of the images.
        sequence: the layers in the forward direction.
    """

    def __init__(self, name: str, layout: Layout, sequence: Iterable[Any]):
        super().__init__(name, layout)
        self.sequence = tuple(sequence)

    def forward(self, x: tf.Tensor, conditions: Conditions = (), log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x towards v."""
        for layer in self.sequence:
            x = layer.forward(x, conditions, log_dets)
        return x

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Maps v towards x."""
        for layer in reversed(self.sequence):
            y = layer.inverse(y, conditions)
        return y


def fold_step(step: FlowStep, name: str, layout: Layout, conditioning: Conditioning) -> DeployedSequence:
    """Returns a step of flow; its first two layers, an actnorm and a linear map, become one linear map."""
    actnorm, linear, *others = step.sequence
    matrix, images = to_float64(linear.matrix()), isinstance(linear, InvertibleConv1x1)
    scale, shift = np.exp(to_float64(actnorm.log_scale)), to_float64(actnorm.bias)
    layers: list[Deployed] = [DeployedMix(name, matrix * scale, matrix @ shift, layout, images)]
    for layer in others:
        inner = f"{name}/{layer.name}"
        if isinstance(layer, ActNorm):
            layers.append(DeployedActNorm(layer, inner, layout, images=images))
        elif isinstance(layer, Coupling):
            layers.append(DeployedCoupling(layer, inner, layout, len(matrix), conditioning))
        else:
            layers.append(DeployedRegistered(layer, inner, layout))
    return DeployedSequence(name, layout, layers)


def fold_factor_out(layer: FactorOut, name: str, layout: Layout, conditioning: Conditioning) -> DeployedSequence:
    """Returns the linear map, the coupling and the actnorm that channels pass before they leave."""
    matrix = to_float64(layer.mixing.matrix())
    channels = len(matrix)
    return DeployedSequence(
        name,
        layout,
        [
            DeployedMix(name, matrix, np.zeros(channels), layout, images=True),
            DeployedCoupling(layer.coupling, f"{name}/coupling", layout, channels, conditioning),
            DeployedActNorm(layer.actnorm, f"{name}/actnorm", layout, before=channels - layer.dropped),
        ],
    )


class DeployedStage(DeployedSequence):
    """A stage of the flow: its steps, and the layer before some of its channels leave.

    Args:
        stage: of the model.
        name: of the flow.
        layout: of the images.
        conditioning: takes the weights that z is multiplied with.
    """

    def __init__(self, stage: Any, name: str, layout: Layout, conditioning: Conditioning):
        folds = [fold_factor_out if isinstance(layer, FactorOut) else fold_step for layer in stage.layers]
        super().__init__(
            f"{name}/{stage.plan.name}",
            layout,
            [
                fold(layer, f"{name}/{layer.name}", layout, conditioning)
                for fold, layer in zip(folds, stage.layers, strict=True)
            ],
        )
        self.kept, self.dropped = stage.plan.remaining, stage.plan.dropped


class DeployedWhitening(Deployed):
    """v = (h - mu(z)) / sigma(z), mean and logarithm of the scale from a net of two layers.

    Args:
        layer: of the model.
        name: of the layer.
        layout: of the images.
        shape: of the images, (height, width, channels).
    """

    def __init__(self, layer: ConditionalWhitening, name: str, layout: Layout, shape: tuple[int, int, int]):
        super().__init__(name, layout)
        kernel, bias = fold_weight_norm(layer.last)
        order = layout.order_flattened(*shape)
        order = np.concatenate([order, len(order) + order])
        self.first = DeployedLinear(f"{name}/first", to_float64(layer.first), to_float64(layer.first_bias), layout)
        self.last = DeployedLinear(f"{name}/last", kernel[:, order], bias[order], layout)
        self._shape = layout.shape(*shape)

    def forward(self, x: tf.Tensor, z: tf.Tensor, log_dets: LogDets | None) -> tf.Tensor:
        """Maps h to v."""
        mean, log_scale = self._gaussian(z)
        if log_dets is not None:
            log_dets.append(-tf.reduce_sum(log_scale, [1, 2, 3]))
        return (x - mean) * tf.exp(-log_scale)

    def inverse(self, y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """Maps v to h."""
        mean, log_scale = self._gaussian(z)
        return y * tf.exp(log_scale) + mean

    def _gaussian(self, z: tf.Tensor) -> list[tf.Tensor]:
        both = tf.split(self.last(self.layout.elu(self.first(z))), 2, -1)
        return [tf.reshape(one, [-1, *self._shape]) for one in both]


class DeployedFlow(Deployed):
    """The flow over images in the layout of the graph.

    Args:
        flow: of the model.
        layout: of the images.
        name: of the flow.
    """

    def __init__(self, flow: Flow, layout: Layout, name: str = "flow"):
        super().__init__(name, layout)
        conditioning = Conditioning()
        self.levels = tuple(
            tuple(DeployedStage(stage, name, layout, conditioning) for stage in level) for level in flow.levels
        )
        # The product with z for all nets at once; without it z is a map, or there is none.
        self.condition = conditioning.linear(f"{name}/condition", layout)
        self._widths = tuple(map(len, conditioning.biases))
        self._local, self._squeezes_first = flow.local, flow.squeezes_first
        self.whitening = None
        if flow.whitening is not None:
            self.whitening = DeployedWhitening(flow.whitening, f"{name}/whitening", layout, flow.config.image_shape)

    def forward(self, x: tf.Tensor, z: tf.Tensor | None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x to v; `log_dets` collects the log-determinants. z may be a map."""
        conditions = self._conditions(z)
        if self._squeezes_first:
            below = self._level_forward(0, self.layout.squeeze(x), self._squeeze_all(conditions), log_dets)
            v = self.layout.unsqueeze(below)
        else:
            v = self._level_forward(0, x, conditions, log_dets)
        return v if self.whitening is None else self.whitening.forward(v, z, log_dets)

    def forward_and_log_det(self, x: tf.Tensor, z: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x to v, with the log-determinant `[batch]`, or a scalar where it is the same for all images."""
        log_dets: LogDets = []
        v = self.forward(x, z, log_dets)
        return v, sum_log_dets(log_dets)

    def inverse(self, v: tf.Tensor, z: tf.Tensor | None) -> tf.Tensor:
        """Maps v to x."""
        h = v if self.whitening is None else self.whitening.inverse(v, z)
        conditions = self._conditions(z)
        if not self._squeezes_first:
            return self._level_inverse(0, h, conditions)
        h = self._level_inverse(0, self.layout.squeeze(h), self._squeeze_all(conditions))
        return self.layout.unsqueeze(h)

    def parts(self, v: tf.Tensor) -> list[tf.Tensor]:
        """Splits v as `Flow.parts` does."""
        parts = []
        for depth, stages in enumerate(self.levels):
            if depth or self._squeezes_first:
                v = self.layout.squeeze(v)
            left = [stage.dropped for stage in stages if stage.dropped]
            v, *dropped = self.layout.split(v, [stages[-1].kept, *left[::-1]])
            parts += dropped[::-1]
        return [*parts, v]

    def _conditions(self, z: tf.Tensor | None) -> Conditions:
        """Returns the term that z adds to the hidden maps of each net, and z last; of a map, the map alone."""
        if self._local or self.condition is None:
            return () if z is None else (z,)
        return (*self.layout.slice(self.layout.as_pixel(self.condition(z)), self._widths), z)

    def _level_forward(self, depth: int, h: tf.Tensor, conditions: Conditions, log_dets: LogDets | None) -> tf.Tensor:
        left: list[tf.Tensor] = []
        for stage in self.levels[depth]:
            h = stage.forward(h, conditions, log_dets)
            if stage.dropped:
                h, dropped = self.layout.split(h, [stage.kept, stage.dropped])
                left.insert(0, dropped)
        if depth + 1 < len(self.levels):
            below = self._squeeze_all(conditions)
            h = self.layout.unsqueeze(self._level_forward(depth + 1, self.layout.squeeze(h), below, log_dets))
        return self.layout.join([h, *left])

    def _level_inverse(self, depth: int, v: tf.Tensor, conditions: Conditions) -> tf.Tensor:
        stages = self.levels[depth][::-1]
        h, *dropped = self.layout.split(v, [stages[0].kept, *(s.dropped for s in stages if s.dropped)])
        if depth + 1 < len(self.levels):
            below = self._squeeze_all(conditions)
            h = self.layout.unsqueeze(self._level_inverse(depth + 1, self.layout.squeeze(h), below))
        for stage in stages:
            if stage.dropped:
                h = self.layout.join([h, dropped.pop(0)])
            h = stage.inverse(h, conditions)
        return h

    def _squeeze_all(self, conditions: Conditions) -> Conditions:
        """Returns the conditions of the next level: maps are squeezed beside the image."""
        return tuple(map(self.layout.squeeze, conditions)) if self._local else conditions


class DeployedPrior(DeployedSequence):
    """The flow of the prior over vectors, from z to standard normal noise; without steps, z is that noise.

    Args:
        flow: of the model; None for a prior that is a standard normal itself.
        layout: of the graph.
    """

    def __init__(self, flow: PriorFlow | None, layout: Layout):
        steps = () if flow is None else flow.sequence
        super().__init__(
            "prior", layout, [fold_step(step, f"prior/{step.name}", layout, Conditioning()) for step in steps]
        )

    def forward_and_log_det(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps z to the noise of the prior, with the log-determinant."""
        log_dets: LogDets = []
        return self.forward(z, (), log_dets), sum_log_dets(log_dets)


def sum_log_dets(log_dets: LogDets) -> tf.Tensor:
    """Returns the sum of log-determinants: `[batch]`, or a scalar where it is the same for all images."""
    # Numbers are added before the graph, where they become one constant.
    numbers = sum(value for value in log_dets if isinstance(value, float))
    tensors = (value for value in log_dets if not isinstance(value, float))
    return functools.reduce(operator.add, tensors, tf.constant(numbers, tf.float32))
