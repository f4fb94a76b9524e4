"""Images of a split by their indices, in batches."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import random_images
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data import Source, chosen_batches, open_source
from tfdecouple.data.splits import RecordSplit
from tfdecouple.errors import DataError


class TestChosenBatches:
    @staticmethod
    def check(source, size):
        every = next(source.examples("train").batch(size).as_numpy_iterator())
        batches = list(chosen_batches(source, "train", np.array([9, 2, 5, 2]), batch_size=2))
        assert [batch["index"].tolist() for batch in batches] == [[2, 5], [9]]
        for name in ("image", "label"):
            found = np.concatenate([batch[name] for batch in batches])
            np.testing.assert_array_equal(found, every[name][[2, 5, 9]])
        assert list(chosen_batches(source, "train", np.zeros(0), batch_size=2)) == []
        with pytest.raises(DataError, match=f"there is no image {size} in train"):
            list(chosen_batches(source, "train", np.array([0, size]), batch_size=2))

    @pytest.mark.parametrize("cache_gib", [4.0, 0.0])
    def test_of_folders_in_memory_and_on_disk(self, tmp_path, cache_gib):
        for split, count in {"train": 12, "validation": 1, "test": 1}.items():
            for number, image in enumerate(random_images(count)):
                (tmp_path / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(tmp_path / split / "ab"[number % 2] / f"{number}.png")
        self.check(open_source(DataConfig(source=f"folder:{tmp_path}", cache_gib=cache_gib), (8, 8, 3)), 12)

    def test_of_records_decodes_no_others(self):
        decoded = []

        def note(number):
            decoded.append(int(number))
            return np.full((8, 8, 3), number, np.uint8)

        def decode(record):
            image = tf.numpy_function(note, [record["number"]], tf.uint8)
            return tf.ensure_shape(image, [8, 8, 3]), tf.cast(record["number"], tf.int32)

        records = tf.data.Dataset.range(12).map(lambda number: {"number": number})
        split = RecordSplit(12, "all", records=records, decode=decode, window=4)
        source = Source(name="x", title="x", label_names=(), image_shape=(8, 8, 3), splits={"train": split})
        list(chosen_batches(source, "train", np.array([7, 3]), batch_size=2))
        assert sorted(decoded) == [3, 7]
        self.check(source, 12)
