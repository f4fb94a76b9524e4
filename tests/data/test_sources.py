import os

import numpy as np
import pytest
from helpers.numbered import one_line_error

from tfdecouple.config import DataConfig
from tfdecouple.data.labels import check_labels, read_attributes
from tfdecouple.data.sources import open_source, resolve_image_paths
from tfdecouple.data.splits import Source


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


def test_unreadable_table_of_attributes_is_refused(table, tmp_path):
    assert "No such file" in one_line_error(lambda: read_attributes(str(tmp_path / "absent.csv")))
    assert "UTF-8" in one_line_error(lambda: read_attributes(table("file,ä\n1,2\n", "latin-1")))


def source(*names):
    return Source(name="x", title="things", label_names=names, image_shape=(8, 8, 3), splits={})


@pytest.mark.parametrize(
    ("names", "labels", "part"),
    [
        (("a", "b"), [0, 2], "label 2, but the data set has 2 labels, 0 to 1"),
        (("a", "b"), [-2], "label -2"),
        ((), [0], "has no labels"),
    ],
)
def test_unknown_label_is_refused(names, labels, part):
    assert part in one_line_error(lambda: check_labels(source(*names), np.array(labels)))
