import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers.forked import forked_programs
from helpers.models import LEAST
from helpers.places import PATIENCE, ROOT, run_python, user_environment
from helpers.runs import assert_same_checkpoint, read_log_without_timing, run_config

from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.storage.files import TEMPORARY, write_json

pytestmark = pytest.mark.slow


def write_options(config, run, beside=None):
    """Writes the config into a folder beside the run, and returns the options of `train.py`."""
    path = (beside or run.parent) / "program.json"
    write_json(path, config.to_dict())
    return ["--config", str(path), "--workdir", str(run)]


class Program:
    """`python train.py` in a process of its own."""

    def __init__(self, config, run, beside=None):
        beside = beside or run.parent
        self.run = run
        self.files = [(beside / f"program.{name}").open("w+") for name in ("out", "err")]
        out, err = self.files
        command = [sys.executable, "train.py", *write_options(config, run, beside)]
        with forked_programs():
            self.process = subprocess.Popen(command, cwd=ROOT, env=user_environment(), stdout=out, stderr=err)

    def wait_for(self, condition):
        """Waits until `condition()` holds; False where the program ended before."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "the program takes too long"
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def wait_for_step(self, step):
        return self.wait_for(lambda: self.newest() >= step)

    def pause_amid_saving(self):
        """Stops the program, without an end to it, while the temporary file of a checkpoint is there."""
        while True:
            assert self.wait_for(self.is_saving)
            self.process.send_signal(signal.SIGSTOP)
            while self.process.poll() is None and not self.is_stopped():
                time.sleep(0.001)
            if self.is_saving():
                return
            # The save was over before the signal came.
            self.process.send_signal(signal.SIGCONT)

    def is_stopped(self):
        # Only a parent may wait for a stopped process, and a forked program is no child of this process.
        status = pathlib.Path("/proc", str(self.process.pid), "stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    def is_saving(self):
        return any((self.run / "checkpoints").glob(TEMPORARY))

    def newest(self):
        return max([-1, *CheckpointFolder(self.run / "checkpoints").list_checkpoint_steps()])

    def end(self, number=None):
        """Sends a signal, waits for the end, and returns status, output and errors."""
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(PATIENCE)
        for file in self.files:
            file.seek(0)
        return self.process.returncode, *(file.read() for file in self.files)


# A run that is killed between its steps 5 and 10, from within: from outside it may be over before the signal comes.
KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
import pytest
from helpers.runs import call_before_steps
from tfdecouple.cli import main

call_before_steps(pytest.MonkeyPatch(), lambda _, step: step == 8 and os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_kills_amid_saving_lose_no_saved_step(image_folder, tmp_path):
    run = tmp_path / "run"
    options = {"steps": 100_000, "evaluate_every": 100_000, "checkpoint_every": 1, "keep_checkpoints": 2}
    config = run_config(image_folder, model=LEAST, **options)
    rng = random.Random(0)
    reached = -1
    for number in range(4):
        program = Program(config, run)
        goal = max(reached, 0) + rng.randrange(1, 6)
        assert program.wait_for_step(goal)
        if number % 2:
            program.pause_amid_saving()
        else:
            time.sleep(rng.random() * 0.05)
        status, out, err = program.end(signal.SIGKILL)
        assert status == -signal.SIGKILL
        # Half of the kills leave a save half done.
        assert program.is_saving() or number % 2 == 0
        newest = program.newest()
        assert newest >= goal
        assert err == ""
        if number:
            assert f"resumes from step {reached}\n" in out, out
            assert "no checkpoint" not in out
        reached = newest
    program = Program(config, run)
    assert program.wait_for_step(reached + 1)
    status, out, err = program.end(signal.SIGTERM)
    assert status == 75
    assert f"resumes from step {reached}\n" in out, out
    # Two checkpoints, and nothing that any of the killed programs left.
    assert len(list((run / "checkpoints").iterdir())) == 2
    names = {".lock", "checkpoints", "config.json", "metrics.jsonl", "tensorboard"}
    assert {path.name for path in run.iterdir()} == names
    steps = [step for _, step in read_log_without_timing(run)]
    assert steps == sorted(steps)


def fill(folder, leave=0):
    """Fills up a file system but for some bytes."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    size = (folder / "filler").stat().st_size
    os.truncate(folder / "filler", max(0, size - leave))


class TestFullDisk:
    @pytest.fixture(scope="class")
    def config(self, image_folder):
        return run_config(image_folder, model=LEAST)

    @pytest.fixture(scope="class")
    def stopped_run(self, config, tmp_path_factory):
        run = tmp_path_factory.mktemp("stopped") / "run"
        with forked_programs():
            done = run_python("-c", KILLED, *write_options(config, run))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (run / "summary.json").exists()
        return run

    @pytest.fixture(scope="class")
    def whole_run(self, config, tmp_path_factory):
        """The run as it is where there is room."""
        run = tmp_path_factory.mktemp("whole") / "run"
        assert Program(config, run).end()[0] == 0
        return run

    # The log fits and no checkpoint; the checkpoint, and not all pictures of the evaluation.
    @pytest.mark.parametrize("room", [40, 120])
    def test_training_resumes_after_a_full_disk(self, config, stopped_run, whole_run, disk, tmp_path, room):
        small_disk = disk(3 * 1024)
        run = small_disk / "run"
        shutil.copytree(stopped_run, run)
        checkpoints = CheckpointFolder(run / "checkpoints")
        before = checkpoints.list_checkpoint_steps()
        assert before == [5]
        fill(small_disk, leave=room * 1024)
        status, _, err = Program(config, run, tmp_path).end()
        assert status == 2
        assert err.count("\n") == 1 and err.startswith("error: cannot write")
        assert "No space left on device" in err
        assert "{{" not in err and "Traceback" not in err
        assert set(before) <= set(checkpoints.list_checkpoint_steps())
        assert not list(run.glob(".*.tmp"))
        (small_disk / "filler").unlink()
        newest = checkpoints.list_checkpoint_steps()[0]
        status, out, err = Program(config, run, tmp_path).end()
        assert (status, err) == (0, "")
        assert f"resumes from step {newest}\n" in out
        assert_same_checkpoint(run, whole_run, "step-000000010")
        assert read_log_without_timing(run) == read_log_without_timing(whole_run)
        assert RunFolder(run).read_summary() == RunFolder(whole_run).read_summary()
