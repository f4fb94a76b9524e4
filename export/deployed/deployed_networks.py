"""The deployed networks: the flow, the prior, the encoder and the dequantiser."""

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
from tfdecouple.bijectors import Sigmoid
from tfdecouple.layers import ActNorm, ConditionalWhitening, Coupling, InvertibleConv1x1
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder, ResNetBlock
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.networks.prior import PriorFlow

Conditions = Sequence[tf.Tensor]


class DeployedSequence(Deployed):
    """A deployed sequence of invertible layers, in the order of the forward direction."""

    def __init__(self, name: str, layout: Layout, sequence: Iterable[Any]):
        super().__init__(name, layout)
        self.sequence = tuple(sequence)

    def forward(self, x: tf.Tensor, conditions: Conditions = (), log_dets: LogDets | None = None) -> tf.Tensor:
        """Returns the output in the direction from x to v; `log_dets` collects the log-determinant of each layer."""
        for layer in self.sequence:
            x = layer.forward(x, conditions, log_dets)
        return x

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output of unconditioned layers in the direction from x to v, and their log-determinant."""
        log_dets: LogDets = []
        return self.forward(x, (), log_dets), sum_log_dets(log_dets)

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Returns the output in the direction from v to x."""
        for layer in reversed(self.sequence):
            y = layer.inverse(y, conditions)
        return y


def fold_step(step: FlowStep, name: str, layout: Layout, conditioning: Conditioning) -> DeployedSequence:
    """Returns a deployed flow step, in which the actnorm and the linear map become one linear map."""
    actnorm, linear, *others = step.sequence
    matrix, images = to_float64(linear.kernel), isinstance(linear, InvertibleConv1x1)
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
    """Returns the deployed layers of `layer`, which factors out channels: a linear map, a coupling and an actnorm."""
    matrix = to_float64(layer.mixing.kernel)
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


def fold_prior(flow: PriorFlow | None, layout: Layout) -> DeployedSequence:
    """Returns the deployed flow from z to standard normal noise; for a standard normal prior it has no layers."""
    steps = () if flow is None else flow.sequence
    return DeployedSequence(
        "prior", layout, [fold_step(step, f"prior/{step.name}", layout, Conditioning()) for step in steps]
    )


class DeployedStage(DeployedSequence):
    """A deployed stage of the flow: its steps, and the layer that factors out some of its channels."""

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
    """The deployed whitening v = (h - mu(z)) / sigma(z), in which a two-layer net computes mu and log sigma."""

    def __init__(self, layer: ConditionalWhitening, name: str, layout: Layout, shape: tuple[int, int, int]):
        super().__init__(name, layout)
        kernel, bias = fold_weight_norm(layer.last)
        order = layout.order_flattened(*shape)
        order = np.concatenate([order, len(order) + order])
        self.first = DeployedLinear(f"{name}/first", to_float64(layer.first), to_float64(layer.first_bias), layout)
        self.last = DeployedLinear(f"{name}/last", kernel[:, order], bias[order], layout)
        self._shape = layout.shape(*shape)

    def forward(self, x: tf.Tensor, z: tf.Tensor, log_dets: LogDets | None) -> tf.Tensor:
        """Returns v for h, the output of the flow's levels, and z; `log_dets` collects the log-determinant."""
        mean, log_scale = self._gaussian(z)
        if log_dets is not None:
            log_dets.append(-tf.reduce_sum(log_scale, [1, 2, 3]))
        return (x - mean) * tf.exp(-log_scale)

    def inverse(self, y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """Returns h, the output of the flow's levels, for v and z."""
        mean, log_scale = self._gaussian(z)
        return y * tf.exp(log_scale) + mean

    def _gaussian(self, z: tf.Tensor) -> list[tf.Tensor]:
        both = tf.split(self.last(self.layout.elu(self.first(z))), 2, -1)
        return [tf.reshape(one, [-1, *self._shape]) for one in both]


class DeployedFlow(Deployed):
    """The deployed flow over images in the layout of the graph."""

    def __init__(self, flow: Flow, layout: Layout, name: str = "flow"):
        super().__init__(name, layout)
        conditioning = Conditioning()
        self.levels = tuple(
            tuple(DeployedStage(stage, name, layout, conditioning) for stage in level) for level in flow.levels
        )
        # This layer multiplies z with the matrices of all nets at once; it is None if z is a feature map or absent.
        self.condition = conditioning.linear(f"{name}/condition", layout)
        self._widths = tuple(map(len, conditioning.biases))
        self._local, self._squeezes_first = flow.local, flow.squeezes_first
        self.whitening = None
        if flow.whitening is not None:
            self.whitening = DeployedWhitening(flow.whitening, f"{name}/whitening", layout, flow.config.image_shape)

    def forward(self, x: tf.Tensor, z: tf.Tensor | None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Returns v for x and z, a vector or a feature map; `log_dets` collects the log-determinants."""
        v = self._level_forward(0, x, self._conditions(z), log_dets)
        return v if self.whitening is None else self.whitening.forward(v, z, log_dets)

    def forward_and_log_det(self, x: tf.Tensor, z: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns v for x and z, and the log-determinant: `[batch]`, or a scalar if it is equal for all images."""
        log_dets: LogDets = []
        v = self.forward(x, z, log_dets)
        return v, sum_log_dets(log_dets)

    def inverse(self, v: tf.Tensor, z: tf.Tensor | None) -> tf.Tensor:
        """Returns x for v and z, as the inverse of `forward`."""
        h = v if self.whitening is None else self.whitening.inverse(v, z)
        return self._level_inverse(0, h, self._conditions(z))

    def parts(self, v: tf.Tensor) -> list[tf.Tensor]:
        """Returns the parts of v that leave the flow at each level, in the order of `Flow.parts`."""
        parts = []
        for depth, stages in enumerate(self.levels):
            if depth or self._squeezes_first:
                v = self.layout.squeeze(v)
            left = [stage.dropped for stage in stages if stage.dropped]
            v, *dropped = self.layout.split(v, [stages[-1].kept, *left[::-1]])
            parts += dropped[::-1]
        return [*parts, v]

    def _conditions(self, z: tf.Tensor | None) -> Conditions:
        """Returns the terms that z adds to the hidden layer of each net, and z last; only z if it is a feature map."""
        if self._local or self.condition is None:
            return () if z is None else (z,)
        return (*self.layout.slice(self.layout.as_pixel(self.condition(z)), self._widths), z)

    def _level_forward(self, depth: int, h: tf.Tensor, conditions: Conditions, log_dets: LogDets | None) -> tf.Tensor:
        """Returns the v of a level and of the levels below it, for the maps that enter the level."""
        squeezes = depth > 0 or self._squeezes_first
        left: list[tf.Tensor] = []
        if squeezes:
            h, conditions = self.layout.squeeze(h), self._squeeze_all(conditions)
        for stage in self.levels[depth]:
            h = stage.forward(h, conditions, log_dets)
            if stage.dropped:
                h, dropped = self.layout.split(h, [stage.kept, stage.dropped])
                left.insert(0, dropped)
        if depth + 1 < len(self.levels):
            h = self._level_forward(depth + 1, h, conditions, log_dets)
        v = self.layout.join([h, *left])
        return self.layout.unsqueeze(v) if squeezes else v

    def _level_inverse(self, depth: int, v: tf.Tensor, conditions: Conditions) -> tf.Tensor:
        """Returns the maps that enter a level, for the v of the level and of the levels below it."""
        stages, squeezes = self.levels[depth][::-1], depth > 0 or self._squeezes_first
        if squeezes:
            v, conditions = self.layout.squeeze(v), self._squeeze_all(conditions)
        h, *dropped = self.layout.split(v, [stages[0].kept, *(s.dropped for s in stages if s.dropped)])
        if depth + 1 < len(self.levels):
            h = self._level_inverse(depth + 1, h, conditions)
        for stage in stages:
            if stage.dropped:
                h = self.layout.join([h, dropped.pop(0)])
            h = stage.inverse(h, conditions)
        return self.layout.unsqueeze(h) if squeezes else h

    def _squeeze_all(self, conditions: Conditions) -> Conditions:
        """Returns the conditions of the next level: feature maps are squeezed as the image is, vectors stay."""
        return tuple(map(self.layout.squeeze, conditions)) if self._local else conditions


def sum_log_dets(log_dets: LogDets) -> tf.Tensor:
    """Returns the sum of log-determinants: `[batch]`, or a scalar if it is equal for all images."""
    # Plain numbers are added in Python, so that the graph has one constant for all of them.
    numbers = sum(value for value in log_dets if isinstance(value, float))
    tensors = (value for value in log_dets if not isinstance(value, float))
    return functools.reduce(operator.add, tensors, tf.constant(numbers, tf.float32))


def fold_convolution(name: str, convolution: Any, norm: Any, layout: Layout, strides: int) -> DeployedLinear:
    """Returns one plain convolution that equals a convolution, perhaps a transposed one, and its batch normalisation.

    A transposed convolution of stride 2 makes four pixels of each input position, each with one of four parts of the
    kernel. It equals a plain convolution to four times the channels, unsqueezed, which every runtime computes fast.
    """
    scale = to_float64(norm.gamma) / np.sqrt(to_float64(norm.moving_variance) + norm.epsilon)
    shift = to_float64(norm.beta) - to_float64(norm.moving_mean) * scale
    kernel = to_float64(convolution.kernel)
    if not convolution.transposed:
        return DeployedLinear(name, kernel * scale, shift, layout, strides)
    kernel = np.swapaxes(kernel, 2, 3) * scale
    size, _, inputs, outputs = kernel.shape
    reach = size // 2
    plain = np.zeros((3, 3, inputs, strides, strides, outputs))
    # Each kernel position `tap` connects the input position i with the output position strides * i - reach + tap.
    for row, column in np.ndindex(size, size):
        (down, r), (right, c) = (divmod(tap - reach, strides) for tap in (row, column))
        plain[1 - down, 1 - right, :, r, c] += kernel[row, column]
    whole, bias = plain.reshape(3, 3, inputs, strides**2 * outputs), np.tile(shift, strides**2)
    return DeployedLinear(name, whole, bias, layout, unsqueezes=strides > 1)


class DeployedBlock(Deployed):
    """A deployed ResNet block, whose convolutions may be transposed."""

    def __init__(self, block: ResNetBlock, name: str, layout: Layout):
        super().__init__(name, layout)
        self.shortcut = None
        if block.shortcut:
            convolution, norm = block.shortcut
            self.shortcut = fold_convolution(f"{name}/shortcut", convolution, norm, layout, block.strides)
        self.first = fold_convolution(f"{name}/first", block.convolution_1, block.norm_1, layout, block.strides)
        self.second = fold_convolution(f"{name}/second", block.convolution_2, block.norm_2, layout, 1)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the output of the block for images in the layout of the graph."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.layout.elu(self.second(self.layout.elu(self.first(x))) + shortcut)


def fold_blocks(blocks: Sequence[ResNetBlock], name: str, layout: Layout) -> tuple[DeployedBlock, ...]:
    """Returns the deployed form of the ResNet blocks of an encoder, in their order."""
    return tuple(DeployedBlock(block, f"{name}/{block.name}", layout) for block in blocks)


class DeployedEncoder(Deployed):
    """The deployed encoder q(z|x), whose last feature maps have `sides` rows and columns."""

    def __init__(self, encoder: Encoder, layout: Layout, sides: tuple[int, int]):
        super().__init__("encoder", layout)
        self.blocks = fold_blocks(encoder.blocks, "encoder", layout)
        self.top = DeployedLinear("encoder/top", to_float64(encoder.top.kernel), to_float64(encoder.top.bias), layout)
        kernel, bias = fold_weight_norm(encoder.last)
        self.last = DeployedLinear(
            "encoder/last", kernel[layout.order_flattened(*sides, encoder.out_channels)], bias, layout
        )

    def infer(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the mean and log-variance of q(z|x), each `[batch, d_z]`, for x in [-1, 1)."""
        for block in self.blocks:
            x = block(x)
        h = self.layout.elu(self.top(x))
        mean, log_variance = tf.split(self.last(tf.reshape(h, [-1, self.last.kernel.shape[0]])), 2, -1)
        return mean, log_variance


class DeployedDequantizer(Deployed):
    """The deployed q(u|x): a network from images to feature maps, and the flow that the feature maps condition."""

    def __init__(self, dequantizer: Dequantizer, layout: Layout):
        super().__init__("dequantizer", layout)
        self.blocks = fold_blocks(dequantizer.encoder.blocks, "dequantizer/encoder", layout)
        self.flow = DeployedFlow(dequantizer.flow, layout, "dequantizer/flow")

    def forward_and_log_det(self, x: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns u from normal noise and x in [-1, 1) (lower edges of bins), and the log-determinant `[batch]`."""
        for block in self.blocks:
            x = block(x)
        log_dets: LogDets = []
        u, log_det = Sigmoid().forward_and_log_det(self.flow.forward(noise, x, log_dets))
        return u, sum_log_dets([*log_dets, log_det])
