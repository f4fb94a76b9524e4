"""What users give to Keras' methods: images, with or without labels, as arrays, data sets or other iterables."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.arguments import as_labels, as_tensor, require_images
from tfdecouple.config import ModelConfig
from tfdecouple.errors import DataError, UserError, warn_user


def unpacked(data: Any) -> tuple[Any, Any]:
    """Returns the images of what Keras hands to a step, or a user to `fit`, and the labels beside them, or None.

    Args:
        data: images; a tuple of images and labels; or a dict with `image` and perhaps `label`, as TensorFlow Datasets
            gives it.

    Raises:
        UserError: for weights of images.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise UserError("every image counts alike in the bound: leave out sample_weight and class_weight")
    # fit((images, labels)) is to Keras one input of two parts.
    if isinstance(images, tuple | list) and labels is None and 1 <= len(images) <= 2 and _is_arrays(images):
        images, labels = [*images, None][:2]
    if isinstance(images, dict):
        if "image" not in images:
            raise DataError(f"the data has {', '.join(map(str, images))}; it must have 'image'")
        images, labels = images["image"], images.get("label", labels)
    return images, labels


def _is_arrays(parts: Any) -> bool:
    """Whether these are arrays of their own, and no list of numbers that is one array."""
    return all(hasattr(part, "shape") or tf.is_tensor(part) for part in parts)


def check(x: Any, y: Any, config: ModelConfig) -> None:
    """Refuses data that are no images of a model, or lack labels that it needs, before anything is done with them.

    Data that show what they hold only when they are read, such as generators, are checked as they are. Of a model that
    knows no labels, labels are passed over with a warning.

    Raises:
        DataError: for images of another type or shape, or labels that are missing or unknown.
    """
    if isinstance(x, tf.data.Dataset):
        images, labels = unpacked(x.element_spec)
        if tf.TensorShape(images.shape).rank == 3:
            raise DataError("the data set gives single images; call dataset.batch(64), or of another size, before")
        require_images(images, config.image_shape)
    elif is_lazy(x):
        labels = y
    else:
        images, labels = unpacked(x if y is None else (x, y))
        if not hasattr(images, "dtype"):
            images = as_tensor(images, "images", DataError)
        require_images(images, config.image_shape)
        if config.has_classes:
            as_labels(labels, len(images), config.classes, config.has_class_codes)
    if labels is not None and not config.has_classes:
        warn_user("this model knows no labels: those that are given are ignored")


def first_images(x: Any, count: int, seed: int) -> tuple[Any, Any]:
    """Takes images to start a model from.

    Args:
        x: what `fit` was given: of arrays images are drawn from all over them, of others the first are taken.
        count: how many are wanted; fewer come where there are fewer.
        seed: of that draw.

    Returns:
        The images, uint8 `[n, height, width, channels]`, and x, for a generator one that gives all of it again.
    """
    if isinstance(x, keras.utils.PyDataset):
        # None of one without an end.
        numbers = itertools.count() if x.num_batches is None else range(x.num_batches)
        return _gathered((x[number] for number in numbers), count)[0], x
    if is_lazy(x) or isinstance(x, tf.data.Dataset):
        images, read = _gathered(x, count)
        return images, (_again(read, x) if isinstance(x, Iterator) else x)
    images = np.asarray(unpacked(x)[0])
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return images[np.sort(chosen)], x


def _gathered(batches: Iterable[Any], count: int) -> tuple[np.ndarray, list[Any]]:
    """Returns the first images of some batches, and the batches that were read for them."""
    images, read, found = [], [], 0
    for batch in batches:
        read.append(batch)
        images.append(np.asarray(unpacked(batch)[0]))
        found += len(images[-1])
        if found >= count:
            break
    if not found:
        raise DataError("there are no images to train on")
    return np.concatenate(images)[:count], read


def _again(read: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # A generator in the end, which Keras takes; another iterator it would not.
    yield from itertools.chain(read, rest)


def as_keras_takes(x: Any) -> Any:
    """Returns data as they are, but a generator as one of tuples, which Keras wants of it."""
    if not isinstance(x, types.GeneratorType):
        return x
    return (batch if isinstance(batch, tuple) else (batch,) for batch in x)


def is_lazy(x: Any) -> bool:
    """Whether data come batch by batch, and show what they are only then."""
    is_array = isinstance(x, tuple | list | dict) or tf.is_tensor(x) or hasattr(x, "__array__")
    return isinstance(x, keras.utils.PyDataset) or not is_array
