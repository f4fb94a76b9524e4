"""Names of data sets: what is suggested for one that there is not, and folders named from the root."""

import os

import pytest

from tfdecouple.config import DataConfig
from tfdecouple.data import open_source
from tfdecouple.data.sources import resolve_paths
from tfdecouple.errors import DataError


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("mnist", "tfds:mnist"),
        ("MNIST", "tfds:mnist"),
        ("cifar100", "tfds:cifar100"),
        ("cifar", "cifar10"),
        ("./photos", "folder:./photos"),
        ("/no/such/place", "folder:/no/such/place"),
        ("photos", "folder:photos"),
    ],
)
def test_what_was_meant_is_named(typed, suggested, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"did you mean {suggested}[?]"):
        open_source(DataConfig(source=typed), (8, 8, 3))


def test_a_name_that_no_file_system_takes_is_one_line():
    with pytest.raises(DataError, match="cannot open data.source=folder:/x+: File name too long; ") as error:
        open_source(DataConfig(source=f"folder:/{'x' * 300}"), (8, 8, 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (DataConfig(source="folder:photos"), DataConfig(source="folder:{here}/photos")),
        (DataConfig(source="folder:../{name}/photos/"), DataConfig(source="folder:{here}/photos")),
        (DataConfig(source="folder:~/photos"), DataConfig(source="folder:{home}/photos")),
        (DataConfig(source="cifar10", data_dir="sets"), DataConfig(source="cifar10", data_dir="{here}/sets")),
        (DataConfig(source="photographs"), DataConfig(source="photographs")),
        (DataConfig(source="folder:"), DataConfig(source="folder:")),
        (DataConfig(source="no such"), DataConfig(source="no such")),
    ],
)
def test_folders_are_named_from_the_root(typed, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"here": tmp_path, "name": tmp_path.name, "home": os.path.expanduser("~")}

    def filled(config):
        folder = config.data_dir and config.data_dir.format(**places)
        return DataConfig(source=config.source.format(**places), data_dir=folder)

    assert resolve_paths(filled(typed)) == filled(found)
    assert resolve_paths(filled(found)) == filled(found)
