import numpy as np
import pytest
import tensorflow as tf
from helpers import numbered
from helpers.numbered import PLAIN, SIZE, TRAINING_IMAGES, make_memory_source, numbered_images, take_batches
from helpers.runs import run_config

from tfdecouple.config import DataConfig
from tfdecouple.data import batches as data
from tfdecouple.data.batches import augment_image
from tfdecouple.data.sources import open_source
from tfdecouple.data.splits import Split
from tfdecouple.errors import DataError


# Files have the order of images in memory.
@pytest.mark.parametrize("source", ["memory", "records"], indirect=True)
class TestTrainingOrder:
    def test_training_batches_from_any_step_equal_those_of_an_unbroken_run(self, source):
        unbroken = take_batches(source, numbered.AUGMENTED, 15)
        # 6 batches an epoch: starts at, before and after its borders.
        for step in (5, 6, 14):
            batches = take_batches(source, numbered.AUGMENTED, 15 - step, start_step=step)
            numbered.assert_same(batches, unbroken[step:])

    def test_training_epochs_differ_in_order_and_repeat_no_image(self, source):
        assert data.count_epoch_steps(source, 4) == 6
        batches = take_batches(source, PLAIN, 36)
        epochs = [numbered.read_numbers(batches[6 * epoch : 6 * epoch + 6]) for epoch in range(6)]
        assert all(len(set(epoch)) == len(epoch) == 24 for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 6
        assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_resuming_in_mid_epoch_decodes_no_earlier_image():
    decoded = []

    class InOrder(Split):
        """Never shuffles, and notes which records are decoded."""

        def shuffle_records(self, seed):
            return tf.data.Dataset.range(self.size)

        def decode_record(self, record):
            def note(index):
                decoded.append(int(index))
                return np.int32(index)

            return tf.zeros([SIZE, SIZE, 3], tf.uint8), tf.numpy_function(note, [record], tf.int32)

    source = make_memory_source(train=(numbered_images(2),))
    # An epoch so long that what is read ahead does not reach its end.
    source.splits["train"] = InOrder(8000, "all")
    batch = take_batches(source, PLAIN, 1, start_step=1000)[0]
    assert batch["label"].tolist() == [4000, 4001, 4002, 4003]
    assert min(decoded) == 4000


def test_order_of_images_for_a_seed_never_changes():
    # A change here means that old runs no longer continue on the same images.
    source = make_memory_source(train=(numbered_images(10),))
    batches = take_batches(source, PLAIN, 3, seed=7, batch_size=5)
    assert [batch["label"].tolist() for batch in batches] == [[5, 6, 7, 9, 0], [8, 4, 3, 2, 1], [9, 7, 5, 8, 6]]


@pytest.mark.parametrize("batch_size", [4, 26, 40])
def test_evaluation_batches_have_each_image_once_and_padding_of_weight_0(source, batch_size):
    wanted, labels = data.load_images(source, "train", TRAINING_IMAGES)
    batches = list(data.make_evaluation_batches(source, "train", batch_size=batch_size).as_numpy_iterator())
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
    limited = data.make_evaluation_batches(source, "train", batch_size=batch_size, limit=7).as_numpy_iterator()
    assert np.concatenate([batch["index"][batch["weight"] > 0] for batch in limited]).tolist() == list(range(7))


def test_chosen_images_are_read_in_ascending_order(source):
    images, labels = data.load_images(source, "train", TRAINING_IMAGES)
    batches = list(data.read_chosen_batches(source, "train", np.array([9, 2, 5, 2]), batch_size=2))
    assert [batch["index"].tolist() for batch in batches] == [[2, 5], [9]]
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), images[[2, 5, 9]])
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), labels[[2, 5, 9]])
    assert list(data.read_chosen_batches(source, "train", np.zeros(0), batch_size=2)) == []
    with pytest.raises(DataError, match=f"there is no image {TRAINING_IMAGES} in train"):
        list(data.read_chosen_batches(source, "train", np.array([0, TRAINING_IMAGES]), batch_size=2))


def test_impossible_requests_of_images_are_refused():
    source = make_memory_source(train=(numbered_images(26),))
    config = DataConfig(pad_and_crop=SIZE)
    for call, words in (
        (lambda: data.count_epoch_steps(source, 27), "27, but numbers has 26 training images"),
        (lambda: data.load_images(source, "tset", 1), "no split 'tset'; use one of train"),
        (lambda: data.load_images(source, "train", 30), "numbers has 26 of them in train"),
        (
            lambda: data.make_training_batches(source, config, batch_size=2, seed=1),
            "pad_and_crop is 8; it must be below",
        ),
    ):
        assert words in numbered.one_line_error(call)


@pytest.mark.parametrize(
    ("pad", "flip", "shape"), [(0, True, (SIZE, SIZE, 3)), (2, True, (SIZE, 12, 1)), (SIZE - 2, False, (SIZE, SIZE, 3))]
)
def test_augmentation_gives_every_flip_and_crop_with_equal_frequency(pad, flip, shape):
    image, (height, width, _) = np.random.default_rng(0).integers(0, 256, shape, np.uint8), shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    crops = [padded[y : y + height, x : x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    counts = dict.fromkeys([crop.tobytes() for crop in crops] + [crop[:, ::-1].tobytes() for crop in crops if flip], 0)

    def augment(number):
        return augment_image(tf.constant(image), tf.stack([tf.constant(5, tf.int64), number]), pad, flip)

    for result in tf.data.Dataset.range(20 * len(counts)).map(augment).as_numpy_iterator():
        assert result.dtype == np.uint8 and result.shape == image.shape
        counts[result.tobytes()] += 1
    # Each case is expected 20 times; a uniform draw misses none and favours none.
    assert min(counts.values()) >= 3 and max(counts.values()) <= 50


@pytest.fixture(scope="module")
def folder_source(image_folder):
    return open_source(run_config(image_folder).data, (8, 8, 3))


def contexts(pipelines, replicas):
    return [tf.distribute.InputContext(pipelines, number, replicas) for number in range(pipelines)]


@pytest.mark.parametrize(
    ("pipelines", "replicas", "micro_batches", "start"), [(1, 2, 1, 3), (2, 2, 2, 1), (2, 4, 1, 0)]
)
def test_slices_of_all_workers_are_the_batch(folder_source, image_folder, pipelines, replicas, micro_batches, start):
    options, config = {"batch_size": 8, "seed": 3, "start_step": start}, run_config(image_folder).data
    # Two batches an epoch: four steps cross its border.
    whole = list(data.make_training_batches(folder_source, config, **options).take(4).as_numpy_iterator())
    options["micro_batches"] = micro_batches
    local, shares = replicas // pipelines, []
    for context in contexts(pipelines, replicas):
        share = data.make_training_batches(folder_source, config, **options, context=context)
        shares.append(list(share.take(4 * micro_batches * local).as_numpy_iterator()))
    slices = [piece for part in range(4 * micro_batches) for share in shares for piece in share[part * local :][:local]]
    parts = replicas * micro_batches
    for step, batch in enumerate(whole):
        pieces = slices[step * parts :][:parts]
        assert all(len(piece["label"]) == 8 // parts for piece in pieces)
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), batch[name])


@pytest.mark.parametrize(("pipelines", "replicas"), [(1, 2), (2, 4)])
def test_evaluation_of_several_workers_counts_each_image_once(folder_source, pipelines, replicas):
    batches = data.make_evaluation_batches(folder_source, "train", batch_size=8)
    counted = []
    for context in contexts(pipelines, replicas):
        for piece in data.slice_for_replicas(batches, context).as_numpy_iterator():
            assert len(piece["weight"]) == 8 // replicas
            counted += [int(index) for index, weight in zip(piece["index"], piece["weight"], strict=True) if weight]
    assert sorted(counted) == list(range(20))
