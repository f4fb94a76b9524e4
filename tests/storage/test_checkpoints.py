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
from tfdecouple.storage.files import TEMPORARY, move_into_place, parse_json, temporary_file, write_bytes, write_json


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


def data_of(folder, step):
    return pathlib.Path(folder.checkpoint_path("step", step) + ".data-00000-of-00001")


def index_of(folder, step):
    return pathlib.Path(folder.checkpoint_path("step", step) + ".index")


def flip_every_byte_of_the_middle(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 2):
        content[place] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    "data cut short": lambda folder: os.truncate(data_of(folder, 2), data_of(folder, 2).stat().st_size // 2),
    "data missing": lambda folder: data_of(folder, 2).unlink(),
    "data changed": lambda folder: flip_every_byte_of_the_middle(data_of(folder, 2)),
    "index empty": lambda folder: os.truncate(index_of(folder, 2), 0),
    "index changed": lambda folder: flip_every_byte_of_the_middle(index_of(folder, 2)),
}


class TestCheckpointFolder:
    def test_checkpoints_are_listed_newest_first_and_read_as_written(self, folder):
        assert (folder.list_checkpoint_steps(), folder.list_checkpoint_steps("best")) == ([2, 1], [])
        for step in (1, 2):
            groups = variables(0)
            folder.read_checkpoint("step", step, groups)
            assert values(groups) == values(variables(step))

    def test_checkpoint_folder_keeps_only_the_last_checkpoints_and_one_best(self, tmp_path):
        folder = CheckpointFolder(tmp_path, keep=2)
        for step in range(5):
            folder.write_checkpoint("step", step, variables(step))
            folder.write_checkpoint("best", step, variables(step))
        assert (folder.list_checkpoint_steps(), folder.list_checkpoint_steps("best")) == ([4, 3], [4])
        assert len(list(tmp_path.iterdir())) == 2 * 3

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_damaged_checkpoint_is_refused_and_changes_no_variable(self, folder, kind):
        DAMAGE[kind](folder)
        groups = variables(7)
        message = message_of(DamagedCheckpointError, lambda: folder.read_checkpoint("step", 2, groups))
        assert "step-000000002 is damaged" in message
        assert values(groups) == values(variables(7))

    def test_remove_remains_deletes_only_files_of_interrupted_writes(self, folder):
        # Files of the user stay.
        (folder.path / "backup").mkdir()
        (folder.path / "backup" / "step-000000001.index").touch()
        for name in ("notes.txt", ".hidden", "step-5.index", "step-000000003", "best-000000003.index.txt"):
            (folder.path / name).touch()
        whole = sorted(folder.path.rglob("*"))
        for unfinished in (folder.path / "step-000000003_temp", folder.path / ".best-000000003_temp"):
            unfinished.mkdir()
            (unfinished / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
        (folder.path / "step-000000003.data-00000-of-00001").write_bytes(b"whole, but without an index")
        (folder.path / ".step-000000003.index").touch()
        (folder.path / ".step-000000003.index.tempstate123").touch()
        folder.remove_remains()
        assert sorted(folder.path.rglob("*")) == whole

    def test_checkpoint_of_a_killed_write_is_not_listed(self, folder, monkeypatch):
        class Killed(BaseException):
            pass

        def replace(self, target):
            raise Killed

        whole = sorted(folder.path.iterdir())
        monkeypatch.setattr(pathlib.Path, "replace", replace)
        with pytest.raises(Killed):
            folder.write_checkpoint("step", 3, variables(3))
        assert folder.list_checkpoint_steps() == [2, 1]
        assert len(list(folder.path.iterdir())) > len(whole)
        folder.remove_remains()
        assert sorted(folder.path.iterdir()) == whole

    def test_failed_write_of_a_checkpoint_gives_one_error_line_and_keeps_the_others(self, folder):
        whole = sorted(folder.path.iterdir())
        # A folder stands where the file must go.
        (folder.path / "step-000000003.data-00000-of-00001" / "inside").mkdir(parents=True)
        message = message_of(RunError, lambda: folder.write_checkpoint("step", 3, variables(3)))
        assert "cannot write the checkpoint" in message and "the run resumes from step 2" in message
        assert sorted(folder.path.iterdir()) == whole

    def test_checkpoint_folder_that_cannot_be_made_gives_one_error_line(self, tmp_path):
        (tmp_path / "file").touch()
        folder = CheckpointFolder(tmp_path / "file" / "checkpoints")
        message = message_of(RunError, lambda: folder.write_checkpoint("best", 1, variables(1)))
        assert "cannot write the checkpoint" in message and "Not a directory; start again" in message


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
            key = f"{name.replace('.', '..').replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
            average = newest.get(f"averages/{key}", newest[f"model/{key}"])
            np.testing.assert_array_equal(variable, average, err_msg=name)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (shutil.rmtree, "there is no run folder"),
            (lambda run: (run / "config.json").unlink(), "is no run folder: it has no config.json"),
            (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint yet"),
            (lambda run: [os.truncate(f, 9) for f in (run / "checkpoints").glob("*.data*")], "is damaged"),
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

    def test_write_replaces_a_file_and_leaves_no_temporary_file(self, tmp_path):
        path = tmp_path / "new folder" / "file.json"
        write_json(path, [1])
        write_json(path, {"a": 2})
        assert path.read_text() == '{\n  "a": 2\n}\n' and os.listdir(path.parent) == ["file.json"]

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

    def test_unfinished_file_has_a_hidden_temporary_name(self, tmp_path):
        with temporary_file(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            assert temporary.match(TEMPORARY) and not (tmp_path / "file").exists()
            move_into_place(temporary, tmp_path / "file")
        assert os.listdir(tmp_path) == ["file"]
