"""Tests of augmentation, alone and in training batches."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from helpers.numbered import (
    SIZE,
    memory_source,
    numbered_images,
    take,
)

from tfdecouple.config import DataConfig
from tfdecouple.data.batches import augment


class TestAugmentation:
    @staticmethod
    def _candidates(image: np.ndarray, pad: int, flip: bool) -> list[np.ndarray]:
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        size = len(image)
        crops = [padded[y : y + size, x : x + size] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        return crops + [crop[:, ::-1] for crop in crops] if flip else crops

    @pytest.mark.parametrize(("pad", "flip"), [(0, True), (2, False), (2, True), (SIZE - 2, False)])
    def test_agrees_with_numpy_and_reaches_every_case(self, pad: int, flip: bool) -> None:
        image = numbered_images(1)[0]
        candidates = [candidate.tobytes() for candidate in self._candidates(image, pad, flip)]
        assert len(set(candidates)) == len(candidates)
        draws = 20 * len(candidates)

        def one(number: tf.Tensor) -> tf.Tensor:
            seed = tf.stack([tf.constant(5, tf.int64), number])
            return augment(tf.constant(image), seed, horizontal_flip=flip, pad_and_crop=pad)

        results = tf.data.Dataset.range(draws).map(one)
        counts = dict.fromkeys(candidates, 0)
        for result in results.as_numpy_iterator():
            assert result.dtype == np.uint8 and result.shape == image.shape
            counts[result.tobytes()] += 1
        # Each case is expected 20 times; a uniform draw misses none and favours none.
        assert min(counts.values()) >= 3 and max(counts.values()) <= 50

    def test_differs_between_epochs_and_between_images(self) -> None:
        image = numbered_images(1)
        source = memory_source(np.repeat(image, 12, axis=0))
        config = DataConfig(pad_and_crop=3)
        epochs = [np.concatenate([batch["image"] for batch in take(source, config, 3, start_step=s)]) for s in (0, 3)]
        assert len({picture.tobytes() for picture in epochs[0]}) > 3
        assert not np.array_equal(epochs[0], epochs[1])

    def test_flips_about_half(self) -> None:
        image = numbered_images(1)
        batches = take(
            memory_source(np.repeat(image, 400, axis=0)), DataConfig(horizontal_flip=True), 1, batch_size=400
        )
        flipped = sum(np.array_equal(picture, image[0, :, ::-1]) for picture in batches[0]["image"])
        kept = sum(np.array_equal(picture, image[0]) for picture in batches[0]["image"])
        assert flipped + kept == 400 and 150 < flipped < 250
