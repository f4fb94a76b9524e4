"""What all deployed layers share: arrays in their fields, replaced by name, and the order of axes in a graph."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfdecouple.errors import InversionError

# A numpy array, or the tensor, placeholder or variable that a graph reads in its place.
Array = Any
# Takes the log-determinants that are met on the way, each `[batch]` or one number for every image.
LogDets = list[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployed:
    """A layer as it is deployed: its arrays and inner layers are its fields, its arithmetic is TensorFlow.

    Attributes:
        name: path of the layer, such as "flow/level_0_part_0_step_1"; its arrays and operations are named `NAME/...`.
    """

    name: str

    def arrays(self) -> dict[str, Array]:
        """Returns all arrays of the layer and of the layers within it, by their names `NAME/FIELD`."""
        return {f"{layer.name}/{field}": value for layer in self.layers() for field, value in layer._own_arrays()}

    def replaced(self, function: Callable[[str, Array], Array]) -> Self:
        """Returns a copy in which `function(name, array)` stands in place of each array."""

        def copy(value: Any) -> Any:
            if isinstance(value, Deployed):
                return value.replaced(function)
            return tuple(map(copy, value)) if isinstance(value, tuple) else value

        changed = {field.name: copy(getattr(self, field.name)) for field in dataclasses.fields(self)}
        changed |= {field: function(f"{self.name}/{field}", value) for field, value in self._own_arrays()}
        return dataclasses.replace(self, **changed)

    def layers(self) -> Iterator[Deployed]:
        """Yields the layer itself and all layers within it."""
        yield self
        for field in dataclasses.fields(self):
            for inner in _within(getattr(self, field.name)):
                yield from inner.layers()

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which operations go by the layer's name."""
        return scope(self.name)

    def _own_arrays(self) -> list[tuple[str, Array]]:
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return [(name, value) for name, value in values if isinstance(value, np.ndarray | tf.Tensor | tf.Variable)]


def scope(name: str) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which operations are named `NAME/...`, wherever it is entered."""
    return tf.name_scope(f"{name}/")


def values(variable: Any) -> np.ndarray:
    """Returns a weight of the model in float64, in which everything is multiplied out."""
    return np.asarray(variable, np.float64)


def rounded(name: str, value: np.ndarray) -> np.ndarray:
    """Returns an array as it is deployed, float32.

    Raises:
        InversionError: where it is not finite, naming it.
    """
    if not np.all(np.isfinite(value)):
        raise InversionError(f"weight {name} is not finite; the run has diverged and cannot be exported")
    return np.ascontiguousarray(value, np.float32)


def _within(value: Any) -> Iterator[Deployed]:
    if isinstance(value, Deployed):
        yield value
    elif isinstance(value, tuple):
        for inner in value:
            yield from _within(inner)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of the axes of images within a graph.

    Attributes:
        order: "NHWC", or "NCHW" as ONNX has it. Vectors are `[batch, channels]` in both.

    >>> x = tf.reshape(tf.range(8), [1, 4, 1, 2])
    >>> even, odd = Layout("NCHW").even_and_odd(x)
    >>> even[0, :, 0].numpy().tolist(), bool(tf.reduce_all(Layout("NCHW").interleaved(even, odd) == x))
    ([[0, 1], [4, 5]], True)
    """

    order: str = "NHWC"

    @property
    def axis(self) -> int:
        """Which axis holds the channels, of images and of vectors."""
        return 1 if self.order == "NCHW" else -1

    def enter(self, images: tf.Tensor) -> tf.Tensor:
        """Brings `[batch, height, width, channels]` into this order."""
        return tf.transpose(images, [0, 3, 1, 2]) if self.order == "NCHW" else images

    def leave(self, images: tf.Tensor) -> tf.Tensor:
        """Undoes `enter`."""
        return tf.transpose(images, [0, 2, 3, 1]) if self.order == "NCHW" else images

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Returns the shape of an image."""
        return (channels, height, width) if self.order == "NCHW" else (height, width, channels)

    def flattened(self, height: int, width: int, channels: int) -> np.ndarray:
        """Returns, for each entry of a flattened image, its number in one of `[height, width, channels]`."""
        every = np.arange(height * width * channels).reshape(height, width, channels)
        return (every.transpose(2, 0, 1) if self.order == "NCHW" else every).ravel()

    def positions(self, x: tf.Tensor) -> int:
        """Returns at how many positions there are channels: the pixels of an image, 1 for a vector."""
        return math.prod(x.shape[1:]) // x.shape[self.axis]

    def split(self, x: tf.Tensor, sizes: Sequence[int]) -> list[tf.Tensor]:
        """Splits the channels."""
        return tf.split(x, sizes, self.axis) if len(sizes) > 1 else [x]

    def pieces(self, x: tf.Tensor, sizes: Sequence[int]) -> list[tf.Tensor]:
        """Splits the channels into any number of pieces.

        In ONNX each is a slice: WebGPU computes a Split by one shader with a buffer for each output, of which it has
        8 to 10.
        """
        if self.order != "NCHW":
            return self.split(x, sizes)
        ends = itertools.accumulate(sizes)
        return [x[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def join(self, maps: Sequence[tf.Tensor]) -> tf.Tensor:
        """Puts the channels of maps beside each other."""
        return tf.concat(maps, self.axis) if len(maps) > 1 else maps[0]

    def taken(self, x: tf.Tensor, channels: Sequence[int]) -> tf.Tensor:
        """Takes channels by their numbers."""
        return tf.gather(x, tf.constant(channels, tf.int32), axis=self.axis)

    def even_and_odd(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns channels 0, 2, 4, ... and channels 1, 3, 5, ..."""
        if self.order == "NCHW":
            return x[:, ::2], x[:, 1::2]
        # A hundredth of the time that TensorFlow takes for slices with a step along the last axis.
        even, odd = tf.unstack(tf.reshape(x, [-1, *x.shape[1:-1], x.shape[-1] // 2, 2]), axis=-1)
        return even, odd

    def interleaved(self, even: tf.Tensor, odd: tf.Tensor) -> tf.Tensor:
        """Undoes `even_and_odd`."""
        if self.order == "NCHW":
            channels, *others = even.shape[1:]
            return tf.reshape(tf.stack([even, odd], 2), [-1, 2 * channels, *others])
        # One long transposition takes half of the time that `tf.stack` along the last axis takes.
        pairs = tf.transpose(tf.stack([tf.reshape(even, [-1]), tf.reshape(odd, [-1])]))
        return tf.reshape(pairs, [-1, *even.shape[1:-1], 2 * even.shape[-1]])

    def squeezed(self, x: tf.Tensor) -> tf.Tensor:
        """Makes channels of squares of four pixels, the sub-pixel as their slow index."""
        return tf.nn.space_to_depth(x, 2, self.order)

    def unsqueezed(self, x: tf.Tensor) -> tf.Tensor:
        """Undoes `squeezed`."""
        return tf.nn.depth_to_space(x, 2, self.order)

    def as_pixel(self, vectors: tf.Tensor) -> tf.Tensor:
        """Gives vectors `[batch, channels]` the axes of an image of one pixel."""
        return tf.reshape(vectors, [-1, *self.shape(1, 1, vectors.shape[-1])])

    def elu(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x above 0 and exp(x) - 1 below."""
        if self.order == "NHWC":
            return tf.nn.elu(x)
        # ONNX Runtime computes Elu on one thread and without vectors: it took a third of the whole time. These four
        # say the same, since exp(0) - 1 = 0 <= x above 0 and exp(x) - 1 >= x below, and take a third of Elu's time.
        # (`formats/onnx.py` makes a Clip of the minimum.)
        return tf.maximum(x, tf.exp(tf.minimum(x, 0.0)) - 1.0)
