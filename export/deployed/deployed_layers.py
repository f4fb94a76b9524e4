"""Deployed layers, the layers of an export: linear maps, 1x1 convolutions with their inverses, actnorms, couplings.

Every invertible layer has two methods. Their `conditions` are a sequence: for each coupling net the term that z adds to
its hidden layer, and at the end z.

    forward_and_log_det(x, conditions) -> (y, log_det)     x -> v
    inverse(y, conditions) -> x                            v -> x
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from export.deployed.graph import Deployed, Layout, LogDet, round_to_float32, to_float64
from tfdecouple.bijectors import with_log_det
from tfdecouple.errors import InversionError
from tfdecouple.layers import MLP, ActNorm, ConvNet, Coupling, LocalConvNet
from tfdecouple.layers.base import BaseLayer
from tfdecouple.layers.conditioners import WeightNorm
from tfdecouple.transforms import TRANSFORMS

Conditions = Sequence[tf.Tensor]
Output = tuple[tf.Tensor, LogDet]


class DeployedLinear(Deployed):
    """A linear map with a bias in an export: a zero-padded convolution of images, or a matrix that multiplies vectors.

    `kernel` is float64: `[height, width, inputs, outputs]`, or for vectors `[inputs, outputs]`. If `unsqueezes` is
    true, each group of four output channels becomes a block of 2 x 2 pixels.
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
        self.kernel = round_to_float32(f"{name}/kernel", kernel)
        self.bias = None if bias is None else round_to_float32(f"{name}/bias", bias)
        self._strides, self._unsqueezes = strides, unsqueezes

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Applies this linear map to images in the graph's layout (NHWC or NCHW), or to vectors `[batch, inputs]`."""
        if len(self.kernel.shape) == 2:
            y = tf.matmul(x, self.kernel)
            return y if self.bias is None else y + self.bias
        around = [[size // 2] * 2 for size in self.kernel.shape[:2]]
        padding = [[0, 0], [0, 0], *around] if self.layout.order == "NCHW" else [[0, 0], *around, [0, 0]]
        y = tf.nn.conv2d(x, self.kernel, self._strides, padding, data_format=self.layout.order)
        y = y if self.bias is None else tf.nn.bias_add(y, self.bias, self.layout.order)
        return self.layout.unsqueeze(y) if self._unsqueezes else y


class DeployedMix(Deployed):
    """An invertible linear map y = W x + b in an export, over the channels of images or vectors, and its inverse."""

    def __init__(self, name: str, matrix: np.ndarray, bias: np.ndarray, layout: Layout, images: bool):
        super().__init__(name, layout)
        try:
            inverse = np.linalg.inv(matrix)
        except np.linalg.LinAlgError as error:
            raise InversionError(f"the matrix of {name} cannot be inverted; the run cannot be exported") from error

        def make_linear(direction: str, matrix: np.ndarray, bias: np.ndarray) -> DeployedLinear:
            kernel = matrix.T[None, None] if images else matrix.T
            return DeployedLinear(f"{name}/{direction}", kernel, bias, layout)

        self.mix = make_linear("mix", matrix, bias)
        self.unmix = make_linear("unmix", inverse, -inverse @ bias)
        self.log_det = float(np.linalg.slogdet(matrix)[1])

    def forward_and_log_det(self, x: tf.Tensor, conditions: Conditions = ()) -> Output:
        """Returns y = W x + b, with this layer's matrix W over the channels of x, and the log-determinant."""
        return self.mix(x), self.layout.count_pixels(x) * self.log_det

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Returns the x for which W x + b, with this layer's matrix W and bias b, is y."""
        return self.unmix(y)


class DeployedActNorm(Deployed):
    """An actnorm in an export: scales and shifts each channel; the first `before` channels stay unchanged."""

    def __init__(self, layer: ActNorm, name: str, layout: Layout, before: int = 0, images: bool = True):
        super().__init__(name, layout)
        log_scale, bias = (np.pad(to_float64(one), (before, 0)) for one in (layer.log_scale, layer.bias))
        shape = (-1, 1, 1) if images and layout.order == "NCHW" else (-1,)
        self.scale = round_to_float32(f"{name}/scale", np.exp(log_scale).reshape(shape))
        self.bias = round_to_float32(f"{name}/bias", bias.reshape(shape))
        self.log_det = float(log_scale.sum())

    def forward_and_log_det(self, x: tf.Tensor, conditions: Conditions = ()) -> Output:
        """Scales and shifts each channel by this actnorm; returns scale * x + bias, and the log-determinant."""
        return x * self.scale + self.bias, self.layout.count_pixels(x) * self.log_det

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Inverts this actnorm: returns (y - bias) / scale, with a scale and a bias for each channel."""
        return (y - self.bias) / self.scale


def fold_weight_norm(weights: WeightNorm) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel gain * direction / |direction| and the bias of a weight-normalised layer, both float64."""
    direction = to_float64(weights.direction)
    norm = np.sqrt(np.sum(np.square(direction), axis=tuple(range(direction.ndim - 1))))
    return direction * (to_float64(weights.gain) / norm), to_float64(weights.bias)


class DeployedUnfolded(Deployed):
    """The base class of an export's layers that keep the weights of the model's layer and call it on NHWC images."""

    def __init__(self, layer: BaseLayer, name: str, layout: Layout):
        super().__init__(name, layout)
        self._layer, self._keys = layer, tuple(layer.read_tensors())
        for key, weight in layer.read_tensors().items():
            setattr(self, f"weight_{key}", round_to_float32(f"{name}/{key}", to_float64(weight)))

    def read_weights(self) -> dict[str, tf.Tensor]:
        """Returns the weights of this layer as {name of the weight in the model's layer: float32 tensor}."""
        return {key: tf.convert_to_tensor(getattr(self, f"weight_{key}")) for key in self._keys}


class DeployedRegistered(DeployedUnfolded):
    """A further layer of flow steps, from the registry `STEP_LAYERS`, in an export; it runs the layer's bijector."""

    def forward_and_log_det(self, x: tf.Tensor, conditions: Conditions = ()) -> Output:
        """Returns y, the value at x of the bijector of the model's layer, and the log-determinant."""
        y, log_det = with_log_det(self._layer.bijector(self.read_weights())).forward_and_log_det(self.layout.to_nhwc(x))
        return self.layout.from_nhwc(y), log_det

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Returns the x at which the bijector of the model's layer has the value y."""
        return self.layout.from_nhwc(self._layer.bijector(self.read_weights()).inverse(self.layout.to_nhwc(y)))


class DeployedConditioner(DeployedUnfolded):
    """An export's coupling net whose class a user has added to `CONDITIONERS`; it calls the net of the model."""

    def __call__(self, x: tf.Tensor, conditions: Conditions) -> tf.Tensor:
        z = conditions[-1] if self._layer.condition_size else None
        return self.layout.from_nhwc(self._layer.output(self.read_weights(), self.layout.to_nhwc(x), z))


class Conditioning:
    """A collector of the matrices by which coupling nets multiply z, so that one matrix product serves all nets."""

    def __init__(self) -> None:
        self.kernels: list[np.ndarray] = []
        self.biases: list[np.ndarray] = []

    def add_net(self, net: Any) -> int | None:
        """Adds the matrix by which `net` multiplies z; returns its index, or None if no vector z enters the net."""
        if not net.condition_size or isinstance(net, LocalConvNet):
            return None
        self.kernels.append(to_float64(net.condition_kernel))
        self.biases.append(to_float64(net.condition_bias))
        return len(self.kernels) - 1

    def make_linear(self, name: str, layout: Layout) -> DeployedLinear | None:
        """Returns one linear map of z, the concatenated matrices of all added nets; None if no net takes a vector z."""
        if not self.kernels:
            return None
        return DeployedLinear(name, np.concatenate(self.kernels, 1), np.concatenate(self.biases), layout)


class DeployedNet(Deployed):
    """The net inside a coupling in an export: three convolutions for images, three dense layers for vectors.

    `net` is the model's net, a `ConvNet`, `LocalConvNet` or `MLP`, and `name` is the path of the coupling.
    """

    def __init__(self, net: Any, name: str, layout: Layout, conditioning: Conditioning):
        super().__init__(name, layout)

        def make_linear(layer: str, kernel: str, bias_name: str) -> DeployedLinear:
            bias = getattr(net, bias_name, None)
            bias = None if bias is None else to_float64(bias)
            return DeployedLinear(f"{name}/{layer}", to_float64(getattr(net, kernel)), bias, layout)

        self.first, self.second = (make_linear(layer, layer, f"{layer}_bias") for layer in ("first", "second"))
        self.last = DeployedLinear(f"{name}/last", *fold_weight_norm(net.last), layout)
        # A vector z enters by a matrix product that all nets share, and a feature map z by a convolution of this net.
        self._index = conditioning.add_net(net)
        self.local = None
        if isinstance(net, LocalConvNet):
            self.local = make_linear("condition", "condition_kernel", "condition_bias")

    def __call__(self, x: tf.Tensor, conditions: Conditions) -> tf.Tensor:
        h = self.second(self.layout.elu(self.first(x)))
        if self._index is not None:
            h += conditions[self._index]
        if self.local is not None:
            h += self.local(conditions[0])
        return self.last(self.layout.elu(h))


class DeployedSplit:
    """The split of channels in an export: x_a, which the coupling leaves unchanged, and x_b, which it transforms."""

    def __init__(self, split: Any, channels: int, layout: Layout):
        # Splitting the indices of the channels, as if they were an image, shows to which half each channel goes.
        self.unchanged, self.transformed = (
            tuple(np.asarray(indices)[0].tolist()) for indices in split(tf.range(channels)[None])
        )
        self._layout = layout
        order = [index for side in sorted((self.unchanged, self.transformed)) for index in side]
        self._consecutive = order == list(range(channels))
        self._alternating = order == [*range(0, channels, 2), *range(1, channels, 2)] and channels % 2 == 0
        self._inverse_order = np.argsort(order).tolist()

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first, second = sorted((self.unchanged, self.transformed))
        if self._consecutive:
            low, high = self._layout.split_channels(x, [len(first), len(second)])
        elif self._alternating:
            low, high = self._layout.split_even_and_odd(x)
        else:
            low, high = self._layout.gather_channels(x, first), self._layout.gather_channels(x, second)
        return (low, high) if first is self.unchanged else (high, low)

    def merge_channels(self, x_a: tf.Tensor, x_b: tf.Tensor) -> tf.Tensor:
        """Returns the x that this split divides into x_a and x_b."""
        sides = (x_a, x_b) if self.unchanged < self.transformed else (x_b, x_a)
        if self._consecutive:
            return self._layout.concat_channels(sides)
        if self._alternating:
            return self._layout.interleave_channels(*sides)
        return self._layout.gather_channels(self._layout.concat_channels(sides), self._inverse_order)


class DeployedCoupling(Deployed):
    """A coupling in an export: x_a stays; x_b is transformed with parameters that a net computes from x_a and z."""

    def __init__(self, layer: Coupling, name: str, layout: Layout, channels: int, conditioning: Conditioning):
        super().__init__(name, layout)
        self._split = DeployedSplit(layer.split, channels, layout)
        self._transform, self._alpha = TRANSFORMS[layer.transform], layer.alpha
        self.net: DeployedNet | DeployedConditioner
        if type(layer.net) in (ConvNet, LocalConvNet, MLP):
            self.net = DeployedNet(layer.net, name, layout, conditioning)
        else:
            self.net = DeployedConditioner(layer.net, f"{name}/net", layout)

    def forward_and_log_det(self, x: tf.Tensor, conditions: Conditions = ()) -> Output:
        """Runs this coupling: returns x with half of its channels transformed, and the log-determinant."""
        x_a, x_b = self._split(x)
        y_b, log_det = with_log_det(self._make_bijector(x_a, conditions)).forward_and_log_det(x_b)
        return self._split.merge_channels(x_a, y_b), log_det

    def inverse(self, y: tf.Tensor, conditions: Conditions = ()) -> tf.Tensor:
        """Inverts this coupling: returns y with the inverse transform applied to the half that was transformed."""
        y_a, y_b = self._split(y)
        return self._split.merge_channels(y_a, self._make_bijector(y_a, conditions).inverse(y_b))

    def _make_bijector(self, x_a: tf.Tensor, conditions: Conditions) -> tfb.Bijector:
        widths = [len(self._split.transformed)] * self._transform.parameters
        parameters = self.layout.split_channels(self.net(x_a, conditions), widths)
        return self._transform.bijector(parameters, self._alpha)
