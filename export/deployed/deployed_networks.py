"""Deployed networks, the networks of an export: the flow, the prior, the encoder and the dequantiser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.deployed.deployed_layers import (
    Conditioning,
    Conditions,
    DeployedActNorm,
    DeployedCoupling,
    DeployedLinear,
    DeployedMix,
    DeployedRegistered,
    Output,
    fold_weight_norm,
)
from export.deployed.graph import Deployed, Layout, LogDet, round_to_float32, to_float64
from tfdecouple.bijectors import Sigmoid
from tfdecouple.layers import ActNorm, ColourMap, ConditionalWhitening, Coupling, InvertibleConv1x1
from tfdecouple.layers.colour_map import get_colour_axes, make_colour_matrices, map_colours, measure_colours
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder, ResNetBlock
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.networks.prior import PriorFlow


class DeployedSequence(Deployed):
    """A sequence of invertible layers in an export, in the order in which they map x to v."""

    def __init__(self, name: str, layout: Layout, sequence: Iterable[Any]):
        super().__init__(name, layout)
        self.sequence = tuple(sequence)

    def forward_and_log_det(self, x: tf.Tensor, conditions: Conditions = ()) -> Output:
        """Runs the layers of this sequence on x; returns the last layer's output, and the sum of log-determinants."""
        log_det: LogDet = 0.0
        for layer in self.sequence:
            x, layer_log_det = layer.forward_and_log_det(x, conditions)
            log_det += layer_log_det
        return x, log_det

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Inverts the layers of this sequence: returns the x for which the output of the last layer is y."""
        for layer in reversed(self.sequence):
            y = layer.inverse(y, conditions)
        return y


def fold_step(step: FlowStep, name: str, layout: Layout, conditioning: Conditioning) -> DeployedSequence:
    """Returns a flow step for an export; its first actnorm and its 1x1 convolution become one linear map."""
    actnorm, linear, *others = step.sequence
    matrix, images = to_float64(linear.kernel), isinstance(linear, InvertibleConv1x1)
    scale, shift = np.exp(to_float64(actnorm.log_scale)), to_float64(actnorm.bias)
    layers: list[Deployed] = [DeployedMix(name, matrix * scale, matrix @ shift, layout, images)]
    for layer in others:
        path = f"{name}/{layer.name}"
        if isinstance(layer, ActNorm):
            layers.append(DeployedActNorm(layer, path, layout, images=images))
        elif isinstance(layer, Coupling):
            layers.append(DeployedCoupling(layer, path, layout, len(matrix), conditioning))
        else:
            layers.append(DeployedRegistered(layer, path, layout))
    return DeployedSequence(name, layout, layers)


def fold_factor_out(layer: FactorOut, name: str, layout: Layout, conditioning: Conditioning) -> DeployedSequence:
    """Returns an export's form of `layer`, after which channels leave the flow: linear map, coupling and actnorm."""
    matrix = to_float64(layer.mixing.kernel)
    channels = len(matrix)
    layers = [
        DeployedMix(name, matrix, np.zeros(channels), layout, images=True),
        DeployedCoupling(layer.coupling, f"{name}/coupling", layout, channels, conditioning),
        DeployedActNorm(layer.actnorm, f"{name}/actnorm", layout, before=channels - layer.dropped),
    ]
    return DeployedSequence(name, layout, layers)


def fold_prior(flow: PriorFlow | None, layout: Layout) -> DeployedSequence:
    """Returns the prior's flow from z to noise for an export; it has no layers if `flow` is None (normal prior)."""
    steps = () if flow is None else flow.sequence
    layers = [fold_step(step, f"prior/{step.name}", layout, Conditioning()) for step in steps]
    return DeployedSequence("prior", layout, layers)


class DeployedStage(DeployedSequence):
    """A stage of an export's flow: flow steps; then `dropped` of its channels leave the flow, and `remaining` stay."""

    def __init__(self, stage: Any, name: str, layout: Layout, conditioning: Conditioning):
        layers = []
        for layer in stage.layers:
            fold = fold_factor_out if isinstance(layer, FactorOut) else fold_step
            layers.append(fold(layer, f"{name}/{layer.name}", layout, conditioning))
        super().__init__(f"{name}/{stage.plan.name}", layout, layers)
        self.remaining, self.dropped = stage.plan.remaining, stage.plan.dropped


class DeployedWhitening(Deployed):
    """The last layer of an export's flow, v = (x - mu(z)) / sigma(z); a net computes mu and log sigma from z."""

    def __init__(self, layer: ConditionalWhitening, name: str, layout: Layout, shape: tuple[int, int, int]):
        super().__init__(name, layout)
        kernel, bias = fold_weight_norm(layer.last)
        order = layout.order_flattened(*shape)
        # The net's outputs are mu, then log sigma, and each half gets the order of the layout.
        order = np.concatenate([order, len(order) + order])
        self.first = DeployedLinear(f"{name}/first", to_float64(layer.first), to_float64(layer.first_bias), layout)
        self.last = DeployedLinear(f"{name}/last", kernel[:, order], bias[order], layout)
        self._shape = layout.order_shape(*shape)

    def forward_and_log_det(self, x: tf.Tensor, z: tf.Tensor) -> Output:
        """Returns v = (x - mu(z)) / sigma(z) for x, the output of the flow's levels, and the log-determinant."""
        mean, log_scale = self._infer_gaussian(z)
        return (x - mean) * tf.exp(-log_scale), -tf.reduce_sum(log_scale, [1, 2, 3])

    def inverse(self, y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """Returns x = y * sigma(z) + mu(z), the output of the flow's levels; y is the local code v."""
        mean, log_scale = self._infer_gaussian(z)
        return y * tf.exp(log_scale) + mean

    def _infer_gaussian(self, z: tf.Tensor) -> list[tf.Tensor]:
        mean_and_log_scale = tf.split(self.last(self.layout.elu(self.first(z))), 2, -1)
        return [tf.reshape(one, [-1, *self._shape]) for one in mean_and_log_scale]


class DeployedColourMap(Deployed):
    """The first layer of an export's flow, y = (x - shift(z)) A(z), with matrix and shift from a linear map of z."""

    def __init__(self, layer: ColourMap, name: str, layout: Layout):
        super().__init__(name, layout)
        self.linear = DeployedLinear(name, to_float64(layer.kernel), to_float64(layer.bias), layout)
        axes = get_colour_axes(layer._channels or 0)
        self.rows, self.columns = (
            round_to_float32(f"{name}/{key}", array) for key, array in (("rows", axes), ("columns", axes.T))
        )

    def forward_and_log_det(self, x: tf.Tensor, z: tf.Tensor) -> Output:
        """Returns images x with normalised colours, and the log-determinant `[batch]`."""
        matrix, _, shift, log_det = self._make_matrices(x, z)
        y = map_colours(self.layout.to_nhwc(x) - shift[:, None, None], matrix)
        return self.layout.from_nhwc(y), log_det * self.layout.count_pixels(x)

    def inverse(self, y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """Returns the images x whose normalised colours are y."""
        _, inverse, shift, _ = self._make_matrices(y, z)
        return self.layout.from_nhwc(map_colours(self.layout.to_nhwc(y), inverse) + shift[:, None, None])

    def _make_matrices(self, x: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return make_colour_matrices(self.linear(z), x.shape[self.layout.axis], (self.rows, self.columns))


class DeployedFlow(Deployed):
    """The flow of an export, which maps images x to v and v to x, both in the layout of the graph."""

    def __init__(self, flow: Flow, layout: Layout, name: str = "flow"):
        super().__init__(name, layout)
        conditioning = Conditioning()
        self.levels = tuple(
            tuple(DeployedStage(stage, name, layout, conditioning) for stage in level) for level in flow.levels
        )
        # This layer multiplies z with the matrices of all nets at once; it is None if z is a feature map or absent.
        self.condition = conditioning.make_linear(f"{name}/condition", layout)
        self._widths = tuple(map(len, conditioning.biases))
        self._local, self._squeezes_first = flow.local, flow.is_squeezed_first
        self.colour_map = self.whitening = None
        if flow.colour_map is not None:
            self.colour_map = DeployedColourMap(flow.colour_map, f"{name}/colour_map", layout)
        if flow.whitening is not None:
            self.whitening = DeployedWhitening(flow.whitening, f"{name}/whitening", layout, flow.config.image_shape)

    def forward_and_log_det(self, x: tf.Tensor, z: tf.Tensor | None) -> Output:
        """Maps images x to v, conditioned on z (a vector, a feature map or None); returns v and the log-determinant."""
        colour_log_det: LogDet = 0.0
        if self.colour_map is not None:
            x, colour_log_det = self.colour_map.forward_and_log_det(x, z)
        v, log_det = self._run_level(0, x, self._make_conditions(z))
        if self.whitening is None:
            return v, log_det + colour_log_det
        v, whitening_log_det = self.whitening.forward_and_log_det(v, z)
        return v, log_det + whitening_log_det

    def inverse(self, v: tf.Tensor, z: tf.Tensor | None) -> tf.Tensor:
        """Maps v back to images: returns the x for which `forward_and_log_det(x, z)` returns v."""
        h = v if self.whitening is None else self.whitening.inverse(v, z)
        x = self._invert_level(0, h, self._make_conditions(z))
        return x if self.colour_map is None else self.colour_map.inverse(x, z)

    def split_v(self, v: tf.Tensor) -> list[tf.Tensor]:
        """Returns the parts of v in the order in which they leave the flow, each at the resolution of its level."""
        parts = []
        for depth, stages in enumerate(self.levels):
            if depth or self._squeezes_first:
                v = self.layout.squeeze(v)
            left = [stage.dropped for stage in stages if stage.dropped]
            v, *dropped = self.layout.split_channels(v, [stages[-1].remaining, *left[::-1]])
            parts += dropped[::-1]
        return [*parts, v]

    def _make_conditions(self, z: tf.Tensor | None) -> Conditions:
        """Returns a tuple: the term that z adds in each coupling net, then z; (z,) alone if z is a feature map."""
        if self._local or self.condition is None:
            return () if z is None else (z,)
        return (*self.layout.slice_channels(self.layout.as_one_pixel(self.condition(z)), self._widths), z)

    def _run_level(self, depth: int, h: tf.Tensor, conditions: Conditions) -> Output:
        squeezes = depth > 0 or self._squeezes_first
        log_det: LogDet = 0.0
        left: list[tf.Tensor] = []
        if squeezes:
            h, conditions = self.layout.squeeze(h), self._squeeze_conditions(conditions)
        for stage in self.levels[depth]:
            h, stage_log_det = stage.forward_and_log_det(h, conditions)
            log_det += stage_log_det
            if stage.dropped:
                h, dropped = self.layout.split_channels(h, [stage.remaining, stage.dropped])
                left.insert(0, dropped)
        if depth + 1 < len(self.levels):
            h, inner_log_det = self._run_level(depth + 1, h, conditions)
            log_det += inner_log_det
        v = self.layout.concat_channels([h, *left])
        return self.layout.unsqueeze(v) if squeezes else v, log_det

    def _invert_level(self, depth: int, v: tf.Tensor, conditions: Conditions) -> tf.Tensor:
        stages, squeezes = self.levels[depth][::-1], depth > 0 or self._squeezes_first
        if squeezes:
            v, conditions = self.layout.squeeze(v), self._squeeze_conditions(conditions)
        widths = [stages[0].remaining, *(stage.dropped for stage in stages if stage.dropped)]
        h, *dropped = self.layout.split_channels(v, widths)
        if depth + 1 < len(self.levels):
            h = self._invert_level(depth + 1, h, conditions)
        for stage in stages:
            if stage.dropped:
                h = self.layout.concat_channels([h, dropped.pop(0)])
            h = stage.inverse(h, conditions)
        return self.layout.unsqueeze(h) if squeezes else h

    def _squeeze_conditions(self, conditions: Conditions) -> Conditions:
        return tuple(map(self.layout.squeeze, conditions)) if self._local else conditions


def fold_convolution(name: str, convolution: Any, norm: Any, layout: Layout, strides: int) -> DeployedLinear:
    """Returns one plain convolution that equals a (transposed) convolution followed by batch normalisation.

    A transposed convolution of stride 2 turns each input pixel into four output pixels, each with one of four parts of
    the kernel. It equals a plain convolution to four times the channels, which then become blocks of 2 x 2 pixels.
    Every runtime computes the plain convolution fast.
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
    # The kernel's entry `tap` along an axis connects input pixel i with output pixel strides * i - reach + tap.
    for row, column in np.ndindex(size, size):
        (down, r), (right, c) = (divmod(tap - reach, strides) for tap in (row, column))
        plain[1 - down, 1 - right, :, r, c] += kernel[row, column]
    kernel, bias = plain.reshape(3, 3, inputs, strides**2 * outputs), np.tile(shift, strides**2)
    return DeployedLinear(name, kernel, bias, layout, unsqueezes=strides > 1)


class DeployedBlock(Deployed):
    """A ResNet block in an export, with plain or transposed convolutions."""

    def __init__(self, block: ResNetBlock, name: str, layout: Layout):
        super().__init__(name, layout)
        self.shortcut = None
        if block.shortcut:
            convolution, norm = block.shortcut
            self.shortcut = fold_convolution(f"{name}/shortcut", convolution, norm, layout, block.strides)
        self.first = fold_convolution(f"{name}/first", block.convolution_1, block.norm_1, layout, block.strides)
        self.second = fold_convolution(f"{name}/second", block.convolution_2, block.norm_2, layout, 1)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.layout.elu(self.second(self.layout.elu(self.first(x))) + shortcut)


def fold_blocks(blocks: Sequence[ResNetBlock], name: str, layout: Layout) -> tuple[DeployedBlock, ...]:
    """Returns the ResNet blocks of an encoder in their form for an export; `name` is the path of the encoder."""
    return tuple(DeployedBlock(block, f"{name}/{block.name}", layout) for block in blocks)


class DeployedEncoder(Deployed):
    """The encoder q(z|x) of an export; `sides` is (height, width) of its last feature maps."""

    def __init__(self, encoder: Encoder, layout: Layout, sides: tuple[int, int]):
        super().__init__("encoder", layout)
        self.blocks = fold_blocks(encoder.blocks, "encoder", layout)
        self.top = DeployedLinear("encoder/top", to_float64(encoder.top.kernel), to_float64(encoder.top.bias), layout)
        kernel, bias = fold_weight_norm(encoder.last)
        self.colour_kernel = None
        if encoder.colours:
            self.colour_kernel = round_to_float32("encoder/colour_kernel", to_float64(encoder.colour_kernel))
            channels = encoder.blocks[0].convolution_1.kernel.shape[2]
            self.colour_axes = round_to_float32("encoder/colour_axes", get_colour_axes(channels).T)
        self.last = DeployedLinear(
            "encoder/last", kernel[layout.order_flattened(*sides, encoder.out_channels)], bias, layout
        )

    def infer_posterior(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the mean and log-variance of q(z|x), each `[batch, d_z]`, for images x in [-1, 1)."""
        h = x
        for block in self.blocks:
            h = block(h)
        h = self.layout.elu(self.top(h))
        outputs = self.last(tf.reshape(h, [-1, self.last.kernel.shape[0]]))
        if self.colour_kernel is not None:
            outputs += tf.matmul(measure_colours(self.layout.to_nhwc(x), self.colour_axes), self.colour_kernel)
        mean, log_variance = tf.split(outputs, 2, -1)
        return mean, log_variance


class DeployedDequantizer(Deployed):
    """An export's q(u|x) of dequantisation noise u: a network makes feature maps of x, which condition a flow of u."""

    def __init__(self, dequantizer: Dequantizer, layout: Layout):
        super().__init__("dequantizer", layout)
        self.blocks = fold_blocks(dequantizer.encoder.blocks, "dequantizer/encoder", layout)
        self.flow = DeployedFlow(dequantizer.flow, layout, "dequantizer/flow")

    def forward_and_log_det(self, x: tf.Tensor, noise: tf.Tensor) -> Output:
        """Returns dequantisation noise u of images x in [-1, 1), the lower edges of bins, and the log-determinant."""
        for block in self.blocks:
            x = block(x)
        u, flow_log_det = self.flow.forward_and_log_det(noise, x)
        u, log_det = Sigmoid().forward_and_log_det(u)
        return u, flow_log_det + log_det
