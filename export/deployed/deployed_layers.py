"""The deployed layers: linear maps, the 1x1 convolution with its inverse, actnorm, couplings, registered layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from export.deployed.graph import Deployed, Layout, LogDets, round_array, to_float64
from tfdecouple.bijectors import forward_and_log_det
from tfdecouple.errors import InversionError
from tfdecouple.layers import MLP, ActNorm, ConvNet, Coupling, LocalConvNet
from tfdecouple.layers.base import BaseLayer
from tfdecouple.layers.conditioners import WeightNorm
from tfdecouple.transforms import TRANSFORMS


class DeployedLinear(Deployed):
    """A deployed zero-padded convolution, or a product of vectors with a matrix, and a bias.

    The kernel is float64 `[height, width, inputs, outputs]`, or a matrix `[inputs, outputs]`. `unsqueezes` says whether
    groups of four output channels become squares of four pixels.
    """

    def __init__(
        self,
        name: str,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        layout: Layout,
        strides: int = 1,
        unsqueezes: bool = False,
    ):
        super().__init__(name, layout)
        self.kernel = round_array(f"{name}/kernel", kernel)
        self.bias = None if bias is None else round_array(f"{name}/bias", bias)
        self._strides, self._unsqueezes = strides, unsqueezes

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the output of the layer for images, or for vectors `[batch, inputs]`."""
        if len(self.kernel.shape) == 2:
            y = tf.matmul(x, self.kernel)
            return y if self.bias is None else y + self.bias
        around = [[size // 2] * 2 for size in self.kernel.shape[:2]]
        padding = [[0, 0], [0, 0], *around] if self.layout.order == "NCHW" else [[0, 0], *around, [0, 0]]
        y = tf.nn.conv2d(x, self.kernel, self._strides, padding, data_format=self.layout.order)
        y = y if self.bias is None else tf.nn.bias_add(y, self.bias, self.layout.order)
        return self.layout.unsqueeze(y) if self._unsqueezes else y


class DeployedMix(Deployed):
    """A deployed invertible linear map y = W x + b of the channels of images or vectors, with its inverse map."""

    def __init__(self, name: str, matrix: np.ndarray, bias: np.ndarray, layout: Layout, images: bool):
        super().__init__(name, layout)
        try:
            inverse = np.linalg.inv(matrix)
        except np.linalg.LinAlgError as error:
            raise InversionError(f"the matrix of {name} cannot be inverted; the run cannot be exported") from error

        def linear(direction: str, matrix: np.ndarray, bias: np.ndarray) -> DeployedLinear:
            kernel = matrix.T[None, None] if images else matrix.T
            return DeployedLinear(f"{name}/{direction}", kernel, bias, layout)

        self.mix = linear("mix", matrix, bias)
        self.unmix = linear("unmix", inverse, -inverse @ bias)
        self.log_det = float(np.linalg.slogdet(matrix)[1])

    def forward(self, x: tf.Tensor, conditions: Any = None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Returns the output in the direction from x to v."""
        if log_dets is not None:
            log_dets.append(self.layout.count_positions(x) * self.log_det)
        return self.mix(x)

    def inverse(self, y: tf.Tensor, conditions: Any = None) -> tf.Tensor:
        """Returns the output in the direction from v to x."""
        return self.unmix(y)


class DeployedActNorm(Deployed):
    """A deployed actnorm y = scale * x + bias of images or vectors, whose first `before` channels stay unchanged."""

    def __init__(self, layer: ActNorm, name: str, layout: Layout, before: int = 0, images: bool = True):
        super().__init__(name, layout)
        log_scale, bias = (np.pad(to_float64(one), (before, 0)) for one in (layer.log_scale, layer.bias))
        shape = (-1, 1, 1) if images and layout.order == "NCHW" else (-1,)
        self.scale = round_array(f"{name}/scale", np.exp(log_scale).reshape(shape))
        self.bias = round_array(f"{name}/bias", bias.reshape(shape))
        self.log_det = float(log_scale.sum())

    def forward(self, x: tf.Tensor, conditions: Any = None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Returns the output in the direction from x to v."""
        if log_dets is not None:
            log_dets.append(self.layout.count_positions(x) * self.log_det)
        return x * self.scale + self.bias

    def inverse(self, y: tf.Tensor, conditions: Any = None) -> tf.Tensor:
        """Returns the output in the direction from v to x."""
        return (y - self.bias) / self.scale


def fold_weight_norm(weights: WeightNorm) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel and the bias of a weight-normalised layer, float64."""
    direction = to_float64(weights.direction)
    norm = np.sqrt(np.sum(np.square(direction), axis=tuple(range(direction.ndim - 1))))
    return direction * (to_float64(weights.gain) / norm), to_float64(weights.bias)


class _DeployedWeight(Deployed):
    """A single weight of a layer that is deployed without folding."""

    def __init__(self, name: str, layout: Layout, value: np.ndarray):
        super().__init__(name, layout)
        self.value = round_array(name, value)


class _DeployedUnfolded(Deployed):
    """The base class of deployed layers whose weights are not folded; the layer needs images with channels last."""

    def __init__(self, layer: BaseLayer, name: str, layout: Layout):
        super().__init__(name, layout)
        self._layer = layer
        self.weights = tuple(
            _DeployedWeight(f"{name}/{key}", layout, to_float64(weight)) for key, weight in layer.tensors().items()
        )

    def _tensors(self) -> dict[str, tf.Tensor]:
        return {weight.name.rpartition("/")[2]: tf.convert_to_tensor(weight.value) for weight in self.weights}


class DeployedRegistered(_DeployedUnfolded):
    """A deployed registered layer at the end of a flow step, which applies the bijector of the model's layer."""

    def forward(self, x: tf.Tensor, conditions: Any = None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Returns the output in the direction from x to v."""
        x, bijector = self.layout.leave(x), self._layer.bijector(self._tensors())
        if log_dets is None:
            return self.layout.enter(bijector.forward(x))
        y, log_det = forward_and_log_det(bijector, x)
        log_dets.append(log_det)
        return self.layout.enter(y)

    def inverse(self, y: tf.Tensor, conditions: Any = None) -> tf.Tensor:
        """Returns the output in the direction from v to x."""
        return self.layout.enter(self._layer.bijector(self._tensors()).inverse(self.layout.leave(y)))


class DeployedConditioner(_DeployedUnfolded):
    """A deployed registered net of a coupling, which applies the function of the model's net."""

    def __call__(self, x: tf.Tensor, conditions: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the raw parameters of the transform, concatenated as channels; z is the last of the conditions."""
        z = conditions[-1] if self._layer.condition_size else None
        return self.layout.enter(self._layer.output(self._tensors(), self.layout.leave(x), z))


class Conditioning:
    """A collector of the matrices that the nets multiply z with, so that one product serves all nets."""

    def __init__(self) -> None:
        self.kernels: list[np.ndarray] = []
        self.biases: list[np.ndarray] = []

    def add(self, net: Any) -> int | None:
        """Returns the number of a net whose weights for z are added, or None for a net without z."""
        if not net.condition_size or isinstance(net, LocalConvNet):
            return None
        self.kernels.append(to_float64(net.condition_kernel))
        self.biases.append(to_float64(net.condition_bias))
        return len(self.kernels) - 1

    def linear(self, name: str, layout: Layout) -> DeployedLinear | None:
        """Returns one linear layer for all nets, their outputs concatenated; None if no net is conditioned on z."""
        if not self.kernels:
            return None
        return DeployedLinear(name, np.concatenate(self.kernels, 1), np.concatenate(self.biases), layout)


class DeployedNet(Deployed):
    """A deployed net of a coupling: three convolutions for images, three dense layers for vectors.

    `net` is a `ConvNet`, `LocalConvNet` or `MLP`, and `name` the path of the coupling.
    """

    def __init__(self, net: Any, name: str, layout: Layout, conditioning: Conditioning):
        super().__init__(name, layout)

        def linear(layer: str, kernel: str, bias: str) -> DeployedLinear:
            own_bias = getattr(net, bias, None)
            own_bias = None if own_bias is None else to_float64(own_bias)
            return DeployedLinear(f"{name}/{layer}", to_float64(getattr(net, kernel)), own_bias, layout)

        self.first, self.second = (linear(layer, layer, f"{layer}_bias") for layer in ("first", "second"))
        self.last = DeployedLinear(f"{name}/last", *fold_weight_norm(net.last), layout)
        # A net is conditioned on the vector z, by its number in the product, or on a feature map, by a convolution.
        self._number = conditioning.add(net)
        self.local = None
        if isinstance(net, LocalConvNet):
            self.local = linear("condition", "condition_kernel", "condition_bias")

    def __call__(self, x: tf.Tensor, conditions: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the raw parameters of the transform, concatenated as channels."""
        h = self.second(self.layout.elu(self.first(x)))
        if self._number is not None:
            h += conditions[self._number]
        if self.local is not None:
            h += self.local(conditions[0])
        return self.last(self.layout.elu(h))


class DeployedSplit:
    """A deployed split of channels into x_a and x_b."""

    def __init__(self, split: Any, channels: int, layout: Layout):
        # The model's split of the channels' numbers shows where each channel goes.
        self.kept, self.transformed = (
            tuple(np.asarray(numbers)[0].tolist()) for numbers in split(tf.range(channels)[None])
        )
        self._layout = layout
        order = [number for side in sorted((self.kept, self.transformed)) for number in side]
        self._consecutive = order == list(range(channels))
        self._alternating = order == [*range(0, channels, 2), *range(1, channels, 2)] and channels % 2 == 0
        self._places = np.argsort(order).tolist()

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the channels x_a and x_b of x."""
        first, second = sorted((self.kept, self.transformed))
        if self._consecutive:
            low, high = self._layout.split(x, [len(first), len(second)])
        elif self._alternating:
            low, high = self._layout.split_even_and_odd(x)
        else:
            low, high = self._layout.take(x, first), self._layout.take(x, second)
        return (low, high) if first is self.kept else (high, low)

    def merge(self, x_a: tf.Tensor, x_b: tf.Tensor) -> tf.Tensor:
        """Returns x with its channels from x_a and x_b in their original order."""
        maps = (x_a, x_b) if self.kept < self.transformed else (x_b, x_a)
        if self._consecutive:
            return self._layout.join(maps)
        if self._alternating:
            return self._layout.interleave(*maps)
        return self._layout.take(self._layout.join(maps), self._places)


class DeployedCoupling(Deployed):
    """A deployed coupling: x_a stays, and x_b is transformed with parameters that a net computes from x_a and z."""

    def __init__(self, layer: Coupling, name: str, layout: Layout, channels: int, conditioning: Conditioning):
        super().__init__(name, layout)
        self._split = DeployedSplit(layer.split, channels, layout)
        self._transform, self._alpha = TRANSFORMS[layer.transform], layer.alpha
        self.net: DeployedNet | DeployedConditioner
        if type(layer.net) in (ConvNet, LocalConvNet, MLP):
            self.net = DeployedNet(layer.net, name, layout, conditioning)
        else:
            self.net = DeployedConditioner(layer.net, f"{name}/net", layout)

    def forward(self, x: tf.Tensor, conditions: Sequence[tf.Tensor] = (), log_dets: LogDets | None = None) -> tf.Tensor:
        """Returns the output in the direction from x to v."""
        x_a, x_b = self._split(x)
        bijector = self._bijector(x_a, conditions)
        if log_dets is None:
            return self._split.merge(x_a, bijector.forward(x_b))
        y_b, log_det = forward_and_log_det(bijector, x_b)
        log_dets.append(log_det)
        return self._split.merge(x_a, y_b)

    def inverse(self, y: tf.Tensor, conditions: Sequence[tf.Tensor] = ()) -> tf.Tensor:
        """Returns the output in the direction from v to x."""
        y_a, y_b = self._split(y)
        return self._split.merge(y_a, self._bijector(y_a, conditions).inverse(y_b))

    def _bijector(self, x_a: tf.Tensor, conditions: Sequence[tf.Tensor]) -> tfb.Bijector:
        sizes = [len(self._split.transformed)] * self._transform.parameters
        return self._transform.bijector(self.layout.split(self.net(x_a, conditions), sizes), self._alpha)
