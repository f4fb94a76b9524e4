import json
import math
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.refusals import message_of
from helpers.runs import read_checkpoint

import tfdecouple
from tfdecouple.errors import RunError
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import TEMPORARY, parse_json, write_bytes, write_json


def variables(value):
    return {"model": {"a/b": tf.Variable(np.full(300, value, np.float32)), "c": tf.Variable(np.int64(value))}}


def values(groups):
    return [variable.numpy().tolist() for variable in groups["model"].values()]


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints of steps 1 and 2, which hold ones and twos."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for step in (1, 2):
        folder.write_checkpoint("step", step, variables(step))
    return folder


def flip_every_byte_of_the_middle(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 2):
        content[place] ^= 0xFF
    path.write_bytes(content)


def edit_header(path, change):
    """Applies `change` to the header of a safetensors file: a dict {name of tensor: dict} and "__metadata__"."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def change_tensor(**fields):
    return lambda path: edit_header(path, lambda header: header["model/c"].update(fields))


DAMAGE = {
    "empty": lambda path: os.truncate(path, 0),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": pathlib.Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "changed": flip_every_byte_of_the_middle,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "no header": lambda path: path.write_bytes(bytes(100)),
    "header of 2^63 bytes": lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"),
    "nested header": lambda path: edit_header(path, lambda header: header.update(x=json.loads("[" * 900 + "]" * 900))),
    "no checksum": lambda path: edit_header(path, lambda header: header.pop("__metadata__")),
    "checksum of others": lambda path: edit_header(path, lambda header: header["__metadata__"].update(crc32="0" * 8)),
    "another order": lambda path: edit_header(path, lambda header: header.update(a=header.pop("model/c"))),
    "negative dimension": change_tensor(shape=[-1]),
    "2^62 x 2^62": change_tensor(shape=[2**62, 2**62]),
    "unknown type": change_tensor(dtype="I7"),
    "too few bytes": change_tensor(shape=[3]),
    "before the file": change_tensor(data_offsets=[-8, 0]),
    "after the file": change_tensor(data_offsets=[1200, 1216]),
    "overlapping": change_tensor(data_offsets=[4, 12]),
}


class TestCheckpointFolder:
    def test_folder_keeps_the_last_checkpoints_and_one_best_which_are_read_as_written(self, tmp_path):
        folder = CheckpointFolder(tmp_path, keep=2)
        for step in range(5):
            folder.write_checkpoint("step", step, variables(step))
            folder.write_checkpoint("best", step, variables(step))
        assert (folder.list_checkpoint_steps(), folder.list_checkpoint_steps("best")) == ([4, 3], [4])
        assert len(list(tmp_path.iterdir())) == 3
        for kind, step in (("step", 3), ("step", 4), ("best", 4)):
            groups = variables(0)
            folder.read_checkpoint(kind, step, groups)
            assert values(groups) == values(variables(step))

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_damaged_checkpoint_is_refused_and_changes_no_variable(self, folder, kind):
        DAMAGE[kind](folder.checkpoint_path("step", 2))
        groups = variables(7)
        message = message_of(DamagedCheckpointError, lambda: folder.read_checkpoint("step", 2, groups))
        assert "step-000000002.safetensors is damaged" in message
        assert values(groups) == values(variables(7))

    def test_tensor_of_another_dtype_than_the_weight_is_refused(self, folder):
        groups = {"model": {"c": tf.Variable(np.int32(7))}}
        says = message_of(RunError, lambda: folder.read_checkpoint("step", 1, groups))
        assert "model/c is int32 of shape () by the config, and int64 of shape () in the checkpoint" in says
        assert values(groups) == [7]

    def test_shapes_of_weights_are_those_of_the_group_model(self, folder):
        averages = {"averages": {"a": tf.Variable(1.0)}}
        folder.write_checkpoint("step", 3, variables(3) | averages)
        assert folder.read_weight_shapes("step", 3) == {"a/b": (300,), "c": ()}

    def test_checkpoint_of_a_killed_write_is_not_listed(self, folder, monkeypatch):
        def replace(self, target):
            raise KeyboardInterrupt

        # Files of the user stay.
        for name in ("notes.txt", ".hidden", "step-5.safetensors", "step-000000003", "best-000000003.safetensors.txt"):
            (folder.path / name).touch()
        whole = sorted(folder.path.iterdir())
        monkeypatch.setattr(pathlib.Path, "replace", replace)
        # A killed program removes nothing.
        monkeypatch.setattr(pathlib.Path, "unlink", lambda self, missing_ok: None)
        with pytest.raises(KeyboardInterrupt):
            folder.write_checkpoint("step", 3, variables(3))
        monkeypatch.undo()
        assert folder.list_checkpoint_steps() == [2, 1]
        assert len(list(folder.path.iterdir())) > len(whole)
        assert sorted(path for path in folder.path.iterdir() if not path.match(TEMPORARY)) == whole

    def test_failed_write_of_a_checkpoint_gives_one_error_line_and_keeps_the_others(self, folder, monkeypatch):
        def replace(self, target):
            raise OSError(28, "No space left on device")

        whole = sorted(folder.path.iterdir())
        monkeypatch.setattr(pathlib.Path, "replace", replace)
        message = message_of(RunError, lambda: folder.write_checkpoint("step", 3, variables(3)))
        assert "cannot write the checkpoint" in message and "the run resumes from step 2" in message
        assert sorted(folder.path.iterdir()) == whole


class TestLoadModel:
    @pytest.mark.parametrize("spoil", [pathlib.Path.unlink, lambda file: os.truncate(file, 9)])
    def test_model_loads_averages_of_the_last_step_if_the_best_checkpoint_is_unreadable(
        self, finished_run, tmp_path, spoil
    ):
        run = shutil.copytree(finished_run, tmp_path / "run")
        for path in (run / "checkpoints").glob("best-*"):
            spoil(path)
        newest = read_checkpoint(run, "step-000000010")
        for name, variable in tfdecouple.load_model(run).named_variables().items():
            average = newest.get(f"averages/{name}", newest[f"model/{name}"])
            np.testing.assert_array_equal(variable, average, err_msg=name)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda run: (run / "config.json").unlink(), "is no run folder: it has no config.json"),
            (lambda run: [os.truncate(f, 9) for f in (run / "checkpoints").iterdir()], "is damaged"),
        ],
    )
    def test_run_that_cannot_be_opened_is_refused_in_one_line(self, finished_run, tmp_path, spoil, message):
        run = shutil.copytree(finished_run, tmp_path / "run")
        spoil(run)
        assert message in message_of(RunError, lambda: tfdecouple.load_model(run))


class TestWriting:
    def test_json_files_have_null_for_numbers_that_are_not_finite(self, tmp_path):
        write_json(tmp_path / "file.json", {"a": [math.nan, 1.5], "b": {"c": math.inf, "d": (-math.inf, 2)}})
        assert parse_json((tmp_path / "file.json").read_bytes()) == {"a": [None, 1.5], "b": {"c": None, "d": [None, 2]}}

    @pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
    def test_failed_write_leaves_only_the_old_file(self, moment, monkeypatch, tmp_path):
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
