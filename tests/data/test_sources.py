import hashlib
import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import numbered
from helpers.numbered import SIZE, numbered_images, one_line_error, write_images
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from tfdecouple.config import DataConfig
from tfdecouple.data import sample_images
from tfdecouple.data.batches import load_images, make_evaluation_batches
from tfdecouple.data.image_folder import ImageFile, split_files_by_hash
from tfdecouple.data.labels import read_attributes
from tfdecouple.data.sources import open_source, resolve_image_paths
from tfdecouple.data.tfds import choose_tfds_splits


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("cifar11", "'cifar11'; did you mean cifar10?; there are photographs, cifar10"),
        ("/no/such/place", "did you mean folder:/no/such/place?"),
        ("photos", "did you mean folder:photos?"),
        ("folder:", "folder:PATH"),
        ("folder:/no/such/folder", "no folder /no/such/folder"),
        (f"folder:/{'x' * 300}", "File name too long"),
    ],
)
def test_unknown_data_source_is_refused_with_a_suggestion(typed, part, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert part in one_line_error(lambda: open_source(DataConfig(source=typed), (8, 8, 3)))


@pytest.mark.parametrize(
    ("typed", "resolved"),
    [
        (DataConfig(source="folder:../{name}/photos/"), DataConfig(source="folder:{here}/photos")),
        (DataConfig(source="folder:~/photos"), DataConfig(source="folder:{home}/photos")),
        (DataConfig(source="cifar10", data_dir="sets"), DataConfig(source="cifar10", data_dir="{here}/sets")),
        (DataConfig(source="photographs"), DataConfig(source="photographs")),
        (DataConfig(source="no such"), DataConfig(source="no such")),
    ],
)
def test_paths_of_a_data_source_become_absolute(typed, resolved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"here": tmp_path, "name": tmp_path.name, "home": os.path.expanduser("~")}

    def filled(config):
        folder = config.data_dir and config.data_dir.format(**places)
        return DataConfig(source=config.source.format(**places), data_dir=folder)

    assert resolve_image_paths(filled(typed)) == resolve_image_paths(filled(resolved)) == filled(resolved)


@pytest.fixture
def table(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "attributes.csv"
        path.write_bytes(text.encode(encoding))
        return str(path)

    return write


def test_attributes_are_looked_up_by_file(table):
    attributes = read_attributes(table('file, age,smiling\na/1.png,20,1\n\n"2.png", 3.5e1 ,\n', "utf-8-sig"))
    assert attributes.names == ("age", "smiling")
    numbers = attributes.look_up_attributes(["a/1.png", "2.png", "b/2.png"])
    np.testing.assert_array_equal(numbers, [[20, 1], [35, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must begin with a line of names"),
        ("file\n1.png\n", "such as: file,age"),
        ("file,a\n1.png,1,2\n", "line 2 of"),
        ("file,a\n1.png,1\n1.png,2\n", "line 3 of"),
        ("file,a\n1.png,young\n", "is '1.png,young'; it must be a further file and 1 cells"),
        ('file,a\n"1.png,1\n', "cannot read"),
    ],
)
def test_table_of_attributes_in_a_wrong_format_is_refused(table, text, part):
    message = one_line_error(lambda: read_attributes(table(text)))
    assert "attributes.csv" in message and part in message


def open_folder(folder, **options):
    return open_source(DataConfig(source=f"folder:{folder}", **options), (SIZE, SIZE, 3))


def load_numbers(source, split, count, **options):
    return load_images(source, split, count, **options)[0][:, 0, 0, 0].tolist()


def train(source, count=2):
    with source.guard():
        return numbered.take_batches(source, numbered.PLAIN, count, batch_size=5)


class TestFolder:
    def test_subfolders_are_splits_and_labels(self, numbered_folder):
        source = open_folder(numbered_folder)
        assert source.sizes == {"train": 26, "validation": 3, "test": 4}
        assert source.label_names == ("high", "low")
        assert source.descriptions == {"train": "train/", "validation": "val/", "test": "test/"}
        images, labels = load_images(source, "train", 26)
        # "high" comes first by name and holds the images from 13 on.
        np.testing.assert_array_equal(images, np.roll(numbered_images(26), -13, axis=0))
        np.testing.assert_array_equal(labels, [0] * 13 + [1] * 13)
        np.testing.assert_array_equal(load_images(source, "test", 4)[1], [-1] * 4)

    def test_images_directly_in_the_folder_have_no_labels(self, tmp_path):
        write_images(tmp_path, numbered_images(10))
        (tmp_path / "README.txt").write_text("not an image")
        (tmp_path / "._000.png").write_bytes(b"nor is this")
        source = open_folder(tmp_path)
        assert sum(source.sizes.values()) == 10 and source.label_names == ()
        assert (load_images(source, "train", source.sizes["train"])[1] == -1).all()

    def test_split_of_a_file_name_never_changes(self):
        parts = split_files_by_hash([ImageFile(f"/x/{number}.png", f"{number}.png", "") for number in range(40)])
        assert [file.key for file in parts["validation"]] == ["14.png", "18.png", "34.png", "38.png"]
        assert [file.key for file in parts["test"]] == ["0.png", "6.png", "8.png", "33.png"]

    def test_missing_validation_is_held_out_of_train(self, tmp_path):
        write_images(tmp_path / "train", numbered_images(60))
        write_images(tmp_path / "test", numbered_images(7))
        source = open_folder(tmp_path)
        assert source.sizes["test"] == 7 and source.sizes["validation"] >= 1
        numbers = [load_numbers(source, split, source.sizes[split]) for split in ("train", "validation")]
        assert sorted(sum(numbers, [])) == list(range(60))
        assert "without validation" in source.descriptions["train"]

    @pytest.mark.parametrize(
        ("counts", "message"),
        [
            ({"test": 3, "cats": 3}, "none named train"),
            ({"test": 3, "train": 3, "val": 3, "validation": 3}, "val and validation"),
            ({"label": 2}, "holds 2 images"),
            ({"train": 0, "label": 2}, "train holds 0 images"),
        ],
    )
    def test_contradictory_or_almost_empty_folder_is_refused(self, tmp_path, counts, message):
        for name, count in counts.items():
            write_images(tmp_path / name, numbered_images(count))
        assert message in one_line_error(lambda: open_folder(tmp_path))

    @pytest.fixture
    def damaged(self, tmp_path):
        """Ten training images, of which number 3 is cut short and number 7 is no image at all."""
        for split, count in {"train": 10, "val": 2, "test": 2}.items():
            write_images(tmp_path / split, numbered_images(count))
        whole = (tmp_path / "train" / "003.png").read_bytes()
        (tmp_path / "train" / "003.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "train" / "007.png").write_text("no image")
        return tmp_path

    def test_bad_image_of_a_small_folder_is_refused_when_opened_or_skipped_on_request(self, damaged):
        message = one_line_error(lambda: open_folder(damaged))
        assert str(damaged / "train" / "003.png") in message and "data.on_bad_image=skip" in message
        source = open_folder(damaged, on_bad_image="skip")
        assert source.skipped == 2 and source.sizes["train"] == 8
        assert load_numbers(source, "train", 8) == [0, 1, 2, 4, 5, 6, 8, 9]

    def test_bad_image_of_a_large_folder_is_named_when_read(self, damaged):
        source = open_folder(damaged, cache_gib=0)
        assert source.sizes["train"] == 10
        message = one_line_error(lambda: train(source))
        assert "003.png" in message or "007.png" in message
        assert "003.png" in one_line_error(lambda: load_images(source, "train", 5))

    def test_bad_image_of_a_large_folder_is_replaced_in_training_and_left_out_of_evaluation(self, damaged):
        source = open_folder(damaged, cache_gib=0, on_bad_image="skip")
        assert source.skipped == 0
        batches = train(source, 4)
        assert source.skipped == 2
        # The next readable image stands in for a bad one, in every epoch alike.
        for epoch in (batches[:2], batches[2:]):
            assert sorted(numbered.read_numbers(epoch)) == [0, 1, 2, 4, 4, 5, 6, 8, 8, 9]
        resumed = numbered.take_batches(source, numbered.PLAIN, 1, start_step=3, batch_size=5)
        numbered.assert_same(resumed, batches[3:])
        weighed = list(make_evaluation_batches(source, "train", batch_size=3).as_numpy_iterator())
        indices = [int(i) for batch in weighed for i, w in zip(batch["index"], batch["weight"], strict=True) if w]
        assert indices == [0, 1, 2, 4, 5, 6, 8, 9] and source.skipped == 2
        assert load_numbers(source, "train", 8) == load_numbers(source, "train", 10, at_most=True) == indices
        assert "has 8 of them" in one_line_error(lambda: load_images(source, "train", 10))

    def test_folder_without_a_readable_image_is_refused(self, damaged):
        for path in (damaged / "train").iterdir():
            path.write_text("no image")
        assert "none of the 10" in one_line_error(lambda: open_folder(damaged, on_bad_image="skip"))
        source = open_folder(damaged, on_bad_image="skip", cache_gib=0)
        assert "none of the 10" in one_line_error(lambda: train(source))


class TestPhotographs:
    def test_crops_do_not_depend_on_their_count_or_a_seed(self):
        source, again = (open_source(DataConfig(photograph_crops=count), (32, 32, 3)) for count in (600, 100))
        tf.random.set_seed(3)
        for split, count in (("train", 100), ("validation", 512), ("test", 1000)):
            np.testing.assert_array_equal(load_images(source, split, count)[0], load_images(again, split, count)[0])

    def test_photographs_can_be_chosen_by_name_and_unknown_names_are_refused(self):
        source = open_source(DataConfig(photographs=("rocket", "coffee")), (32, 32, 3))
        images, labels = load_images(source, "test", 4)
        assert source.label_names == ("rocket", "coffee") and labels.tolist() == [0, 1, 0, 1]
        # A photograph's crops take the numbers that fall to it.
        alone = load_images(open_source(DataConfig(photographs=("rocket",)), (32, 32, 3)), "test", 4)[0]
        np.testing.assert_array_equal(images[::2], alone[::2])
        message = one_line_error(lambda: open_source(DataConfig(photographs=("cofee",)), (32, 32, 3)))
        assert "names 'cofee', and there is no such photograph; did you mean coffee?; there are astronaut," in message

    def test_boxes_of_crops_never_change(self):
        draws = np.random.default_rng(3).random((1000, 3))
        boxes = sample_images.draw_crop_boxes((640, 427), "test", (32, 32), draws)
        assert hashlib.sha256(boxes.astype("<i8").tobytes()).hexdigest()[:16] == "f95893a383df9c23"

    def test_crops_of_a_split_contain_no_pixel_of_another_split(self):
        # A picture whose bands have one colour each: a filter that reached over the border would mix them.
        colours = {"train": (255, 0, 0), "validation": (0, 255, 0), "test": (0, 0, 255)}
        picture = Image.new("RGB", (300, 200))
        for split, colour in colours.items():
            picture.paste(colour, sample_images.find_split_band(picture.size, split))
        for split, colour in colours.items():
            images, _ = sample_images.cut_photograph_crops((picture,), split, 50, (16, 16, 3))
            assert (images == np.array(colour, np.uint8)).all()

    def test_crops_larger_than_a_photograph_are_refused(self):
        message = one_line_error(lambda: open_source(DataConfig(), (90, 90, 3)))
        assert "a side of 90 pixels" in message and "chelsea allows crops of 83" in message
        assert "have 3 channels, or 1" in one_line_error(lambda: open_source(DataConfig(), (16, 24, 4)))

    def test_crops_for_grey_models_are_grey(self):
        data = DataConfig(photographs=("coffee",), photograph_crops=8)
        grey, rgb = (load_images(open_source(data, (16, 24, channels)), "test", 8)[0] for channels in (1, 3))
        # Rounding before or after the conversion to grey changes a value by 2 at most.
        converted = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in rgb])
        assert np.abs(grey[..., 0].astype(int) - converted).max() <= 2 and grey.std() > 10


REAL_DATA = os.environ.get("TFDECOUPLE_DATA_DIR")


def open_tfds(data_dir, download=False, **options):
    options = {"source": "tfds:tiny_numbers", "validation_examples": 4, **options}
    return open_source(DataConfig(data_dir=str(data_dir), **options), (SIZE, SIZE, 3), download)


class TestTfds:
    @pytest.mark.parametrize("cache_gib", [1.0, 0.0])
    def test_splits_of_tfds_have_all_images_exactly(self, tiny_tfds, cache_gib):
        source = open_tfds(tiny_tfds, cache_gib=cache_gib)
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

    def test_too_small_splits_and_unknown_names_of_tfds_are_refused(self, tiny_tfds):
        for sizes, count, says in (
            ({"train": 9, "test": 3}, 9, "9"),
            ({"train": 10}, 5, "10 would be held out"),
            ({"test": 10}, 5, "no split train"),
        ):
            assert says in one_line_error(lambda given=(sizes, count): choose_tfds_splits("some", *given))
        for name, nearest in (("tiny_number", "tiny_numbers"), ("lsun/bedrom", "lsun/bedroom")):
            message = one_line_error(lambda name=name: open_tfds(tiny_tfds, source=f"tfds:{name}"))
            assert f"did you mean {nearest}?" in message

    @pytest.mark.parametrize("name", ["cifar10", "downsampled_imagenet/64x64"])
    def test_missing_data_of_tfds_is_refused_without_a_download(self, tmp_path, name, monkeypatch):
        builder = pytest.importorskip("tensorflow_datasets").core.DatasetBuilder
        monkeypatch.setattr(builder, "download_and_prepare", lambda *_, **__: pytest.fail("a download was started"))
        message = one_line_error(lambda: open_tfds(str(tmp_path), source=name))
        assert name in message and f"tfds build {name.removeprefix('tfds:')} --data_dir {tmp_path}" in message

    def test_download_prepares_a_tfds_data_set(self, tiny_tfds, tmp_path):
        assert "--download" in one_line_error(lambda: open_tfds(tmp_path))
        for download in (True, False):
            assert open_tfds(tmp_path, download).sizes["train"] == 26


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
    assert "tiny_numbers" in one_line_error(lambda: load_images(open_tfds(folder, cache_gib=cache_gib), "test", 1))


@pytest.mark.skipif(REAL_DATA is None, reason="TFDECOUPLE_DATA_DIR is not set")
def test_validation_of_cifar10_is_the_end_of_train():
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
