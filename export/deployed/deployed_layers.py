"""Layers as deployed: linear maps, the 1x1 convolution with its inverse, actnorm, couplings, registered layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from export.deployed.graph import Array, Deployed, Layout, LogDets, rounded, values
from tfdecouple.bijectors import forward_and_log_det
from tfdecouple.errors import InversionError
from tfdecouple.layers import MLP, ActNorm, ConvNet, Coupling, LocalConvNet
from tfdecouple.layers.base import FullLayer
from tfdecouple.layers.nets import WeightNorm
from tfdecouple.transforms import TRANSFORMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedLinear(Deployed):
    """A convolution padded with zeros, or a product of vectors with a matrix, and a bias.

    Attributes:
        kernel: `[height, width, inputs, outputs]`, or `[inputs, outputs]`.
        bias: `[outputs]`, or None.
        layout: of the images.
        strides: of the convolution.
    """

    kernel: Array
    bias: Array | None
    layout: Layout
    strides: int = 1

    @classmethod
    def of(cls, name: str, kernel: np.ndarray, bias: np.ndarray | None, layout: Layout, **options: Any) -> Self:
        """Makes it from arrays in float64.

        Raises:
            InversionError: where they are not finite.
        """
        kernel = rounded(f"{name}/kernel", kernel)
        bias = None if bias is None else rounded(f"{name}/bias", bias)
        return cls(name=name, kernel=kernel, bias=bias, layout=layout, **options)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Maps images, or vectors `[batch, inputs]`."""
        with self.scope():
            if len(self.kernel.shape) == 2:
                y = tf.matmul(x, self.kernel)
                return y if self.bias is None else y + self.bias
            around = [[size // 2] * 2 for size in self.kernel.shape[:2]]
            padding = [[0, 0], [0, 0], *around] if self.layout.order == "NCHW" else [[0, 0], *around, [0, 0]]
            y = tf.nn.conv2d(x, self.kernel, self.strides, padding, data_format=self.layout.order)
            return y if self.bias is None else tf.nn.bias_add(y, self.bias, self.layout.order)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedMix(Deployed):
    """y = W x + b for the channels at every position, and its inverse, computed beforehand.

    Attributes:
        mix: from x towards v.
        unmix: back.
        log_det: log |det W|.
    """

    mix: DeployedLinear
    unmix: DeployedLinear
    log_det: float

    @classmethod
    def of(cls, name: str, matrix: np.ndarray, bias: np.ndarray, layout: Layout, *, images: bool) -> Self:
        """Makes it from W and b in float64.

        Raises:
            InversionError: where W cannot be inverted.
        """
        try:
            inverse = np.linalg.inv(matrix)
        except np.linalg.LinAlgError as error:
            raise InversionError(f"the matrix of {name} cannot be inverted; the run cannot be exported") from error

        def linear(direction: str, matrix: np.ndarray, bias: np.ndarray) -> DeployedLinear:
            kernel = matrix.T[None, None] if images else matrix.T
            return DeployedLinear.of(f"{name}/{direction}", kernel, bias, layout)

        return cls(
            name=name,
            mix=linear("mix", matrix, bias),
            unmix=linear("unmix", inverse, -inverse @ bias),
            log_det=float(np.linalg.slogdet(matrix)[1]),
        )

    def forward(self, x: tf.Tensor, conditions: Any = None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x towards v."""
        if log_dets is not None:
            log_dets.append(self.mix.layout.positions(x) * self.log_det)
        return self.mix(x)

    def inverse(self, y: tf.Tensor, conditions: Any = None) -> tf.Tensor:
        """Maps v towards x."""
        return self.unmix(y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedActNorm(Deployed):
    """y = scale * x + bias, channel by channel.

    Attributes:
        scale: `[channels]`, or `[channels, 1, 1]` where images have their channels first.
        bias: likewise.
        log_det: log |det| at one position.
        layout: of the images.
    """

    scale: Array
    bias: Array
    log_det: float
    layout: Layout

    @classmethod
    def from_layer(cls, layer: ActNorm, name: str, layout: Layout, *, before: int = 0, images: bool = True) -> Self:
        """Makes it from an actnorm of the model, which follows `before` channels that stay as they are."""
        log_scale = np.concatenate([np.zeros(before), values(layer.log_scale)])
        bias = np.concatenate([np.zeros(before), values(layer.bias)])
        shape = (-1, 1, 1) if images and layout.order == "NCHW" else (-1,)
        return cls(
            name=name,
            scale=rounded(f"{name}/scale", np.exp(log_scale).reshape(shape)),
            bias=rounded(f"{name}/bias", bias.reshape(shape)),
            log_det=float(log_scale.sum()),
            layout=layout,
        )

    def forward(self, x: tf.Tensor, conditions: Any = None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x towards v."""
        if log_dets is not None:
            log_dets.append(self.layout.positions(x) * self.log_det)
        with self.scope():
            return x * self.scale + self.bias

    def inverse(self, y: tf.Tensor, conditions: Any = None) -> tf.Tensor:
        """Maps v towards x."""
        with self.scope():
            return (y - self.bias) / self.scale


def normalised(weights: WeightNorm) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias of a weight-normalised layer, float64."""
    direction = values(weights.direction)
    norm = np.sqrt(np.sum(np.square(direction), axis=tuple(range(direction.ndim - 1))))
    return direction * (values(weights.gain) / norm), values(weights.bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedWeight(Deployed):
    """A weight of a layer.

    Attributes:
        value: the array.
    """

    value: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedUnfolded(Deployed):
    """A layer of the model of which nothing is multiplied out. It takes the channels last, as the model has them.

    Attributes:
        layer: of the model.
        weights: the layer's own, in their order.
        layout: of the images.
    """

    layer: Any
    weights: tuple[DeployedWeight, ...]
    layout: Layout

    @classmethod
    def from_layer(cls, layer: FullLayer, name: str, layout: Layout) -> Self:
        """Makes it from a layer of the model."""
        weights = (
            DeployedWeight(name=f"{name}/{key}", value=rounded(f"{name}/{key}", values(weight)))
            for key, weight in layer.tensors().items()
        )
        return cls(name=name, layer=layer, weights=tuple(weights), layout=layout)

    def tensors(self) -> dict[str, tf.Tensor]:
        """Returns the weights by name."""
        return {weight.name.rpartition("/")[2]: tf.convert_to_tensor(weight.value) for weight in self.weights}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedRegistered(DeployedUnfolded):
    """A layer at the end of a step, with the bijector that it makes of its weights."""

    def forward(self, x: tf.Tensor, conditions: Any = None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x towards v."""
        with self.scope():
            x, bijector = self.layout.leave(x), self.layer.bijector(self.tensors())
            if log_dets is None:
                return self.layout.enter(bijector.forward(x))
            y, log_det = forward_and_log_det(bijector, x)
            log_dets.append(log_det)
            return self.layout.enter(y)

    def inverse(self, y: tf.Tensor, conditions: Any = None) -> tf.Tensor:
        """Maps v towards x."""
        with self.scope():
            return self.layout.enter(self.layer.bijector(self.tensors()).inverse(self.layout.leave(y)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedConditioner(DeployedUnfolded):
    """A conditioner of images, with the function that it makes of its weights."""

    def __call__(self, x: tf.Tensor, conditions: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the raw parameters of the transform, one after the other; z is the last of the conditions."""
        with self.scope():
            z = conditions[-1] if self.layer.condition_size else None
            return self.layout.enter(self.layer.output(self.tensors(), self.layout.leave(x), z))


class Conditioning:
    """Collects what z is multiplied with for each net, so that one product serves all of them."""

    def __init__(self) -> None:
        self.kernels: list[np.ndarray] = []
        self.biases: list[np.ndarray] = []

    def add(self, net: Any) -> int | None:
        """Takes the weights of a net and returns its number; None for one that z does not condition."""
        if not net.condition_size or isinstance(net, LocalConvNet):
            return None
        self.kernels.append(values(net.condition_kernel))
        self.biases.append(values(net.condition_bias))
        return len(self.kernels) - 1

    def linear(self, name: str, layout: Layout) -> DeployedLinear | None:
        """Returns the product for all nets, their widths one after the other; None where there are none."""
        if not self.kernels:
            return None
        return DeployedLinear.of(name, np.concatenate(self.kernels, 1), np.concatenate(self.biases), layout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedNet(Deployed):
    """The net of a coupling: three convolutions for images, three dense layers for vectors.

    Attributes:
        first: the first layer.
        second: the second.
        last: the last; its weight normalisation is multiplied out.
        condition: number of the net among those that z conditions, or None.
        local: the convolution of the map, where a map conditions the net, or None.
        layout: of the images.
    """

    first: DeployedLinear
    second: DeployedLinear
    last: DeployedLinear
    condition: int | None
    local: DeployedLinear | None
    layout: Layout

    @classmethod
    def from_layer(cls, net: Any, name: str, layout: Layout, conditioning: Conditioning) -> Self:
        """Folds a `ConvNet` or an `MLP`."""

        def plain(layer: str) -> DeployedLinear:
            bias = getattr(net, f"{layer}_bias", None)
            bias = None if bias is None else values(bias)
            return DeployedLinear.of(f"{name}/{layer}", values(getattr(net, layer)), bias, layout)

        local = None
        if isinstance(net, LocalConvNet):
            kernel, bias = values(net.condition_kernel), values(net.condition_bias)
            local = DeployedLinear.of(f"{name}/condition", kernel, bias, layout)
        return cls(
            name=name,
            first=plain("first"),
            second=plain("second"),
            last=DeployedLinear.of(f"{name}/last", *normalised(net.last), layout),
            condition=conditioning.add(net),
            local=local,
            layout=layout,
        )

    def __call__(self, x: tf.Tensor, conditions: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the raw parameters of the transform, one after the other."""
        with self.scope():
            h = self.second(self.layout.elu(self.first(x)))
            if self.condition is not None:
                h += conditions[self.condition]
            if self.local is not None:
                h += self.local(conditions[0])
            return self.last(self.layout.elu(h))


@dataclasses.dataclass(frozen=True)
class DeployedSplit:
    """Which channels are x_a and which are x_b, as any split of the model tells when it is given their numbers.

    Attributes:
        kept: the channels of x_a.
        transformed: the channels of x_b.
        layout: of the images.
    """

    kept: tuple[int, ...]
    transformed: tuple[int, ...]
    layout: Layout

    @classmethod
    def from_split(cls, split: Any, channels: int, layout: Layout) -> Self:
        """Asks a split of the model."""
        numbers = split(tf.range(channels)[None])
        kept, transformed = (tuple(np.asarray(each)[0].tolist()) for each in numbers)
        return cls(kept, transformed, layout)

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x_a and x_b."""
        first, second = sorted((self.kept, self.transformed))
        if self._consecutive:
            low, high = self.layout.split(x, [len(first), len(second)])
        elif self._alternating:
            low, high = self.layout.even_and_odd(x)
        else:
            low, high = self.layout.taken(x, first), self.layout.taken(x, second)
        return (low, high) if first is self.kept else (high, low)

    def merge(self, x_a: tf.Tensor, x_b: tf.Tensor) -> tf.Tensor:
        """Puts x_a and x_b together again."""
        maps = (x_a, x_b) if self.kept < self.transformed else (x_b, x_a)
        if self._consecutive:
            return self.layout.join(maps)
        if self._alternating:
            return self.layout.interleaved(*maps)
        return self.layout.taken(self.layout.join(maps), np.argsort(self._order).tolist())

    @property
    def _order(self) -> list[int]:
        return [number for side in sorted((self.kept, self.transformed)) for number in side]

    @property
    def _consecutive(self) -> bool:
        return self._order == list(range(len(self._order)))

    @property
    def _alternating(self) -> bool:
        count = len(self._order)
        return self._order == [*range(0, count, 2), *range(1, count, 2)] and count % 2 == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedCoupling(Deployed):
    """x_a stays; x_b goes through the transform whose parameters a net computes from x_a and z.

    Attributes:
        split: of the channels.
        net: computes the parameters.
        transform: name of the transform, of `tfdecouple.transforms.TRANSFORMS`: any that is registered can be exported.
        alpha: its bound.
        layout: of the images.
    """

    split: DeployedSplit
    net: DeployedNet | DeployedConditioner
    transform: str
    alpha: float
    layout: Layout

    @classmethod
    def from_layer(cls, layer: Coupling, name: str, layout: Layout, channels: int, conditioning: Conditioning) -> Self:
        """Folds a coupling of so many channels."""
        return cls(
            name=name,
            split=DeployedSplit.from_split(layer.split, channels, layout),
            net=DeployedNet.from_layer(layer.net, name, layout, conditioning)
            if type(layer.net) in (ConvNet, LocalConvNet, MLP)
            else DeployedConditioner.from_layer(layer.net, f"{name}/net", layout),
            transform=layer.transform,
            alpha=layer.alpha,
            layout=layout,
        )

    def forward(self, x: tf.Tensor, conditions: Sequence[tf.Tensor] = (), log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x towards v."""
        with self.scope():
            x_a, x_b = self.split(x)
            bijector = self._bijector(x_a, conditions)
            if log_dets is None:
                return self.split.merge(x_a, bijector.forward(x_b))
            y_b, log_det = forward_and_log_det(bijector, x_b)
            log_dets.append(log_det)
            return self.split.merge(x_a, y_b)

    def inverse(self, y: tf.Tensor, conditions: Sequence[tf.Tensor] = ()) -> tf.Tensor:
        """Maps v towards x."""
        with self.scope():
            y_a, y_b = self.split(y)
            return self.split.merge(y_a, self._bijector(y_a, conditions).inverse(y_b))

    def _bijector(self, x_a: tf.Tensor, conditions: Sequence[tf.Tensor]) -> tfb.Bijector:
        transform = TRANSFORMS[self.transform]
        raw = self.layout.split(self.net(x_a, conditions), [len(self.split.transformed)] * transform.parameters)
        return transform.bijector(raw, self.alpha)
