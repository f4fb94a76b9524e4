"""Linear maps as they are deployed: convolutions and products, the 1x1 convolution with its inverse, the actnorm."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
import tensorflow as tf

from export.deployed.graph import Array, Deployed, LogDets, rounded, values
from export.deployed.layout import Layout
from tfdecouple.errors import InversionError
from tfdecouple.layers import ActNorm
from tfdecouple.layers.nets import WeightNorm


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
