import hashlib
import os

import numpy as np
import pytest
import tensorflow as tf
from helpers import numbered
from helpers.numbered import one_line_error
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data import batches as data
from tfdecouple.data import sample_images as photographs_module
from tfdecouple.data.batches import load_images
from tfdecouple.data.image_folder import ImageFile, split_files_by_hash
from tfdecouple.data.labels import read_attributes
from tfdecouple.data.sources import Source, open_source, resolve_image_paths


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

    assert resolve_image_paths(filled(typed)) == filled(resolved)
    assert resolve_image_paths(filled(resolved)) == filled(resolved)


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


def source(*names):
    return Source(name="x", title="things", label_names=names, image_shape=(8, 8, 3), splits={})


class TestFolder:
    @staticmethod
    def _open(folder, size=numbered.SIZE, **options):
        return open_source(DataConfig(source=f"folder:{folder}", **options), (size, size, 3))

    @staticmethod
    def _files(count, prefix=""):
        return [ImageFile(f"/x/{prefix}{i}.png", f"{prefix}{i}.png", "") for i in range(count)]

    def test_subfolders_are_splits_and_labels(self, numbered_folder):
        source = self._open(numbered_folder)
        assert source.sizes == {"train": 26, "validation": 3, "test": 4}
        assert source.label_names == ("high", "low")
        assert source.descriptions == {"train": "train/", "validation": "val/", "test": "test/"}
        images, labels = data.load_images(source, "train", 26)
        # "high" comes first by name and holds the images from 13 on.
        np.testing.assert_array_equal(images, np.roll(numbered.numbered_images(26), -13, axis=0))
        np.testing.assert_array_equal(labels, [0] * 13 + [1] * 13)
        np.testing.assert_array_equal(data.load_images(source, "test", 4)[1], [-1] * 4)

    def test_images_directly_in_the_folder_have_no_labels(self, tmp_path):
        numbered.write_images(tmp_path, numbered.numbered_images(10))
        (tmp_path / "README.txt").write_text("not an image")
        (tmp_path / "._000.png").write_bytes(b"nor is this")
        source = self._open(tmp_path)
        assert sum(source.sizes.values()) == 10 and source.label_names == ()
        assert (data.load_images(source, "train", source.sizes["train"])[1] == -1).all()

    def test_split_of_a_file_name_never_changes(self):
        parts = split_files_by_hash(self._files(40))
        assert [file.key for file in parts["validation"]] == ["14.png", "18.png", "34.png", "38.png"]
        assert [file.key for file in parts["test"]] == ["0.png", "6.png", "8.png", "33.png"]

    def test_missing_validation_is_held_out_of_train(self, tmp_path):
        numbered.write_images(tmp_path / "train", numbered.numbered_images(60))
        numbered.write_images(tmp_path / "test", numbered.numbered_images(7))
        source = self._open(tmp_path)
        assert source.sizes["test"] == 7 and source.sizes["validation"] >= 1
        assert source.sizes["train"] + source.sizes["validation"] == 60
        kept = data.load_images(source, "train", source.sizes["train"])[0][:, 0, 0, 0]
        held_out = data.load_images(source, "validation", source.sizes["validation"])[0][:, 0, 0, 0]
        assert sorted([*kept, *held_out]) == list(range(60))
        assert "without validation" in source.descriptions["train"]

    def test_contradictory_split_folders_are_refused(self, tmp_path):
        numbered.write_images(tmp_path / "test", numbered.numbered_images(3))
        numbered.write_images(tmp_path / "cats", numbered.numbered_images(3))
        assert "none named train" in numbered.one_line_error(lambda: self._open(tmp_path))
        for name in ("train", "val", "validation"):
            numbered.write_images(tmp_path / name, numbered.numbered_images(3))
        assert "val and validation" in numbered.one_line_error(lambda: self._open(tmp_path))

    def test_folder_of_too_few_images_is_refused(self, tmp_path):
        numbered.write_images(tmp_path / "label", numbered.numbered_images(2))
        assert "holds 2 images" in numbered.one_line_error(lambda: self._open(tmp_path))
        (tmp_path / "train").mkdir()
        assert "train holds 0 images" in numbered.one_line_error(lambda: self._open(tmp_path))

    @pytest.fixture
    def damaged(self, tmp_path):
        """Ten training images, of which number 3 is cut short and number 7 is no image at all."""
        numbered.write_images(tmp_path / "train", numbered.numbered_images(10))
        numbered.write_images(tmp_path / "val", numbered.numbered_images(2))
        numbered.write_images(tmp_path / "test", numbered.numbered_images(2))
        whole = (tmp_path / "train" / "003.png").read_bytes()
        (tmp_path / "train" / "003.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "train" / "007.png").write_text("no image")
        return tmp_path

    def test_bad_image_is_refused_when_a_small_folder_is_opened(self, damaged):
        message = numbered.one_line_error(lambda: self._open(damaged))
        assert str(damaged / "train" / "003.png") in message and "data.on_bad_image=skip" in message

    def test_bad_image_of_a_small_folder_is_skipped_on_request(self, damaged):
        source = self._open(damaged, on_bad_image="skip")
        assert source.skipped == 2 and source.sizes["train"] == 8
        assert data.load_images(source, "train", 8)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9]

    def test_bad_image_of_a_large_folder_is_named_when_read(self, damaged):
        source = self._open(damaged, cache_gib=0)
        assert source.sizes["train"] == 10

        def train():
            with source.guard():
                list(data.make_training_batches(source, numbered.PLAIN, batch_size=5, seed=0).take(2))

        message = numbered.one_line_error(train)
        assert "003.png" in message or "007.png" in message
        assert "003.png" in numbered.one_line_error(lambda: data.load_images(source, "train", 5))

    def test_bad_image_of_a_large_folder_is_replaced_in_training_and_left_out_of_evaluation(self, damaged):
        source = self._open(damaged, cache_gib=0, on_bad_image="skip")
        assert source.skipped == 0
        batches = numbered.take_batches(source, numbered.PLAIN, 4, batch_size=5)
        assert source.skipped == 2
        # The next readable image stands in for a bad one, in every epoch alike.
        for epoch in (batches[:2], batches[2:]):
            assert sorted(numbered.read_numbers(epoch)) == [0, 1, 2, 4, 4, 5, 6, 8, 8, 9]
        numbered.assert_same(numbered.take_batches(source, numbered.PLAIN, 1, start_step=3, batch_size=5), batches[3:])
        weighed = list(data.make_evaluation_batches(source, "train", batch_size=3).as_numpy_iterator())
        indices = [int(i) for batch in weighed for i, w in zip(batch["index"], batch["weight"], strict=True) if w]
        assert indices == [0, 1, 2, 4, 5, 6, 8, 9] and source.skipped == 2
        assert data.load_images(source, "train", 8)[0][:, 0, 0, 0].tolist() == indices
        assert data.load_images(source, "train", 10, at_most=True)[0][:, 0, 0, 0].tolist() == indices
        assert "has 8 of them" in numbered.one_line_error(lambda: data.load_images(source, "train", 10))

    def test_folder_without_a_readable_image_is_refused(self, damaged):
        for path in (damaged / "train").iterdir():
            path.write_text("no image")
        assert "none of the 10" in numbered.one_line_error(lambda: self._open(damaged, on_bad_image="skip"))
        source = self._open(damaged, on_bad_image="skip", cache_gib=0)

        def train():
            with source.guard():
                numbered.take_batches(source, numbered.PLAIN, 1)

        assert "none of the 10" in numbered.one_line_error(train)


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
        # Crops must be the same on every machine and with every version of NumPy.
        draws = np.random.default_rng(3).random((1000, 3))
        boxes = photographs_module.draw_crop_boxes((640, 427), "test", (32, 32), draws)
        assert hashlib.sha256(boxes.astype("<i8").tobytes()).hexdigest()[:16] == "f95893a383df9c23"

    def test_crops_of_a_split_contain_no_pixel_of_another_split(self):
        # A picture whose bands have one colour each: a filter that reached over the border would mix them.
        colours = {"train": (255, 0, 0), "validation": (0, 255, 0), "test": (0, 0, 255)}
        picture = Image.new("RGB", (300, 200))
        for split, colour in colours.items():
            picture.paste(colour, photographs_module.find_split_band(picture.size, split))
        for split, colour in colours.items():
            images, _ = photographs_module.cut_photograph_crops((picture,), split, 50, (16, 16, 3))
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
