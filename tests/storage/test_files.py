"""Tests of files written whole, and of locks between programs."""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest
from helpers.places import PATIENCE, ROOT

from tfdecouple.storage.files import TEMPORARY, beside, parse_json, put_in_place, write_bytes, write_json
from tfdecouple.storage.locks import locked

# Holds a lock until its input ends, and says so.
HOLDER = """
import pathlib, sys
from tfdecouple.storage.locks import locked
with locked(pathlib.Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""


class TestWriting:
    def test_json_has_lists_of_numbers_in_one_line_each_and_texts_as_they_are(self, tmp_path):
        values = {
            "text": "[\n 1, 2 ]",
            "numbers": [1, -3e-7, None, True],
            "rows": [[1, 2], []],
            "mixed": [{"a": [1]}, "[ 1 ]"],
        }
        write_json(tmp_path / "file.json", values)
        text = (tmp_path / "file.json").read_text(encoding="utf-8")
        assert json.loads(text) == values
        assert '  "numbers": [1, -3e-07, null, true],\n' in text and "\n    [1, 2],\n" in text

    def test_json_has_null_for_what_is_no_number(self, tmp_path):
        write_json(tmp_path / "file.json", {"a": [math.nan, 1.5], "b": {"c": math.inf, "d": (-math.inf, 2)}})
        assert parse_json((tmp_path / "file.json").read_bytes()) == {"a": [None, 1.5], "b": {"c": None, "d": [None, 2]}}

    def test_replaces_a_file_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "new folder" / "file.json"
        write_json(path, [1])
        write_json(path, {"a": 2})
        assert path.read_text() == '{\n  "a": 2\n}\n' and os.listdir(path.parent) == ["file.json"]

    @pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
    def test_what_fails_leaves_the_old_file(self, moment, monkeypatch, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(
                *{"open": (pathlib.Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (pathlib.Path, "replace")}[
                    moment
                ],
                full,
            )
            with pytest.raises(OSError, match="No space"):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]

    def test_file_on_its_way_is_hidden_and_known_as_temporary(self, tmp_path):
        with beside(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            assert temporary.match(TEMPORARY) and not (tmp_path / "file").exists()
            put_in_place(temporary, tmp_path / "file")
        assert os.listdir(tmp_path) == ["file"]


class TestLock:
    @pytest.fixture
    def holder(self, tmp_path):
        """A program that holds the lock of `lock`."""
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "held\n"
            yield process
            process.kill()

    def test_is_refused_while_another_program_holds_it(self, holder, tmp_path):
        with pytest.raises(BlockingIOError), locked(tmp_path / "lock"):
            pass
        holder.stdin.close()
        holder.wait(PATIENCE)
        with locked(tmp_path / "lock"):
            pass

    def test_killed_program_holds_none(self, holder, tmp_path):
        holder.kill()
        with locked(tmp_path / "lock", wait=True):
            pass

    def test_file_goes_only_where_it_is_not_kept(self, tmp_path):
        for keep in (True, False):
            with locked(tmp_path / "lock", keep=keep), pytest.raises(BlockingIOError), locked(tmp_path / "lock"):
                pass
            assert (tmp_path / "lock").exists() == keep

    def test_folder_that_is_not_there_is_no_other_program(self, tmp_path):
        with pytest.raises(FileNotFoundError), locked(tmp_path / "no" / "lock"):
            pass
