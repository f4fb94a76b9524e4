"""Numbers by file name, and labels: what is read, and what is refused in a line."""

import numpy as np
import pytest
from helpers.numbered import one_line_error

from tfdecouple.data.attributes import read_attributes
from tfdecouple.data.labels import check_labels, require_labels
from tfdecouple.data.splits import Source


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "attributes.csv"
    path.write_bytes(text.encode(encoding))
    return path


class TestTables:
    def test_numbers_by_path_and_by_last_part(self, tmp_path):
        attributes = read_attributes(
            table(tmp_path, "file, age,smiling\na/1.png,20,1\n\n2.png, 3.5e1 ,\n", "utf-8-sig")
        )
        assert attributes.names == ("age", "smiling")
        keys = ["a/1.png", "train/b/2.png", "3.png"]
        attributes.require_unique_rows([*keys, "b/4.png"])
        found = attributes.look_up(keys)
        np.testing.assert_array_equal(found, [[20, 1], [35, np.nan], [np.nan, np.nan]])

    def test_a_whole_path_goes_before_a_last_part(self, tmp_path):
        attributes = read_attributes(table(tmp_path, '"x","n"\n1.png,1\nb/1.png,2\n'))
        keys = ["a/1.png", "b/1.png"]
        attributes.require_unique_rows(keys)
        assert attributes.look_up(keys).tolist() == [[1], [2]]

    def test_one_row_for_two_images_is_refused(self, tmp_path):
        attributes = read_attributes(table(tmp_path, "x,n\n1.png,1\n"))
        # Also where the other image is of a split that is read another time, or lies in the folder itself.
        for keys in (["a/1.png", "b/1.png"], ["train/1.png", "validation/1.png"], ["1.png", "b/1.png"]):
            said = one_line_error(lambda keys=keys: attributes.require_unique_rows(keys))
            assert f"{keys[0]} and {keys[1]}" in said

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("", ("no line of names",)),
            ("file\n1.png\n", ("no line of names", "file,age")),
            ("file,\n1.png,1\n", ("no line of names",)),
            ("file,a,a\n1,1,1\n", ("two columns 'a'",)),
            ("file,a\n", ("no image",)),
            ("file,a\n1.png,1,2\n", ("line 2", "3 cells")),
            ("file,a\n1.png,1\n1.png,2\n", ("line 3", "'1.png'")),
            ("file,a\n1.png,young\n", ("line 2", "'young'", "as a")),
            ("file,a\n1.png,nan\n", ("line 2", "'nan'")),
            ("file,a\n1.png,inf\n", ("'inf'",)),
            ('file,a\n"1.png,1\n', ("cannot read",)),
        ],
    )
    def test_what_is_no_table(self, tmp_path, text, parts):
        path = table(tmp_path, text)
        message = one_line_error(lambda: read_attributes(path))
        assert "attributes.csv" in message and all(part in message for part in parts), message

    def test_files_that_cannot_be_read(self, tmp_path):
        assert "No such file" in one_line_error(lambda: read_attributes(tmp_path / "absent.csv"))
        assert "cannot read" in one_line_error(lambda: read_attributes(tmp_path))
        assert "UTF-8" in one_line_error(lambda: read_attributes(table(tmp_path, "file,ä\n1,2\n", "latin-1")))


def source(*names):
    return Source(name="x", title="things", label_names=names, image_shape=(8, 8, 3), splits={})


class TestLabels:
    def test_numbers_with_names_and_none(self):
        labels = check_labels(source("a", "b"), np.array([1, 0, -1], np.int64))
        assert labels.tolist() == [1, 0, -1] and labels.dtype == np.int32
        assert check_labels(source(), np.array([-1, -1])).tolist() == [-1, -1]

    @pytest.mark.parametrize(
        ("names", "labels", "part"),
        [
            (("a", "b"), [0, 2], "label 2, but the data set has 2 labels, 0 to 1"),
            (("a", "b"), [-2], "label -2"),
            ((), [0], "has no labels"),
            (("a", "b", "a"), [0], "the name 'a'"),
        ],
    )
    def test_others_are_refused(self, names, labels, part):
        assert part in one_line_error(lambda: check_labels(source(*names), np.array(labels)))

    def test_where_all_must_have_one(self):
        assert require_labels(source("a"), "train", np.array([0, 0]), "this").tolist() == [0, 0]
        message = one_line_error(lambda: require_labels(source("a"), "train", np.array([0, -1]), "this"))
        assert "train images without a label; this needs labels" in message
