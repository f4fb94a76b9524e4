"""Tests that files are written completely or not at all."""

import math
import os
import pathlib

import pytest

from tfdecouple.storage.files import TEMPORARY, move_into_place, parse_json, temporary_file, write_bytes, write_json


class TestWriting:
    def test_json_has_null_for_numbers_that_are_not_finite(self, tmp_path):
        write_json(tmp_path / "file.json", {"a": [math.nan, 1.5], "b": {"c": math.inf, "d": (-math.inf, 2)}})
        assert parse_json((tmp_path / "file.json").read_bytes()) == {"a": [None, 1.5], "b": {"c": None, "d": [None, 2]}}

    def test_write_replaces_a_file_and_leaves_no_temporary_file(self, tmp_path):
        path = tmp_path / "new folder" / "file.json"
        write_json(path, [1])
        write_json(path, {"a": 2})
        assert path.read_text() == '{\n  "a": 2\n}\n' and os.listdir(path.parent) == ["file.json"]

    @pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
    def test_failed_write_keeps_the_old_file_alone(self, moment, monkeypatch, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        place = {"open": (pathlib.Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (pathlib.Path, "replace")}
        with monkeypatch.context() as patch:
            patch.setattr(*place[moment], full)
            with pytest.raises(OSError, match="No space"):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]

    def test_unfinished_file_has_a_hidden_temporary_name(self, tmp_path):
        with temporary_file(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            assert temporary.match(TEMPORARY) and not (tmp_path / "file").exists()
            move_into_place(temporary, tmp_path / "file")
        assert os.listdir(tmp_path) == ["file"]
