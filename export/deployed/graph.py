"""The base class of deployed layers (the layers of an export), and the layout (order of axes) of images."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfdecouple.errors import InversionError
from tfdecouple.numerics.arithmetic import get_sizes

# A weight: a NumPy array, or the tensor, placeholder or variable that a graph reads instead.
Array = Any
# A log-determinant: a tensor `[batch]`, or a scalar or a Python number that is equal for all images.
LogDet = Any


class Deployed:
    """The base class of an export's layers: attributes are weight arrays and inner layers, methods build the graph.

    Args:
        name: the path of the layer, such as "flow/level_0_part_0_step_1"; its arrays are named `NAME/ATTRIBUTE`.
        layout: the layout of the images.
    """

    def __init__(self, name: str, layout: Layout):
        self.name, self.layout = name, layout

    def collect_arrays(self) -> dict[str, Array]:
        """Returns {`NAME/ATTRIBUTE`: array} of the weights of this layer and of its inner layers, at any depth."""
        layers = self.iterate_layers()
        return {f"{layer.name}/{key}": array for layer in layers for key, array in layer._list_own_arrays().items()}

    def replace_arrays(self, function: Callable[[str, Array], Array]) -> Self:
        """Returns a copy of this layer in which `function(name, array)` replaces each weight, also of inner layers."""

        def copy_value(value: Any) -> Any:
            if isinstance(value, Deployed):
                return value.replace_arrays(function)
            return tuple(map(copy_value, value)) if isinstance(value, tuple) else value

        new = copy.copy(self)
        vars(new).update({key: copy_value(value) for key, value in vars(self).items()})
        own_arrays = self._list_own_arrays().items()
        vars(new).update({key: function(f"{self.name}/{key}", array) for key, array in own_arrays})
        return new

    def iterate_layers(self) -> Iterator[Deployed]:
        """Yields this layer and all its inner layers, at any depth."""

        def iterate_inside(value: Any) -> Iterator[Deployed]:
            if isinstance(value, Deployed):
                yield from value.iterate_layers()
            elif isinstance(value, tuple):
                for one in value:
                    yield from iterate_inside(one)

        yield self
        for value in vars(self).values():
            yield from iterate_inside(value)

    def _list_own_arrays(self) -> dict[str, Array]:
        kinds = np.ndarray | tf.Tensor | tf.Variable
        return {key: value for key, value in vars(self).items() if isinstance(value, kinds)}


def to_float64(variable: Any) -> np.ndarray:
    """Converts a weight of the model to a float64 array; weights are folded in this precision."""
    return np.asarray(variable, np.float64)


def round_to_float32(name: str, value: np.ndarray) -> np.ndarray:
    """Rounds the folded weight `name` to float32; InversionError if an entry is not finite."""
    if not np.all(np.isfinite(value)):
        raise InversionError(f"weight {name} is not finite; the run has diverged and cannot be exported")
    return np.ascontiguousarray(value, np.float32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of images within a graph: the order of axes, and operations on channels in this order.

    Attributes:
        order: the order of axes, "NHWC", or "NCHW" for ONNX. Vectors are `[batch, channels]` in both layouts.

    >>> x = tf.reshape(tf.range(8), [1, 4, 1, 2])
    >>> even, odd = Layout("NCHW").split_even_and_odd(x)
    >>> even[0, :, 0].numpy().tolist(), bool(tf.reduce_all(Layout("NCHW").interleave_channels(even, odd) == x))
    ([[0, 1], [4, 5]], True)
    """

    order: str = "NHWC"

    @property
    def axis(self) -> int:
        """The index of the channel axis of images and vectors in this layout, an int: 1 for NCHW, -1 for NHWC."""
        return 1 if self.order == "NCHW" else -1

    def from_nhwc(self, images: tf.Tensor) -> tf.Tensor:
        """Transposes images `[batch, height, width, channels]` to the axes of this layout."""
        return tf.transpose(images, [0, 3, 1, 2]) if self.order == "NCHW" else images

    def to_nhwc(self, images: tf.Tensor) -> tf.Tensor:
        """Transposes images from the axes of this layout to `[batch, height, width, channels]`."""
        return tf.transpose(images, [0, 2, 3, 1]) if self.order == "NCHW" else images

    def order_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Returns the three sizes of an image in this layout's order: (channels, height, width) for NCHW."""
        return (channels, height, width) if self.order == "NCHW" else (height, width, channels)

    def order_flattened(self, height: int, width: int, channels: int) -> np.ndarray:
        """Returns int `[n]`: for each entry of an image flattened in this layout, its index in the NHWC image."""
        indices = np.arange(height * width * channels).reshape(height, width, channels)
        return (indices.transpose(2, 0, 1) if self.order == "NCHW" else indices).ravel()

    def count_pixels(self, x: tf.Tensor) -> int | tf.Tensor:
        """Returns height * width of images x in this layout, or 1 for vectors; a tensor if a side is unknown."""
        count = math.prod(get_sizes(x)[2:] if self.order == "NCHW" else get_sizes(x)[1:-1])
        return count if isinstance(count, int) else tf.cast(count, tf.float32)

    def split_channels(self, x: tf.Tensor, widths: Sequence[int]) -> list[tf.Tensor]:
        """Splits x along its channels into groups; `widths` has the count of channels in each group."""
        return tf.split(x, widths, self.axis) if len(widths) > 1 else [x]

    def slice_channels(self, x: tf.Tensor, widths: Sequence[int]) -> list[tf.Tensor]:
        """Splits x along its channels as `split_channels` does, in ONNX by slices instead of the operator Split.

        WebGPU computes a Split with one shader that has a buffer for each output, and a shader can have only 8 to 10
        buffers.
        """
        if self.order != "NCHW":
            return self.split_channels(x, widths)
        ends = itertools.accumulate(widths)
        return [x[:, end - width : end] for width, end in zip(widths, ends, strict=True)]

    def concat_channels(self, arrays: Sequence[tf.Tensor]) -> tf.Tensor:
        """Concatenates arrays along their channels."""
        return tf.concat(arrays, self.axis) if len(arrays) > 1 else arrays[0]

    def gather_channels(self, x: tf.Tensor, channels: Sequence[int]) -> tf.Tensor:
        """Returns the channels of x with the indices `channels`, in this order."""
        return tf.gather(x, tf.constant(channels, tf.int32), axis=self.axis)

    def split_even_and_odd(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the channels 0, 2, 4, ... of x and the channels 1, 3, 5, ... of x."""
        if self.order == "NCHW":
            return x[:, ::2], x[:, 1::2]
        # Slices with a step along the last axis would take a hundred times as long in TensorFlow.
        even, odd = tf.unstack(tf.reshape(x, [-1, *get_sizes(x)[1:-1], x.shape[-1] // 2, 2]), axis=-1)
        return even, odd

    def interleave_channels(self, even: tf.Tensor, odd: tf.Tensor) -> tf.Tensor:
        """Inverts `split_even_and_odd`: returns an array with the channels of `even` and `odd` in turn."""
        if self.order == "NCHW":
            channels, *others = get_sizes(even)[1:]
            return tf.reshape(tf.stack([even, odd], 2), [-1, 2 * channels, *others])
        # `tf.stack` along the last axis would take twice as long as one long transposition.
        pairs = tf.transpose(tf.stack([tf.reshape(even, [-1]), tf.reshape(odd, [-1])]))
        return tf.reshape(pairs, [-1, *get_sizes(even)[1:-1], 2 * even.shape[-1]])

    def squeeze(self, x: tf.Tensor) -> tf.Tensor:
        """Turns blocks of 2 x 2 pixels into pixels of four times the channels; channels of a pixel stay together."""
        return tf.nn.space_to_depth(x, 2, self.order)

    def unsqueeze(self, x: tf.Tensor) -> tf.Tensor:
        """Inverts `squeeze`: turns each pixel into a block of 2 x 2 pixels with a quarter of the channels."""
        return tf.nn.depth_to_space(x, 2, self.order)

    def as_one_pixel(self, vectors: tf.Tensor) -> tf.Tensor:
        """Returns vectors `[batch, channels]` as images of one pixel in this layout."""
        return tf.reshape(vectors, [-1, *self.order_shape(1, 1, vectors.shape[-1])])

    def elu(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the ELU of x: x if x is above 0, else exp(x) - 1."""
        if self.order == "NHWC":
            return tf.nn.elu(x)
        # ONNX Runtime computes Elu slowly, on one thread and without vector instructions. These four operations take a
        # third of the time. They are equal to Elu, because exp(0) - 1 = 0 <= x above 0, and exp(x) - 1 >= x below.
        # `formats/onnx.py` replaces the minimum by a Clip.
        return tf.maximum(x, tf.exp(tf.minimum(x, 0.0)) - 1.0)
