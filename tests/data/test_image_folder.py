import numpy as np
import pytest
from helpers import numbered

from tfdecouple.config import DataConfig
from tfdecouple.data import batches as data
from tfdecouple.data.image_folder import ImageFile, split_files_by_hash
from tfdecouple.data.sources import open_source


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

    def test_many_images_leave_about_a_twentieth_for_validation_and_for_test(self):
        parts = split_files_by_hash(self._files(4000))
        assert {name: len(files) for name, files in parts.items()} == {"train": 3601, "validation": 208, "test": 191}

    def test_few_images_leave_a_tenth_for_validation_and_for_test(self):
        for count, least in ((3, 1), (10, 1), (79, 7), (200, 8)):
            for prefix in "abcd":
                files = self._files(count, prefix)
                parts = split_files_by_hash(files)
                assert sorted(sum(parts.values(), []), key=files.index) == files
                assert min(len(parts["validation"]), len(parts["test"])) >= least and parts["train"]

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
