"""A batch in shards that are computed side by side, so that every core has work of its own; and images in turn."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from tfdecouple.runtime.shapes import side_by_side, sizes

# What of a map a core's own cache holds beside weights; measured with caches of 1 MiB.
_CACHE_BYTES = 2**20

Transformation = Callable[..., tuple[tf.Tensor, ...]]
# A batch: one tensor, or the tensors of its shards.
Batch: TypeAlias = "tf.Tensor | list[tf.Tensor]"


def shard_count() -> int:
    """Returns in how many shards a batch of images is computed.

    They are as many as the process runs operations side by side for each thread of one operation, 1 where nobody has
    chosen these numbers (`tf.config.threading`). A GPU takes a batch whole.
    """
    threads, operations = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    if not threads or tf.config.get_visible_devices("GPU"):
        return 1
    return max(1, operations // threads)


def divides(x: tf.Tensor) -> bool:
    """Returns whether a batch is worth dividing: it holds images, one or more for each of several shards."""
    return len(x.shape) == 4 and x.shape[0] is not None and x.shape[0] >= shard_count() > 1


def run_in_shards(transformation: Transformation, x: tf.Tensor, *others: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
    """Runs a transformation on shards of a batch.

    A deep chain of small operations leaves threads idle: each operation waits for the one before it and divides its
    work among them. Two chains, each on a thread of its own, have nobody to wait for.

    Args:
        transformation: from x `[batch, ...]` and what else there is of each image to tensors, image by image.
        x: the batch, with an image or more for each shard.
        *others: z, a map or other tensors `[batch, ...]`; None where there is none.
    """
    divided = [[None] * shard_count() if other is None else _shards(other) for other in others]
    done = [transformation(*shard) for shard in zip(_shards(x), *divided, strict=True)]
    return tuple(map(joined, zip(*done, strict=True)))


def divided(x: tf.Tensor) -> Batch:
    """Returns the shards of a batch where it is worth dividing, else the batch as it is."""
    return _shards(x) if divides(x) else x


def joined(batch: Batch | tuple[tf.Tensor, ...]) -> tf.Tensor:
    """Returns a batch as one tensor."""
    return side_by_side(batch, 0) if isinstance(batch, list | tuple) else batch


def image_by_image(function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """Lets a function that treats each image by itself take batches in shards: it is run on each of them.

    >>> @image_by_image
    ... def scaled(x, factor):
    ...     return factor * x
    >>> [shard.numpy().tolist() for shard in scaled([tf.ones([1]), tf.ones([2])], 3.0)]
    [[3.0], [3.0, 3.0]]
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> Batch:
        batches = [argument for argument in arguments if isinstance(argument, list)]
        if not batches:
            return function(*arguments)
        shards = range(len(batches[0]))
        return [function(*(given[n] if isinstance(given, list) else given for given in arguments)) for n in shards]

    return run


def total(function: Callable[[tf.Tensor], tf.Tensor], batch: Batch) -> tf.Tensor:
    """Returns the sum of what a function gives for the shards of a batch."""
    shards = batch if isinstance(batch, list) else [batch]
    return tf.add_n([function(shard) for shard in shards])


def _shards(x: tf.Tensor) -> list[tf.Tensor]:
    """Returns the shards of a batch, one after the other."""
    count, shards = sizes(x)[0], shard_count()
    edges = [count * number // shards for number in range(shards + 1)]
    return [x[start:stop] for start, stop in itertools.pairwise(edges)]


def run_in_turn(
    function: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, width: int
) -> tf.Tensor:
    """Runs a function on some images at a time, so few that a map of theirs stays in the cache of a core.

    Where an operation takes several cores, or a GPU, a batch is run whole.

    Args:
        function: from x `[batch, height, width, channels]` and a condition of each image (or None), image by image.
        x: the batch.
        condition: vectors or maps, `[batch, ...]`, or None.
        width: channels of the widest map inside the function, of the dtype of x.
    """
    count = _images_in_turn(x, width)
    if not count or x.shape[0] <= count:
        return function(x, condition)
    done: list[tf.Tensor] = []
    for start in range(0, x.shape[0], count):
        some = slice(start, start + count)
        with tf.control_dependencies(done[-1:]):
            images = x[some]
        done.append(function(images, None if condition is None else condition[some]))
    return tf.concat(done, 0)


def _images_in_turn(x: tf.Tensor, width: int) -> int:
    """Returns how many images have maps of so many channels in the cache of a core; 0 for all of them."""
    alone = tf.config.threading.get_intra_op_parallelism_threads() == 1 and not tf.config.get_visible_devices("GPU")
    if not alone or not x.shape.is_fully_defined():
        return 0
    return max(1, _CACHE_BYTES // (math.prod(x.shape[1:-1]) * width * x.dtype.size))
