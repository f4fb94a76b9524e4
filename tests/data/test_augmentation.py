"""Tests of augmentation, alone and in training batches."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.numbered import SIZE, memory_source, numbered_images, take

from tfdecouple.config import DataConfig
from tfdecouple.data.batches import augment


def candidates(image, pad, flip):
    """Returns all results that NumPy says augmentation may have."""
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    height, width, _ = image.shape
    crops = [padded[y : y + height, x : x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return crops + [crop[:, ::-1] for crop in crops] if flip else crops


@pytest.mark.parametrize(
    ("pad", "flip", "shape"),
    [
        (0, True, (SIZE, SIZE, 3)),
        (2, True, (SIZE, 12, 1)),
        (SIZE - 2, False, (SIZE, SIZE, 3)),
    ],
)
def test_agrees_with_numpy_and_reaches_every_case(pad, flip, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    counts = dict.fromkeys((candidate.tobytes() for candidate in candidates(image, pad, flip)), 0)
    config = DataConfig(horizontal_flip=flip, pad_and_crop=pad)

    def one(number):
        return augment(tf.constant(image), tf.stack([tf.constant(5, tf.int64), number]), config)

    for result in tf.data.Dataset.range(20 * len(counts)).map(one).as_numpy_iterator():
        assert result.dtype == np.uint8 and result.shape == image.shape
        counts[result.tobytes()] += 1
    # Each case is expected 20 times; a uniform draw misses none and favours none.
    assert min(counts.values()) >= 3 and max(counts.values()) <= 50


def test_differs_between_epochs_and_between_images():
    source = memory_source(np.repeat(numbered_images(1), 12, axis=0))
    config = DataConfig(pad_and_crop=3)
    epochs = [np.concatenate([batch["image"] for batch in take(source, config, 3, start_step=s)]) for s in (0, 3)]
    assert len({picture.tobytes() for picture in epochs[0]}) > 3
    assert not np.array_equal(epochs[0], epochs[1])
