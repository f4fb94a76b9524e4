"""The deployed arithmetic: encoder, flow and prior as a TensorFlow graph of folded weights.

It computes what `DecoupledModel` computes, from the weights that `folding` prepares, in either order of axes. There is
no data-dependent control flow, no scalar input and no operation that ONNX lacks.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.deployed.folding import FoldedCoupling, FoldedFactorOut, FoldedModel, FoldedStep


def scope(name: str) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which operations are named `NAME/...`, wherever it is entered."""
    return tf.name_scope(f"{name}/")


def _named(place: str | Callable[..., str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Names the operations of a method; where the name depends on its arguments, `place` tells it of them."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def named(self: Any, *args: Any, **kwargs: Any) -> Any:
            with scope(place if isinstance(place, str) else place(*args)):
                return method(self, *args, **kwargs)

        return named

    return decorate


_after_layer = _named(lambda layer, *_: layer.name)
_after_level = _named(lambda run, depth, *_: f"flow/level_{depth}")


class Network:
    """Builds parts of the graph. All images inside are float32 in the folded model's layout.

    Args:
        folded: the structure.
        weights: the weights by their names, as whatever the graph shall read them from.
    """

    def __init__(self, folded: FoldedModel, weights: Mapping[str, tf.Tensor]):
        self.folded = folded
        self.config = folded.config
        self.weights = weights
        self.layout = folded.layout

    # --- the pieces of the endpoints ---

    @_named("input")
    def levels_of(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the levels 0..n_bins - 1 of uint8 images `[batch, height, width, 3]`, in the layout of the graph."""
        if self.layout == "NCHW":
            images = tf.transpose(images, [0, 3, 1, 2])
        levels = tf.cast(images, tf.float32)
        return levels if self.config.n_bits == 8 else tf.floor(levels * (self.config.n_bins / 256))

    @_named("output")
    def pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images `[batch, height, width, 3]` of x in [-1, 1); what lies outside is clipped."""
        n_bins = self.config.n_bins
        levels = tf.clip_by_value(tf.floor((x + 1.0) * (n_bins / 2)), 0.0, n_bins - 1.0)
        pixels = tf.cast(levels if n_bins == 256 else levels * (256 // n_bins), tf.uint8)
        return tf.transpose(pixels, [0, 2, 3, 1]) if self.layout == "NCHW" else pixels

    @_named("input")
    def flow_input(self, levels: tf.Tensor, u: float | tf.Tensor) -> tf.Tensor:
        """Returns x in [-1, 1) of levels and noise u in [0, 1)."""
        scale = 2 / self.config.n_bins
        if isinstance(u, float):
            return levels * scale + (u * scale - 1)
        return (levels + u) * scale - 1.0

    @_named("input")
    def to_inside(self, v: tf.Tensor) -> tf.Tensor:
        """Brings `[batch, height, width, 3]` into the layout of the graph."""
        return tf.transpose(v, [0, 3, 1, 2]) if self.layout == "NCHW" else v

    @_named("output")
    def to_outside(self, v: tf.Tensor) -> tf.Tensor:
        """Brings an image of the graph into `[batch, height, width, 3]`."""
        return tf.transpose(v, [0, 2, 3, 1]) if self.layout == "NCHW" else v

    @_named("encoder")
    def posterior(self, levels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of q(z|x), each `[batch, d_z]`."""
        h = levels * (2 / self.config.n_bins) - 1.0
        for block in self.folded.encoder:
            with scope(block.name):
                shortcut = self.convolution(h, f"{block.name}/shortcut", block.strides) if block.shortcut else h
                h = self.elu(self.convolution(h, f"{block.name}/first", block.strides))
                h = self.elu(self.convolution(h, f"{block.name}/second") + shortcut)
        h = self.elu(self.convolution(h, "encoder/top"))
        kernel = self.weights["encoder/last"]
        h = self.dense(tf.reshape(h, [-1, kernel.shape[0]]), "encoder/last")
        mean, log_variance = tf.split(h, 2, -1)
        return mean, log_variance

    @_named("flow")
    def flow_forward(
        self, x: tf.Tensor, z: tf.Tensor | None, with_log_det: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x to v. The log-determinant is `[batch]`, or a constant 0 where it is not asked for."""
        run = _Run(self, self._conditions(z), with_log_det)
        v = self._level_forward(run, 0, x)
        if self.folded.whitening:
            mean, log_scale = self._whitening(z)
            with scope("flow/whitening"):
                v = (v - mean) * tf.exp(-log_scale)
            if with_log_det:
                run.log_dets.append(-tf.reduce_sum(log_scale, [1, 2, 3]))
        return v, run.log_det()

    @_named("flow")
    def flow_inverse(self, v: tf.Tensor, z: tf.Tensor | None) -> tf.Tensor:
        """Maps v to x."""
        run = _Run(self, self._conditions(z))
        if self.folded.whitening:
            mean, log_scale = self._whitening(z)
            with scope("flow/whitening"):
                v = v * tf.exp(log_scale) + mean
        return self._level_inverse(run, 0, v)

    @_named("prior")
    def prior_forward(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps z to the noise of the prior; the log-determinant is `[batch]`."""
        run = _Run(self, None, True, images=False)
        h = z
        for step in self.folded.prior:
            h = run.step_forward(step, h)
        return run.restore(h, self.folded.prior_order), run.log_det()

    @_named("prior")
    def prior_inverse(self, noise: tf.Tensor) -> tf.Tensor:
        """Maps standard normal noise `[batch, d_z]` to a draw of z."""
        run = _Run(self, None, images=False)
        h = run.reorder(noise, self.folded.prior_order)
        for step in reversed(self.folded.prior):
            h = run.step_inverse(step, h)
        return h

    # --- how the flow's levels hang together ---

    @_after_level
    def _level_forward(self, run: _Run, depth: int, h: tf.Tensor) -> tf.Tensor:
        left: list[tf.Tensor] = []
        for part in self.folded.levels[depth]:
            for layer in part.layers:
                h = run.step_forward(layer, h) if isinstance(layer, FoldedStep) else run.factor_out_forward(layer, h)
            if part.dropped:
                h, dropped = run.split(h, [part.channels - part.dropped, part.dropped])
                left.insert(0, dropped)
        if depth + 1 < len(self.folded.levels):
            h = self._level_forward(run, depth + 1, tf.nn.space_to_depth(h, 2, self.layout))
            h = tf.nn.depth_to_space(h, 2, self.layout)
        else:
            h = run.restore(h, self.folded.last_order)
        return run.join([h, *left])

    @_after_level
    def _level_inverse(self, run: _Run, depth: int, v: tf.Tensor) -> tf.Tensor:
        parts = self.folded.levels[depth]
        left = [part.dropped for part in reversed(parts) if part.dropped]
        channels = self._channels(depth)
        h, *dropped = run.split(v, [channels - sum(left), *left])
        if depth + 1 < len(self.folded.levels):
            h = self._level_inverse(run, depth + 1, tf.nn.space_to_depth(h, 2, self.layout))
            h = tf.nn.depth_to_space(h, 2, self.layout)
        else:
            h = run.reorder(h, self.folded.last_order)
        for part in reversed(parts):
            if part.dropped:
                h = run.join([h, dropped.pop(0)])
            for layer in reversed(part.layers):
                h = run.step_inverse(layer, h) if isinstance(layer, FoldedStep) else run.factor_out_inverse(layer, h)
        return h

    def _channels(self, depth: int) -> int:
        return self.folded.levels[depth][0].channels

    # --- layers ---

    @_named("flow/condition")
    def _conditions(self, z: tf.Tensor | None) -> list[tf.Tensor] | None:
        """What z adds to each net, in one matrix product for all of them."""
        if not self.folded.condition_sizes or z is None:
            return None
        every = self.dense(z, "flow/condition")
        total = every.shape[1]
        every = tf.reshape(every, [-1, total, 1, 1] if self.layout == "NCHW" else [-1, 1, 1, total])
        return tf.split(every, self.folded.condition_sizes, self.channel_axis)

    @property
    def channel_axis(self) -> int:
        """Which axis of an image holds the channels."""
        return 1 if self.layout == "NCHW" else 3

    @_named("flow/whitening")
    def _whitening(self, z: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        h = self.dense(self.elu(self.dense(z, "flow/whitening/first")), "flow/whitening/last")
        side = self.config.image_size
        inner = (3, side, side) if self.layout == "NCHW" else (side, side, 3)
        mean, log_scale = tf.split(h, 2, -1)
        return tf.reshape(mean, [-1, *inner]), tf.reshape(log_scale, [-1, *inner])

    def convolution(self, x: tf.Tensor, name: str, strides: int = 1, bias: bool = True) -> tf.Tensor:
        """Returns a convolution padded with zeros, by the weights `name` and `name_bias`."""
        kernel = self.weights[name]
        around = [[0, 0], [kernel.shape[0] // 2] * 2, [kernel.shape[1] // 2] * 2, [0, 0]]
        if self.layout == "NCHW":
            around = [around[0], around[3], around[1], around[2]]
        with scope(name):
            y = tf.nn.conv2d(x, kernel, strides, around, data_format=self.layout)
            return tf.nn.bias_add(y, self.weights[f"{name}_bias"], self.layout) if bias else y

    def elu(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x above 0 and exp(x) - 1 below."""
        if self.layout == "NHWC":
            return tf.nn.elu(x)
        # ONNX Runtime computes Elu on one thread and without vectors: it took a third of the whole time. These four
        # say the same, since exp(0) - 1 = 0 <= x above 0 and exp(x) - 1 >= x below, and take a third of Elu's time.
        # (`onnx_files` makes a Clip of the minimum.)
        return tf.maximum(x, tf.exp(tf.minimum(x, 0.0)) - 1.0)

    def dense(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """Returns a matrix product plus a bias, by the weights `name` and `name_bias`."""
        with scope(name):
            return tf.matmul(x, self.weights[name]) + self.weights[f"{name}_bias"]


class _Run:
    """One pass through a flow, forward or back, over images or vectors; it gathers log-determinants on the way."""

    def __init__(
        self, network: Network, conditions: list[tf.Tensor] | None, with_log_det: bool = False, images: bool = True
    ):
        self.network = network
        self.conditions = conditions
        self.with_log_det = with_log_det
        self.images = images
        self.axis = network.channel_axis if images else 1
        self.log_dets: list[tf.Tensor] = []
        self.constant = 0.0

    def log_det(self) -> tf.Tensor:
        """Returns the sum of what was gathered."""
        return tf.add_n(self.log_dets) + self.constant if self.log_dets else tf.constant(self.constant)

    def split(self, x: tf.Tensor, sizes: Sequence[int]) -> list[tf.Tensor]:
        """Splits the channels; parts without channels are left out of the graph."""
        return tf.split(x, sizes, self.axis) if len(sizes) > 1 else [x]

    def join(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """Puts channels beside each other."""
        return tf.concat(parts, self.axis) if len(parts) > 1 else parts[0]

    def reorder(self, x: tf.Tensor, order: np.ndarray | None) -> tf.Tensor:
        """Takes the channels in another order."""
        return x if order is None else tf.gather(x, tf.constant(order, tf.int32), axis=self.axis)

    def restore(self, x: tf.Tensor, order: np.ndarray | None) -> tf.Tensor:
        """Undoes `reorder`."""
        return self.reorder(x, None if order is None else np.argsort(order))

    @_after_layer
    def step_forward(self, step: FoldedStep, x: tf.Tensor) -> tf.Tensor:
        """Runs a step from x towards v."""
        h = self._linear(x, step.name, "mix")
        blocks = self._pair_forward(step.couplings[:2], self.split(h, step.sizes))
        shifts = self._shifts(step)
        blocks = [blocks[0], *(block + part for block, part in zip(blocks[1:], shifts, strict=True))]
        if step.regroups:
            low, high = blocks
            even, odd = self._alternate(low, step.even_low), self._alternate(high, step.even_high)
            blocks = [self.join([*even[0], *odd[0]]), self.join([*even[1], *odd[1]])]
        self._count(step.log_det, x)
        return self.join(self._pair_forward(step.couplings[2:], blocks))

    @_after_layer
    def step_inverse(self, step: FoldedStep, y: tf.Tensor) -> tf.Tensor:
        """Runs a step from v towards x."""
        # Even and odd channels are as many as low and high ones.
        blocks = self._pair_inverse(step.couplings[2:], self.split(y, step.sizes))
        if step.regroups:
            low, high = step.sizes
            evens = self.split(blocks[0], _filled(step.even_low, step.even_high))
            odds = self.split(blocks[1], _filled(low - step.even_low, high - step.even_high))
            blocks = [
                self.join(_pick(evens, odds, step.even_low, low - step.even_low, first=True)),
                self.join(_pick(evens, odds, step.even_high, high - step.even_high, first=False)),
            ]
        shifts = self._shifts(step)
        blocks = [blocks[0], *(block - part for block, part in zip(blocks[1:], shifts, strict=True))]
        return self._linear(self.join(self._pair_inverse(step.couplings[:2], blocks)), step.name, "unmix")

    @_after_layer
    def factor_out_forward(self, layer: FoldedFactorOut, x: tf.Tensor) -> tf.Tensor:
        """Runs what stands before channels leave, from x towards v."""
        kept, dropped = self.split(self._linear(x, layer.name, "mix"), [layer.kept, layer.coupling.transformed])
        dropped = self._coupling_forward(layer.coupling, kept, dropped)
        self._count(layer.log_det, x)
        return self.join([kept, dropped])

    @_after_layer
    def factor_out_inverse(self, layer: FoldedFactorOut, y: tf.Tensor) -> tf.Tensor:
        """Runs it from v towards x."""
        kept, dropped = self.split(y, [layer.kept, layer.coupling.transformed])
        dropped = self._coupling_inverse(layer.coupling, kept, dropped)
        return self._linear(self.join([kept, dropped]), layer.name, "unmix")

    def _pair_forward(self, couplings: Sequence[FoldedCoupling], blocks: list[tf.Tensor]) -> list[tf.Tensor]:
        last, first = couplings
        low, *middle, high = blocks
        high = self._coupling_forward(last, self.join([low, *middle]), high)
        low = self._coupling_forward(first, self.join([*middle, high]), low)
        return [low, *middle, high]

    def _pair_inverse(self, couplings: Sequence[FoldedCoupling], blocks: list[tf.Tensor]) -> list[tf.Tensor]:
        last, first = couplings
        low, *middle, high = blocks
        low = self._coupling_inverse(first, self.join([*middle, high]), low)
        high = self._coupling_inverse(last, self.join([low, *middle]), high)
        return [low, *middle, high]

    @_after_layer
    def _coupling_forward(self, coupling: FoldedCoupling, kept: tf.Tensor, transformed: tf.Tensor) -> tf.Tensor:
        shift, raw = self._net(coupling, kept)
        if raw is None:
            return transformed + shift
        if self.with_log_det:
            axes = list(range(1, len(raw.shape)))
            self.log_dets.append(tf.reduce_sum(_log_scale(coupling, raw), axes))
        return _scale(coupling, raw) * transformed + shift

    @_after_layer
    def _coupling_inverse(self, coupling: FoldedCoupling, kept: tf.Tensor, transformed: tf.Tensor) -> tf.Tensor:
        shift, raw = self._net(coupling, kept)
        transformed = transformed - shift
        return transformed if raw is None else transformed / _scale(coupling, raw)

    def _net(self, coupling: FoldedCoupling, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        network, name = self.network, coupling.name
        if self.images:
            h = network.elu(network.convolution(kept, f"{name}/first", bias=False))
            h = network.convolution(h, f"{name}/second", bias=False)
            if coupling.condition is not None and self.conditions is not None:
                h += self.conditions[coupling.condition]
            h = network.convolution(network.elu(h), f"{name}/last")
        else:
            h = network.elu(network.dense(kept, f"{name}/first"))
            h = network.dense(network.elu(network.dense(h, f"{name}/second")), f"{name}/last")
        if not coupling.affine:
            return h, None
        shift, raw = self.split(h, [coupling.transformed, coupling.transformed])
        return shift, raw

    def _linear(self, x: tf.Tensor, name: str, direction: str) -> tf.Tensor:
        if self.images:
            return self.network.convolution(x, f"{name}/{direction}")
        return self.network.dense(x, f"{name}/{direction}")

    def _shifts(self, step: FoldedStep) -> list[tf.Tensor]:
        """The shift of every block but the low one, ready to be added."""
        blocks = ("middle", "high") if len(step.sizes) > 2 else ("high",)
        return [self.network.weights[f"{step.name}/shift_{block}"] for block in blocks]

    def _alternate(self, block: tf.Tensor, even: int) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The even channels of a block and the odd ones, each as a list of one tensor or none."""
        odd = block.shape[self.axis] - even
        if not even or not odd:
            return ([block], []) if even else ([], [block])
        first, second = self.split(block, [even, odd])
        return [first], [second]

    def _count(self, log_det: float, x: tf.Tensor) -> None:
        if self.with_log_det:
            positions = math.prod(x.shape[1:]) // x.shape[self.axis]
            self.constant += positions * log_det


def _scale(coupling: FoldedCoupling, raw: tf.Tensor) -> tf.Tensor:
    """Returns s in (1 - alpha, 1 + alpha) (paper B.2)."""
    if coupling.alpha == 1:
        # 1 + tanh(u/2) = 2*sigmoid(u), which keeps its digits where the scale is small.
        return 2.0 * tf.sigmoid(raw)
    return 1.0 + coupling.alpha * tf.tanh(raw)


def _log_scale(coupling: FoldedCoupling, raw: tf.Tensor) -> tf.Tensor:
    if coupling.alpha == 1:
        return math.log(2.0) + tf.math.log_sigmoid(raw)
    return tf.math.log(_scale(coupling, raw))


def _filled(*sizes: int) -> list[int]:
    return [size for size in sizes if size]


def _pick(evens: list[tf.Tensor], odds: list[tf.Tensor], even: int, odd: int, first: bool) -> list[tf.Tensor]:
    """Of the even channels and the odd ones, each cut in what belongs to low and to high, those of one block."""
    place = 0 if first else -1
    return [part for part in ([evens[place]] if even else []) + ([odds[place]] if odd else [])]
