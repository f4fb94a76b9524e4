import os

import pytest
from helpers.numbered import one_line_error

from tfdecouple.config import DataConfig
from tfdecouple.data.sources import open_source, resolve_image_paths


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
