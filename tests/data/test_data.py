"""Tests of tfdecouple.data: sources, splits, the order of batches, augmentation and evaluation."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data import (
    Source,
    evaluation_batches,
    load_images,
    open_source,
    steps_per_epoch,
    training_batches,
)
from tfdecouple.data import photographs as photographs_module
from tfdecouple.data.augmentation import augment
from tfdecouple.data.codecs import lossless_bits_per_dim
from tfdecouple.data.fitting import fit
from tfdecouple.data.folder import ImageFile, hash_split
from tfdecouple.data.image_file import read_image
from tfdecouple.data.records import RecordSplit
from tfdecouple.data.split import MemorySplit, Split
from tfdecouple.data.tfds import choose_splits
from tfdecouple.errors import DataError

SIZE = 8
TRAINING_IMAGES = 26
PLAIN = DataConfig()
AUGMENTED = DataConfig(horizontal_flip=True, pad_and_crop=3)

REAL_DATA = os.environ.get("TFDECOUPLE_DATA_DIR")


def numbered_images(count: int, size: int = SIZE) -> np.ndarray:
    """Images of noise whose first pixel tells the number, so that each is recognised."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def write_images(folder: pathlib.Path, images: np.ndarray, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        Image.fromarray(image).save(folder / f"{number:03d}.png")


def one_line_error(call: Callable[[], object]) -> str:
    """Runs `call`, which must raise a DataError of one line, and returns the line."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def memory_source(images: np.ndarray, labels: np.ndarray | None = None) -> Source:
    labels = np.arange(len(images), dtype=np.int32) if labels is None else labels
    split = MemorySplit(len(images), "all", lambda: (images, labels))
    return Source(
        name="numbers", title="numbers", label_names=(), image_size=SIZE, splits={"train": split, "test": split}
    )


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared TFDS data set `tiny_numbers` of 30 training and 5 test images; returns its data_dir."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyNumbers(tfds.core.GeneratorBasedBuilder):
        """Numbered images of the model's size, with a label."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
                "comment": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for number, image in enumerate(numbered_images(count)):
                yield number, {"image": image, "label": number % 2, "comment": "any"}

    data_dir = tmp_path_factory.mktemp("tfds")
    TinyNumbers(data_dir=data_dir).download_and_prepare()
    return str(data_dir)


@pytest.fixture(scope="module")
def numbered_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("folder")
    images = numbered_images(TRAINING_IMAGES)
    write_images(folder / "train" / "low", images[:13])
    write_images(folder / "train" / "high", images[13:], first=13)
    write_images(folder / "val", numbered_images(3))
    write_images(folder / "test", numbered_images(4))
    return folder


@pytest.fixture(params=["memory", "files", "records"])
def source(request: pytest.FixtureRequest) -> Source:
    """The three ways to hold a split, each with `TRAINING_IMAGES` training images."""
    if request.param == "records":
        data_dir = request.getfixturevalue("tiny_tfds")
        opened = open_source(
            DataConfig(source="tfds:tiny_numbers", data_dir=data_dir, validation_examples=4, cache_gib=0), SIZE
        )
        assert isinstance(opened.splits["train"], RecordSplit)
    else:
        folder = request.getfixturevalue("numbered_folder")
        cache_gib = 1.0 if request.param == "memory" else 0.0
        opened = open_source(DataConfig(source=f"folder:{folder}", cache_gib=cache_gib), SIZE)
        assert isinstance(opened.splits["train"], MemorySplit) == (request.param == "memory")
    assert opened.sizes["train"] == TRAINING_IMAGES
    return opened


def take(source: Source, config: DataConfig, count: int, *, seed: int = 1, start_step: int = 0, batch_size: int = 4):
    batches = training_batches(source, config, batch_size=batch_size, seed=seed, start_step=start_step)
    return list(batches.take(count).as_numpy_iterator())


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def numbers(batches: list[dict]) -> list[int]:
    return [int(number) for batch in batches for number in batch["image"][:, 0, 0, 0]]


class TestTrainingOrder:
    def test_element_spec_is_static(self, source: Source) -> None:
        batches = training_batches(source, AUGMENTED, batch_size=4, seed=0)
        assert batches.element_spec == {
            "image": tf.TensorSpec([4, SIZE, SIZE, 3], tf.uint8),
            "label": tf.TensorSpec([4], tf.int32),
        }
        assert batches.cardinality() == tf.data.INFINITE_CARDINALITY
        policy = batches.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.DATA

    def test_each_step_continues_bit_for_bit(self, source: Source) -> None:
        unbroken = take(source, AUGMENTED, 15)
        # 6 batches an epoch: starts at, before and after its borders.
        for step in (1, 5, 6, 14):
            assert_same(take(source, AUGMENTED, 15 - step, start_step=step), unbroken[step:])

    def test_order_ignores_the_global_seed(self, source: Source) -> None:
        tf.random.set_seed(1)
        first = take(source, AUGMENTED, 8)
        tf.random.set_seed(2)
        assert_same(take(source, AUGMENTED, 8), first)

    def test_seed_changes_order_and_augmentation(self, source: Source) -> None:
        assert numbers(take(source, PLAIN, 6, seed=1)) != numbers(take(source, PLAIN, 6, seed=2))
        alike = memory_source(np.repeat(numbered_images(1), 8, axis=0))
        pictures = [take(alike, AUGMENTED, 1, seed=seed, batch_size=8)[0]["image"] for seed in (1, 2)]
        assert not np.array_equal(*pictures)

    def test_epoch_holds_each_image_once(self, source: Source) -> None:
        steps = steps_per_epoch(source, 4)
        assert steps == 6
        batches = take(source, PLAIN, 4 * steps)
        for epoch in range(4):
            seen = numbers(batches[epoch * steps : (epoch + 1) * steps])
            assert len(set(seen)) == len(seen) == 24

    def test_whole_epoch_is_the_training_set(self, source: Source) -> None:
        seen = numbers(take(source, PLAIN, 2, batch_size=13))
        wanted = [int(example["image"][0, 0, 0]) for example in source.examples("train").as_numpy_iterator()]
        assert sorted(seen) == sorted(wanted)

    def test_epochs_differ_in_order_and_in_what_is_left_over(self, source: Source) -> None:
        batches = take(source, PLAIN, 36)
        epochs = [numbers(batches[6 * epoch : 6 * epoch + 6]) for epoch in range(6)]
        assert len({tuple(epoch) for epoch in epochs}) == 6
        assert len({frozenset(epoch) for epoch in epochs}) > 1

    def test_labels_stay_with_their_images(self) -> None:
        batches = take(memory_source(numbered_images(30)), PLAIN, 7)
        assert numbers(batches) == [int(label) for batch in batches for label in batch["label"]]

    def test_start_in_mid_epoch_decodes_nothing_before(self) -> None:
        decoded = []

        class InOrder(Split):
            """Never shuffles, and notes which records are decoded."""

            def shuffled(self, seed: tf.Tensor) -> tf.data.Dataset:
                return self.records()

            def decode(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                def note(index: np.int64) -> np.int32:
                    decoded.append(int(index))
                    return np.int32(index)

                return tf.zeros([SIZE, SIZE, 3], tf.uint8), tf.numpy_function(note, [record], tf.int32)

        source = memory_source(numbered_images(2))
        # An epoch so long that what is read ahead does not reach its end.
        source.splits["train"] = InOrder(8000, "all")
        batch = take(source, PLAIN, 1, start_step=1000)[0]
        assert batch["label"].tolist() == [4000, 4001, 4002, 4003]
        assert min(decoded) == 4000

    def test_windows_of_records_cover_an_epoch_and_move(self) -> None:
        images = numbered_images(50)
        labels = np.arange(50, dtype=np.int32)

        def decode(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.gather(images, index), tf.gather(labels, index)

        split = RecordSplit(50, "all", records=tf.data.Dataset.range(50), decode=decode, window=8)
        orders = [list(split.shuffled(tf.constant([seed, 0], tf.int64)).as_numpy_iterator()) for seed in range(5)]
        for order in orders:
            assert sorted(order) == list(range(50))
        # The records of the first window: were the borders fixed, they would be the same each time.
        assert len({frozenset(order[:8]) for order in orders}) > 1
        again = list(split.shuffled(tf.constant([3, 0], tf.int64)).as_numpy_iterator())
        assert again == orders[3]

    def test_memory_order_is_no_window(self) -> None:
        batch = take(memory_source(numbered_images(200)), PLAIN, 1, batch_size=20)[0]
        assert batch["label"].min() < 60 and batch["label"].max() > 140

    def test_order_is_pinned(self) -> None:
        # A change here means that old runs no longer continue on the same images.
        batches = take(memory_source(numbered_images(10)), PLAIN, 3, seed=7, batch_size=5)
        assert [batch["label"].tolist() for batch in batches] == [[5, 6, 7, 9, 0], [8, 4, 3, 2, 1], [9, 7, 5, 8, 6]]


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

    def test_no_augmentation_leaves_images(self) -> None:
        images = numbered_images(10)
        for batch in take(memory_source(images), PLAIN, 4):
            np.testing.assert_array_equal(batch["image"], images[batch["label"]])

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

    def test_padding_beyond_the_image_is_refused(self) -> None:
        source = memory_source(numbered_images(10))
        config = DataConfig(pad_and_crop=SIZE)
        message = one_line_error(lambda: training_batches(source, config, batch_size=2, seed=0))
        assert "data.pad_and_crop is 8" in message


class TestEvaluation:
    @pytest.mark.parametrize("batch_size", [1, 3, 4, 13, 26, 40])
    def test_each_image_exactly_once(self, source: Source, batch_size: int) -> None:
        wanted, labels = load_images(source, "train", TRAINING_IMAGES)
        batches = list(evaluation_batches(source, "train", batch_size=batch_size).as_numpy_iterator())
        assert len(batches) == -(-TRAINING_IMAGES // batch_size)
        joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batch in batches:
            assert batch["image"].shape == (batch_size, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
            assert batch["label"].dtype == np.int32 and batch["index"].dtype == np.int64
            assert batch["weight"].dtype == np.float32
        padding = len(joined["weight"]) - TRAINING_IMAGES
        np.testing.assert_array_equal(joined["weight"], [1.0] * TRAINING_IMAGES + [0.0] * padding)
        np.testing.assert_array_equal(joined["index"][:TRAINING_IMAGES], np.arange(TRAINING_IMAGES))
        np.testing.assert_array_equal(joined["image"][:TRAINING_IMAGES], wanted)
        np.testing.assert_array_equal(joined["label"][:TRAINING_IMAGES], labels)
        assert not joined["image"][TRAINING_IMAGES:].any()

    def test_batches_have_static_shapes(self, source: Source) -> None:
        spec = evaluation_batches(source, "test", batch_size=5).element_spec
        assert spec["image"].shape == [5, SIZE, SIZE, 3]
        assert spec["weight"].shape == spec["label"].shape == spec["index"].shape == [5]

    @pytest.mark.parametrize(("limit", "count"), [(0, 26), (1, 1), (7, 7), (26, 26), (100, 26)])
    def test_limit_takes_the_first(self, limit: int, count: int) -> None:
        source = memory_source(numbered_images(26))
        batches = list(evaluation_batches(source, "train", batch_size=4, limit=limit).as_numpy_iterator())
        weights = np.concatenate([batch["weight"] for batch in batches])
        assert weights.sum() == count and len(batches) == -(-count // 4)

    def test_load_images_starts_anywhere(self, source: Source) -> None:
        images, labels = load_images(source, "train", 5, start=20)
        all_images, all_labels = load_images(source, "train", TRAINING_IMAGES)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        np.testing.assert_array_equal(images, all_images[20:25])
        np.testing.assert_array_equal(labels, all_labels[20:25])


class TestWrongInputs:
    @pytest.mark.parametrize(
        ("call", "parts"),
        [
            (lambda s: steps_per_epoch(s, 27), ("27", "26 training images")),
            (lambda s: steps_per_epoch(s, 0), ("batch size is 0",)),
            (lambda s: training_batches(s, PLAIN, batch_size=27, seed=0), ("27",)),
            (lambda s: training_batches(s, PLAIN, batch_size=2, seed=-1), ("seed is -1",)),
            (lambda s: training_batches(s, PLAIN, batch_size=2, seed=2**63), ("seed",)),
            (lambda s: training_batches(s, PLAIN, batch_size=2, seed=0, start_step=-3), ("start_step is -3",)),
            (lambda s: evaluation_batches(s, "tset", batch_size=2), ("'tset'", "test")),
            (lambda s: evaluation_batches(s, "test", batch_size=0), ("batch size is 0",)),
            (lambda s: evaluation_batches(s, "test", batch_size=2, limit=-1), ("limit is -1",)),
            (lambda s: s.examples("all"), ("'all'",)),
            (lambda s: load_images(s, "train", 10, start=20), ("10", "20", "has 6")),
            (lambda s: load_images(s, "train", 1, start=26), ("has 0",)),
            (lambda s: load_images(s, "train", 0), ("count is 0",)),
        ],
    )
    def test_batches(self, call: Callable[[Source], object], parts: tuple[str, ...]) -> None:
        source = memory_source(numbered_images(26))
        message = one_line_error(lambda: call(source))
        assert all(part in message for part in parts), message

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("cifar11", ("'cifar11'", "did you mean cifar10", "folder:PATH")),
            ("photograph", ("did you mean photographs",)),
            ("folder:", ("folder:PATH",)),
            ("folder:/no/such/folder", ("/no/such/folder",)),
        ],
    )
    def test_source_names(self, name: str, parts: tuple[str, ...]) -> None:
        message = one_line_error(lambda: open_source(DataConfig(source=name), SIZE))
        assert all(part in message for part in parts), message

    def test_image_size(self) -> None:
        assert "image size is 0" in one_line_error(lambda: open_source(DataConfig(), 0))


class TestPhotographs:
    @pytest.fixture(scope="class")
    def source(self) -> Source:
        return open_source(DataConfig(photograph_crops=700), 32)

    def test_sets(self, source: Source) -> None:
        assert source.sizes == {"train": 700, "validation": 512, "test": 1000}
        assert len(source.label_names) == len(photographs_module.PHOTOGRAPHS) == 7
        images, labels = load_images(source, "train", 700)
        assert images.shape == (700, 32, 32, 3)
        np.testing.assert_array_equal(np.bincount(labels), [100] * 7)
        # In colour, and not flat.
        assert np.mean(np.ptp(images.astype(int), axis=-1)) > 10
        assert np.mean(images.std(axis=(1, 2))) > 10

    def test_sets_do_not_depend_on_anything(self, source: Source) -> None:
        again = open_source(DataConfig(photograph_crops=100), 32)
        tf.random.set_seed(3)
        for split, count in (("train", 100), ("validation", 512), ("test", 1000)):
            np.testing.assert_array_equal(load_images(source, split, count)[0], load_images(again, split, count)[0])

    def test_boxes_are_pinned(self) -> None:
        # Crops must be the same on every machine and with every version of NumPy.
        draws = np.random.default_rng(3).random((1000, 3))
        boxes = photographs_module.crop_boxes((640, 427), "test", 32, draws)
        assert hashlib.sha256(boxes.astype("<i8").tobytes()).hexdigest()[:16] == "f95893a383df9c23"

    @pytest.mark.parametrize("size", [(640, 427), (451, 300), (512, 512), (300, 451)])
    def test_regions_share_no_pixel(self, size: tuple[int, int]) -> None:
        owner = np.zeros((size[1], size[0]), int)
        for split in ("train", "validation", "test"):
            left, top, right, bottom = photographs_module.region(size, split)
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            assert not owner[top:bottom, left:right].any()
            owner[top:bottom, left:right] = ("train", "validation", "test").index(split) + 1
        assert np.mean(owner == 1) > 0.5
        # Between two bands lies the margin.
        along = owner[0] if size[0] >= size[1] else owner[:, 0]
        borders = np.flatnonzero(np.diff(along[along.nonzero()]))
        assert len(borders) == 2
        assert (along == 0).sum() >= 2 * photographs_module.MARGIN

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_boxes_stay_in_their_region(self, split: str) -> None:
        size = (451, 300)
        draws = np.random.default_rng(0).random((2000, 3))
        draws[0], draws[1] = 0.0, np.nextafter(1.0, 0.0)
        boxes = photographs_module.crop_boxes(size, split, 32, draws)
        left, top, right, bottom = photographs_module.region(size, split)
        assert (boxes[:, :2] >= (left, top)).all() and (boxes[:, 2:] <= (right, bottom)).all()
        sides = boxes[:, 2] - boxes[:, 0]
        np.testing.assert_array_equal(sides, boxes[:, 3] - boxes[:, 1])
        largest = photographs_module.largest_side(size)
        assert sides.min() == 32 and sides.max() == largest
        # Log-uniform: half of the sides lie below the geometric mean.
        assert abs(np.mean(sides < np.sqrt(32 * largest)) - 0.5) < 0.05

    def test_crops_come_from_their_region_alone(self) -> None:
        # A picture whose bands have one colour each: a filter that reached over the border would mix them.
        colours = {"train": (255, 0, 0), "validation": (0, 255, 0), "test": (0, 0, 255)}
        picture = Image.new("RGB", (300, 200))
        for split, colour in colours.items():
            picture.paste(colour, photographs_module.region(picture.size, split))
        for split, colour in colours.items():
            images, _ = photographs_module._crops((picture,), split, 50, 16)
            assert (images == np.array(colour, np.uint8)).all()

    def test_crop_at_full_scale_is_a_copy(self) -> None:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 250, 3), np.uint8))
        size = photographs_module.largest_side(picture.size)
        images, _ = photographs_module._crops((picture,), "test", 5, size)
        draws = np.random.default_rng(photographs_module._SEEDS["test"]).random((5, 3))
        boxes = photographs_module.crop_boxes(picture.size, "test", size, draws)
        for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
            np.testing.assert_array_equal(image, np.asarray(picture)[top:bottom, left:right])

    def test_too_large(self) -> None:
        message = one_line_error(lambda: open_source(DataConfig(), 90))
        assert "image size is 90" in message and "chelsea has room for crops of 83" in message

    def test_missing_file_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        missing = photographs_module.Photograph("cat", "scikit-image", "skimage/data/no_cat.png")
        monkeypatch.setattr(photographs_module, "PHOTOGRAPHS", (missing,))
        message = one_line_error(lambda: open_source(DataConfig(), 32))
        assert "no_cat.png" in message and "scikit-image 0." in message

    def test_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        missing = photographs_module.Photograph("cat", "no-such-package-at-all", "cat.png")
        monkeypatch.setattr(photographs_module, "PHOTOGRAPHS", (missing,))
        assert "pip install no-such-package-at-all" in one_line_error(lambda: open_source(DataConfig(), 32))


class TestFolder:
    @staticmethod
    def _open(folder: pathlib.Path, size: int = SIZE, **options) -> Source:
        return open_source(DataConfig(source=f"folder:{folder}", **options), size)

    @staticmethod
    def _files(count: int, prefix: str = "") -> list[ImageFile]:
        return [ImageFile(f"/x/{prefix}{i}.png", f"{prefix}{i}.png", "") for i in range(count)]

    def test_split_folders_and_labels(self, numbered_folder: pathlib.Path) -> None:
        source = self._open(numbered_folder)
        assert source.sizes == {"train": 26, "validation": 3, "test": 4}
        assert source.label_names == ("high", "low")
        assert source.descriptions == {"train": "train/", "validation": "val/", "test": "test/"}
        images, labels = load_images(source, "train", 26)
        # "high" comes first by name and holds the images from 13 on.
        np.testing.assert_array_equal(images, np.roll(numbered_images(26), -13, axis=0))
        np.testing.assert_array_equal(labels, [0] * 13 + [1] * 13)
        np.testing.assert_array_equal(load_images(source, "test", 4)[1], [-1] * 4)

    def test_files_at_the_top_have_no_labels(self, tmp_path: pathlib.Path) -> None:
        write_images(tmp_path, numbered_images(10))
        (tmp_path / "README.txt").write_text("not an image")
        (tmp_path / "._000.png").write_bytes(b"nor is this")
        source = self._open(tmp_path)
        assert sum(source.sizes.values()) == 10 and source.label_names == ()
        assert (load_images(source, "train", source.sizes["train"])[1] == -1).all()

    @pytest.mark.parametrize("count", [3, 4, 10, 100])
    def test_hash_split_is_a_partition_without_empty_parts(self, count: int) -> None:
        for prefix in "abcdefgh":
            files = self._files(count, prefix)
            parts = hash_split(files)
            assert all(parts.values())
            together = [file for part in parts.values() for file in part]
            assert len(together) == count and set(together) == set(files)

    def test_hash_split_is_stable(self) -> None:
        files = self._files(2000)
        parts = hash_split(files)
        assert hash_split(files[::-1])["test"] == parts["test"][::-1]
        assert 60 < len(parts["test"]) < 140 and 60 < len(parts["validation"]) < 140
        # More files, or another place on disk, move none.
        moved = [ImageFile(f"/elsewhere/{file.key}", file.key, "") for file in files]
        larger = hash_split(moved + self._files(500, "new"))
        for name, part in parts.items():
            assert {file.key for file in part} <= {file.key for file in larger[name]}

    def test_hash_split_is_pinned(self) -> None:
        parts = hash_split(self._files(40))
        assert [file.key for file in parts["validation"]] == ["0.png", "8.png"]
        assert [file.key for file in parts["test"]] == ["6.png", "33.png"]

    def test_missing_split_folders_are_held_out_of_train(self, tmp_path: pathlib.Path) -> None:
        write_images(tmp_path / "train", numbered_images(60))
        write_images(tmp_path / "test", numbered_images(7))
        source = self._open(tmp_path)
        assert source.sizes["test"] == 7 and source.sizes["validation"] >= 1
        assert source.sizes["train"] + source.sizes["validation"] == 60
        kept = load_images(source, "train", source.sizes["train"])[0][:, 0, 0, 0]
        held_out = load_images(source, "validation", source.sizes["validation"])[0][:, 0, 0, 0]
        assert sorted([*kept, *held_out]) == list(range(60))
        assert "without validation" in source.descriptions["train"]

    def test_contradictory_folders(self, tmp_path: pathlib.Path) -> None:
        write_images(tmp_path / "test", numbered_images(3))
        write_images(tmp_path / "cats", numbered_images(3))
        assert "none named train" in one_line_error(lambda: self._open(tmp_path))
        for name in ("train", "val", "validation"):
            write_images(tmp_path / name, numbered_images(3))
        assert "val and validation" in one_line_error(lambda: self._open(tmp_path))

    def test_too_few_images(self, tmp_path: pathlib.Path) -> None:
        assert "holds 0 images" in one_line_error(lambda: self._open(tmp_path))
        write_images(tmp_path / "label", numbered_images(2))
        assert "holds 2 images" in one_line_error(lambda: self._open(tmp_path))
        (tmp_path / "train").mkdir()
        assert "train holds 0 images" in one_line_error(lambda: self._open(tmp_path))

    def test_three_images_are_enough(self, tmp_path: pathlib.Path) -> None:
        write_images(tmp_path, numbered_images(3))
        assert self._open(tmp_path).sizes == {"train": 1, "validation": 1, "test": 1}

    @pytest.fixture
    def damaged(self, tmp_path: pathlib.Path) -> pathlib.Path:
        """Ten training images, of which number 3 is cut short and number 7 is no image at all."""
        write_images(tmp_path / "train", numbered_images(10))
        write_images(tmp_path / "val", numbered_images(2))
        write_images(tmp_path / "test", numbered_images(2))
        whole = (tmp_path / "train" / "003.png").read_bytes()
        (tmp_path / "train" / "003.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "train" / "007.png").write_text("no image")
        return tmp_path

    def test_bad_image_stops_when_opening(self, damaged: pathlib.Path) -> None:
        message = one_line_error(lambda: self._open(damaged))
        assert str(damaged / "train" / "003.png") in message and "data.on_bad_image=skip" in message

    def test_bad_image_is_skipped_when_opening(self, damaged: pathlib.Path) -> None:
        source = self._open(damaged, on_bad_image="skip")
        assert source.skipped == 2 and source.sizes["train"] == 8
        assert load_images(source, "train", 8)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9]

    def test_bad_image_stops_a_large_folder_by_name(self, damaged: pathlib.Path) -> None:
        source = self._open(damaged, cache_gib=0)
        assert source.sizes["train"] == 10

        def train() -> None:
            with source.guard():
                list(training_batches(source, PLAIN, batch_size=5, seed=0).take(2))

        message = one_line_error(train)
        assert "003.png" in message or "007.png" in message
        assert "003.png" in one_line_error(lambda: load_images(source, "train", 5))

    def test_bad_image_is_skipped_in_a_large_folder(self, damaged: pathlib.Path) -> None:
        source = self._open(damaged, cache_gib=0, on_bad_image="skip")
        assert source.skipped == 0
        batches = take(source, PLAIN, 4, batch_size=5)
        assert source.skipped == 2
        # The next readable image stands in for a bad one, in every epoch alike.
        for epoch in (batches[:2], batches[2:]):
            assert sorted(numbers(epoch)) == [0, 1, 2, 4, 4, 5, 6, 8, 8, 9]
        assert_same(take(source, PLAIN, 1, start_step=3, batch_size=5), batches[3:])
        weighed = list(evaluation_batches(source, "train", batch_size=3).as_numpy_iterator())
        indices = [int(i) for batch in weighed for i, w in zip(batch["index"], batch["weight"], strict=True) if w]
        assert indices == [0, 1, 2, 4, 5, 6, 8, 9] and source.skipped == 2
        assert load_images(source, "train", 8)[0][:, 0, 0, 0].tolist() == indices

    def test_no_readable_image(self, damaged: pathlib.Path) -> None:
        for path in (damaged / "train").iterdir():
            path.write_text("no image")
        assert "none of the 10" in one_line_error(lambda: self._open(damaged, on_bad_image="skip"))
        source = self._open(damaged, on_bad_image="skip", cache_gib=0)

        def train() -> None:
            with source.guard():
                take(source, PLAIN, 1)

        assert "none of the 10" in one_line_error(train)

    def test_guard_leaves_other_errors(self, numbered_folder: pathlib.Path) -> None:
        source = self._open(numbered_folder)
        with pytest.raises(KeyError), source.guard():
            raise KeyError("other")
        with pytest.raises(tf.errors.InvalidArgumentError), source.guard():
            tf.debugging.assert_equal(1, 2)

    def test_guard_names_the_image_of_its_error(self, damaged: pathlib.Path) -> None:
        source = self._open(damaged, cache_gib=0)
        assert "007.png" in one_line_error(lambda: load_images(source, "train", 3, start=7))
        # Bad images are known by now, but have no part in this error.
        with pytest.raises(tf.errors.InvalidArgumentError), source.guard():
            tf.debugging.assert_equal(1, 2)
        assert "003.png" in one_line_error(lambda: load_images(source, "train", 4))


class TestImageFile:
    @pytest.fixture
    def rgb(self) -> np.ndarray:
        return numbered_images(1, 12)[0]

    def _saved(self, tmp_path: pathlib.Path, image: Image.Image, name: str = "image.png", **options) -> str:
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    def test_right_size_is_not_touched(self, tmp_path: pathlib.Path, rgb: np.ndarray) -> None:
        np.testing.assert_array_equal(read_image(self._saved(tmp_path, Image.fromarray(rgb)), 12, 0), rgb)

    def test_centre(self, tmp_path: pathlib.Path) -> None:
        image = np.random.default_rng(0).integers(0, 256, (13, 20, 3), np.uint8)
        path = self._saved(tmp_path, Image.fromarray(image))
        np.testing.assert_array_equal(read_image(path, 13, 0), image[:, 3:16])
        np.testing.assert_array_equal(read_image(path, 8, 8), image[2:10, 6:14])
        np.testing.assert_array_equal(read_image(path, 13, 100), image[:, 3:16])

    def test_exif_orientation(self, tmp_path: pathlib.Path, rgb: np.ndarray) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # Stored lying; to be turned clockwise.
        path = self._saved(tmp_path, Image.fromarray(rgb), exif=exif)
        np.testing.assert_array_equal(read_image(path, 12, 0), np.rot90(rgb, -1))

    @pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
    def test_modes_become_rgb(self, tmp_path: pathlib.Path, rgb: np.ndarray, mode: str) -> None:
        image = Image.fromarray(rgb).convert(mode)
        np.testing.assert_array_equal(read_image(self._saved(tmp_path, image), 12, 0), np.asarray(image.convert("RGB")))

    def test_cmyk(self, tmp_path: pathlib.Path) -> None:
        path = self._saved(tmp_path, Image.new("CMYK", (12, 12), (0, 255, 255, 0)), "red.jpg", quality=100)
        assert np.abs(read_image(path, 12, 0).astype(int) - (255, 0, 0)).max() < 8

    def test_sixteen_bits_are_scaled(self, tmp_path: pathlib.Path) -> None:
        values = np.linspace(0, 65535, 144).astype(np.uint16).reshape(12, 12)
        path = self._saved(tmp_path, Image.fromarray(values))
        np.testing.assert_array_equal(read_image(path, 12, 0), np.repeat((values >> 8)[..., None], 3, axis=-1))

    def test_float_pixels_are_refused(self, tmp_path: pathlib.Path) -> None:
        path = self._saved(tmp_path, Image.fromarray(np.zeros((12, 12), np.float32)), "image.tif")
        message = one_line_error(lambda: read_image(path, 12, 0))
        assert "mode F" in message and path in message

    def test_missing_file(self) -> None:
        assert "/no/such.png" in one_line_error(lambda: read_image("/no/such.png", 12, 0))


class TestFitting:
    @pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 57), (90, 41), (10, 12)])
    def test_agrees_with_pillow(self, tmp_path: pathlib.Path, height: int, width: int) -> None:
        y, x = np.mgrid[:height, :width]
        image = np.stack([128 + 100 * np.sin(x / 5 + c) * np.cos(y / 7) for c in range(3)], -1).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "image.png")
        wanted = read_image(str(tmp_path / "image.png"), 16, 0).astype(int)
        assert np.abs(fit(tf.constant(image), 16, 0).numpy() - wanted).max() <= 1

    def test_right_size_passes_bit_for_bit(self) -> None:
        image = numbered_images(1, 16)[0]
        np.testing.assert_array_equal(fit(tf.constant(image), 16, 0), image)
        np.testing.assert_array_equal(fit(tf.constant(image), 8, 8), image[4:12, 4:12])
        np.testing.assert_array_equal(fit(tf.constant(image), 16, 100), image)

    def test_grey_is_repeated(self) -> None:
        image = numbered_images(1, 16)[0][..., :1]
        np.testing.assert_array_equal(fit(tf.constant(image), 16, 0), np.repeat(image, 3, axis=-1))


class TestTfds:
    @staticmethod
    def _open(data_dir: str, **options) -> Source:
        options = {"source": "tfds:tiny_numbers", "validation_examples": 4, **options}
        return open_source(DataConfig(data_dir=data_dir, **options), options.pop("size", SIZE))

    @pytest.mark.parametrize("cache_gib", [1.0, 0.0])
    def test_splits_hold_the_images_bit_for_bit(self, tiny_tfds: str, cache_gib: float) -> None:
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

    def test_stream_and_memory_agree(self, tiny_tfds: str) -> None:
        for split in ("train", "validation", "test"):
            kinds = [self._open(tiny_tfds, cache_gib=cache_gib) for cache_gib in (1.0, 0.0)]
            examples = [list(source.examples(split).as_numpy_iterator()) for source in kinds]
            assert_same(*examples)

    def test_other_sizes_are_resized(self, tiny_tfds: str) -> None:
        source = open_source(DataConfig(source="tfds:tiny_numbers", data_dir=tiny_tfds, validation_examples=4), 4)
        assert load_images(source, "test", 5)[0].shape == (5, 4, 4, 3)

    @pytest.mark.parametrize(
        ("sizes", "wanted"),
        [
            ({"train": 9, "test": 3, "validation": 2}, ("train", "validation", "test")),
            ({"train": 9, "test": 3}, ("train[:-2]", "train[-2:]", "test")),
            ({"train": 9, "validation": 3}, ("train[:-2]", "train[-2:]", "validation")),
            ({"train": 9}, ("train[:-4]", "train[-4:-2]", "train[-2:]")),
        ],
    )
    def test_choice_of_splits(self, sizes: dict[str, int], wanted: tuple[str, ...]) -> None:
        chosen = choose_splits("some", sizes, 2)
        assert (chosen["train"], chosen["validation"], chosen["test"]) == wanted

    def test_splits_too_small(self) -> None:
        assert "9" in one_line_error(lambda: choose_splits("some", {"train": 9, "test": 3}, 9))
        assert "10 would be held out" in one_line_error(lambda: choose_splits("some", {"train": 10}, 5))
        assert "no split train" in one_line_error(lambda: choose_splits("some", {"test": 10}, 5))

    def test_unknown_names(self, tiny_tfds: str) -> None:
        message = one_line_error(lambda: self._open(tiny_tfds, source="tfds:tiny_number"))
        assert "did you mean tiny_numbers?" in message
        message = one_line_error(lambda: self._open(tiny_tfds, source="tfds:lsun/bedrom"))
        assert "did you mean lsun/bedroom?" in message

    @pytest.mark.parametrize("name", ["cifar10", "downsampled_imagenet/64x64", "lsun/bedroom", "celeb_a_hq/256"])
    def test_missing_data_fail_at_once(self, tmp_path: pathlib.Path, name: str, monkeypatch) -> None:
        tfds = pytest.importorskip("tensorflow_datasets")

        def no_download(*arguments, **options) -> None:
            raise AssertionError("a download was started")

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_download)
        message = one_line_error(lambda: self._open(str(tmp_path), source=name))
        assert name in message and f"tfds build {name.removeprefix('tfds:')} --data_dir {tmp_path}" in message

    def test_failed_download_is_one_line(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tfds = pytest.importorskip("tensorflow_datasets")

        def by_hand(*arguments, **options) -> None:
            raise AssertionError("Manual directory does not exist.\n\nCreate it and\nput the files there.")

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", by_hand)
        config = DataConfig(source="celeb_a_hq/256", data_dir=str(tmp_path))
        message = one_line_error(lambda: open_source(config, SIZE, download=True))
        assert "does not exist. Create it and put the files there." in message

    def test_download_prepares(self, tiny_tfds: str, tmp_path: pathlib.Path) -> None:
        config = DataConfig(source="tfds:tiny_numbers", data_dir=str(tmp_path), validation_examples=4)
        assert "--download" in one_line_error(lambda: open_source(config, SIZE))
        assert open_source(config, SIZE, download=True).sizes["train"] == 26
        assert open_source(config, SIZE).sizes["train"] == 26

    @pytest.mark.parametrize(
        ("shape", "dtype", "part"), [((4, 4, 4), np.uint8, "(4, 4, 4)"), ((4, 4, 1), np.float32, "float32")]
    )
    def test_unusable_images_are_refused(self, tmp_path: pathlib.Path, shape, dtype, part: str) -> None:
        tfds = pytest.importorskip("tensorflow_datasets")
        folder = tmp_path / "odd_images" / "1.0.0"
        folder.mkdir(parents=True)
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(
                name="odd_images", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
            ),
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape, dtype=dtype)}),
        )
        writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100)
        writer.initialize_splits(["train"])
        writer.add_examples({"train": [{"image": np.zeros(shape, dtype)} for _ in range(10)]})
        writer.close_all()
        message = one_line_error(lambda: self._open(str(tmp_path), source="tfds:odd_images"))
        assert part in message and "odd_images" in message

    def test_damaged_records(self, tiny_tfds: str, tmp_path: pathlib.Path) -> None:
        import shutil

        shutil.copytree(tiny_tfds, tmp_path, dirs_exist_ok=True)
        for path in tmp_path.rglob("*.tfrecord*"):
            path.write_bytes(path.read_bytes()[:-20])
        source = self._open(str(tmp_path))
        message = one_line_error(lambda: load_images(source, "test", 1))
        assert "prepare the data set again" in message and "tiny_numbers" in message


@pytest.mark.skipif(REAL_DATA is None, reason="TFDECOUPLE_DATA_DIR is not set")
class TestCifar10:
    @pytest.fixture(scope="class")
    def source(self) -> Source:
        config = DataConfig(source="cifar10", data_dir=str(pathlib.Path(REAL_DATA, "tensorflow_datasets")))
        return open_source(config, 32)

    def test_splits(self, source: Source) -> None:
        assert source.sizes == {"train": 49000, "validation": 1000, "test": 10000}
        assert source.label_names[0] == "airplane" and len(source.label_names) == 10
        images, labels = load_images(source, "validation", 1000)
        assert images.shape == (1000, 32, 32, 3) and set(labels.tolist()) == set(range(10))

    def test_validation_is_the_end_of_train(self, source: Source) -> None:
        tfds = pytest.importorskip("tensorflow_datasets")
        data_dir = str(pathlib.Path(REAL_DATA, "tensorflow_datasets"))
        wanted = tfds.load("cifar10", split="train[-1000:]", data_dir=data_dir, download=False)
        pairs = zip(source.examples("validation").as_numpy_iterator(), wanted.as_numpy_iterator(), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours["image"], theirs["image"])
            assert ours["label"] == theirs["label"]

    def test_epoch_and_continuation(self, source: Source) -> None:
        batches = take(source, AUGMENTED, 3, batch_size=512, start_step=94)
        assert_same(take(source, AUGMENTED, 2, batch_size=512, start_step=95), batches[1:])


class TestCodecs:
    @pytest.mark.parametrize("codec", ["webp", "png"])
    def test_counts_whole_files(self, codec: str) -> None:
        images = numbered_images(3, 16)
        sizes = []
        for image in images:
            file = io.BytesIO()
            if codec == "png":
                Image.fromarray(image).save(file, "PNG", optimize=True)
            else:
                Image.fromarray(image).save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)
                file.seek(0)
                np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
            sizes.append(len(file.getvalue()))
        assert lossless_bits_per_dim(images, codec) == pytest.approx(8 * sum(sizes) / images.size)

    def test_noise_and_flat_images(self) -> None:
        assert lossless_bits_per_dim(numbered_images(4, 32)) > 8
        assert lossless_bits_per_dim(np.full((4, 32, 32, 3), 7, np.uint8)) < 0.5

    @pytest.mark.parametrize(
        ("images", "codec", "part"),
        [
            (np.zeros((1, 4, 4, 3), np.uint8), "jpeg", "'jpeg'"),
            (np.zeros((4, 4, 3), np.uint8), "webp", "[4, 4, 3]"),
            (np.zeros((1, 4, 4, 3), np.float32), "webp", "float32"),
            (np.zeros((0, 4, 4, 3), np.uint8), "webp", "[0, 4, 4, 3]"),
        ],
    )
    def test_wrong_inputs(self, images: np.ndarray, codec: str, part: str) -> None:
        assert part in one_line_error(lambda: lossless_bits_per_dim(images, codec))
