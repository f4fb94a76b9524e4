import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.numbered import SIZE, numbered_images, one_line_error
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from tfdecouple.config import DataConfig
from tfdecouple.data.batches import load_images
from tfdecouple.data.sources import open_source
from tfdecouple.data.tfds import choose_tfds_splits

REAL_DATA = os.environ.get("TFDECOUPLE_DATA_DIR")


class TestTfds:
    @staticmethod
    def _open(data_dir, download=False, **options):
        options = {"source": "tfds:tiny_numbers", "validation_examples": 4, **options}
        return open_source(DataConfig(data_dir=data_dir, **options), (SIZE, SIZE, 3), download)

    @pytest.mark.parametrize("cache_gib", [1.0, 0.0])
    def test_splits_of_tfds_have_all_images_exactly(self, tiny_tfds, cache_gib):
        source = self._open(tiny_tfds, cache_gib=cache_gib)
        assert source.sizes == {"train": 26, "validation": 4, "test": 5}
        assert source.descriptions == {"train": "train[:-4]", "validation": "train[-4:]", "test": "test"}
        assert source.label_names == ("even", "odd") and "tiny_numbers/1.0.0" in source.title
        written = numbered_images(30)
        seen = []
        for split in ("train", "validation"):
            images, labels = load_images(source, split, source.sizes[split])
            number = images[:, 0, 0, 0]
            np.testing.assert_array_equal(images, written[number])
            np.testing.assert_array_equal(labels, number % 2)
            seen += number.tolist()
        assert sorted(seen) == list(range(30))

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ({"train": 9, "test": 3, "validation": 2}, ("train", "validation", "test")),
            ({"train": 9, "test": 3}, ("train[:-2]", "train[-2:]", "test")),
            ({"train": 9, "validation": 3}, ("train[:-2]", "train[-2:]", "validation")),
            ({"train": 9}, ("train[:-4]", "train[-4:-2]", "train[-2:]")),
        ],
    )
    def test_missing_splits_of_tfds_are_held_out(self, sizes, expected):
        chosen = choose_tfds_splits("some", sizes, 2)
        assert (chosen["train"], chosen["validation"], chosen["test"]) == expected

    def test_too_small_splits_of_tfds_are_refused(self):
        assert "9" in one_line_error(lambda: choose_tfds_splits("some", {"train": 9, "test": 3}, 9))
        assert "10 would be held out" in one_line_error(lambda: choose_tfds_splits("some", {"train": 10}, 5))
        assert "no split train" in one_line_error(lambda: choose_tfds_splits("some", {"test": 10}, 5))

    def test_unknown_name_of_tfds_is_refused_with_a_suggestion(self, tiny_tfds):
        message = one_line_error(lambda: self._open(tiny_tfds, source="tfds:tiny_number"))
        assert "did you mean tiny_numbers?" in message
        assert "did you mean lsun/bedroom?" in one_line_error(lambda: self._open(tiny_tfds, source="tfds:lsun/bedrom"))

    @pytest.mark.parametrize("name", ["cifar10", "downsampled_imagenet/64x64"])
    def test_missing_data_of_tfds_is_refused_without_a_download(self, tmp_path, name, monkeypatch):
        tfds = pytest.importorskip("tensorflow_datasets")

        def no_download(*arguments, **options):
            raise AssertionError("a download was started")

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_download)
        message = one_line_error(lambda: self._open(str(tmp_path), source=name))
        assert name in message and f"tfds build {name.removeprefix('tfds:')} --data_dir {tmp_path}" in message

    def test_download_prepares_a_tfds_data_set(self, tiny_tfds, tmp_path):
        assert "--download" in one_line_error(lambda: self._open(str(tmp_path)))
        assert self._open(str(tmp_path), download=True).sizes["train"] == 26
        assert self._open(str(tmp_path)).sizes["train"] == 26


def edit_info(**values):
    """Returns a damage: `values` replace those of each split, or of the whole data set, in dataset_info.json."""

    def edit(root):
        (path,) = root.rglob("dataset_info.json")
        info = json.loads(path.read_text())
        for part in (info, *info["splits"]):
            part |= {name: value for name, value in values.items() if name in part}
        path.write_text(json.dumps(info))

    return edit


def for_records(change):
    """Returns a damage: `change` gets the path of each file of records."""
    return lambda root: [change(path) for path in root.rglob("*.tfrecord*")]


def write_record(content):
    def write(path):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in tf.data.TFRecordDataset(str(path)):
                writer.write(content)

    return for_records(write)


def claim_length(path):
    header = (2**40).to_bytes(8, "little")
    path.write_bytes(header + masked_crc32c(header).to_bytes(4, "little") + bytes(64))


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


# Damages of a prepared folder of TFDS, by description.
DAMAGED = {
    "2^40 bytes in a record": for_records(claim_length),
    "pipe": for_records(replace_by_pipe),
    "no file": for_records(pathlib.Path.unlink),
    "no example": write_record(b"\xff" * 99),
    "empty example": write_record(b""),
    "10^6 images claimed": edit_info(shardLengths=["1000000"]),
    "10^15 images claimed": edit_info(shardLengths=["1" + "0" * 15]),
    "ArrayRecord": edit_info(fileFormat="array_record"),
    "Riegeli": edit_info(fileFormat="riegeli"),
    "wrong names of files": edit_info(filepathTemplate="{X}"),
    "names of files outside": edit_info(filepathTemplate="../../{SPLIT}"),
}


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_tfds_folder_is_refused_in_one_line(tiny_tfds, tmp_path, damage, cache_gib):
    folder = shutil.copytree(tiny_tfds, tmp_path / "data")
    DAMAGED[damage](folder)
    config = DataConfig(source="tfds:tiny_numbers", data_dir=str(folder), validation_examples=4, cache_gib=cache_gib)
    assert "tiny_numbers" in one_line_error(lambda: load_images(open_source(config, (SIZE, SIZE, 3)), "test", 1))


@pytest.mark.skipif(REAL_DATA is None, reason="TFDECOUPLE_DATA_DIR is not set")
class TestCifar10:
    def test_validation_of_cifar10_is_the_end_of_train(self):
        config = DataConfig(source="cifar10", data_dir=str(pathlib.Path(REAL_DATA, "tensorflow_datasets")))
        source = open_source(config, (32, 32, 3))
        assert source.sizes == {"train": 49000, "validation": 1000, "test": 10000}
        tfds = pytest.importorskip("tensorflow_datasets")
        options = {"data_dir": config.data_dir, "decoders": {"image": tfds.decode.SkipDecoding()}}
        wanted = tfds.load("cifar10", split="train[-1000:]", download=False, **options)
        images = source.open_split("validation").decode_examples()
        for ours, theirs in zip(images.as_numpy_iterator(), wanted.as_numpy_iterator(), strict=True):
            with Image.open(io.BytesIO(theirs["image"])) as image:
                np.testing.assert_array_equal(ours["image"], image)
            assert ours["label"] == theirs["label"]
