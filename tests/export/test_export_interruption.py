"""Exports that are interrupted, killed or out of disk space: never anything half visible."""

import itertools
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from helpers.exporting import PARTS, RECORDS, SERVING, contents, half_written
from helpers.forked import forked_programs
from helpers.models import LEAST, give_effect, random_images
from helpers.once import made_once
from helpers.places import PATIENCE, ROOT, user_environment
from helpers.runs import write_run

from export.card import JSON_NAME, TEXT_NAME
from tfdecouple.model import DecoupledModel


@pytest.fixture(scope="module")
def least_run(tmp_path_factory):
    """A run whose export takes as little time as can be."""
    random.seed(0)
    model = DecoupledModel(LEAST)
    model.initialize(random_images(16))
    return write_run(tmp_path_factory.mktemp("runs") / "least", give_effect(model))


# Few signatures, so that the moments come soon.
FEW = ("--endpoints", "encode", "decode")


class Program:
    """`python -m export` in a process of its own."""

    def __init__(self, run, to, *arguments):
        command = [sys.executable, "-m", "export", "--run", str(run), "--to", str(to), *FEW, *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with forked_programs():
            self.process = subprocess.Popen(command, cwd=ROOT, env=user_environment(), **options)

    def wait_for(self, text):
        """Reads the output until a line with this text."""
        for line in self.process.stdout:
            if text in line:
                return
        raise AssertionError(f"the program ended before {text!r}: {self.process.stderr.read()}")

    def end(self, number=None):
        """Sends a signal, waits for the end, and returns status, output and errors."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


# Moments of an export, by what is said at their beginning, with the seconds to wait from there on an idle machine.
MOMENTS = {
    "looking at the model": ("asking the Keras model", 0.5),
    "tracing": ("SavedModel: decode", 0.0),
    "verifying": ("verifying the SavedModel", 0.5),
    "converting": ("ONNX: decoder", 0.2),
    # This check is over after 0.4 s.
    "verifying at the end": ("verifying the onnx files", 0.0),
}


def end_amid(moment, number, run, to, made=None):
    """Ends an export by a signal at a moment, and returns its status and its error.

    Where the export was over before the signal came, what it has `made` (`to`, or a folder above it) is removed and it
    is tried again with less time in between.
    """
    text, seconds = MOMENTS[moment]
    for attempt in range(6):
        program = Program(run, to)
        program.wait_for(text)
        time.sleep(seconds / 4**attempt)
        status, _, err = program.end(number)
        if status != 0:
            return status, err
        shutil.rmtree(made or to)
    raise AssertionError(f"the export is always over before a signal comes after {text!r}")


def publishes_whole(run, to):
    """Asserts that the same command, unbroken, publishes its first version and leaves nothing else."""
    status, _, err = Program(run, to).end()
    assert (status, err) == (0, "")
    is_whole(to)
    assert {path.name for path in (to / "savedmodel").iterdir()} == {"1"}


def is_whole(to):
    """Asserts that all parts are there, and nothing else."""
    assert half_written(to) == []
    beside = {"client.py", JSON_NAME, TEXT_NAME, *RECORDS, *SERVING}
    assert {path.name for path in to.iterdir()} == {"savedmodel", "onnx", *beside}
    assert {path.name for path in (to / "onnx").iterdir()} == {*PARTS}


@pytest.fixture(scope="module")
def whole(least_run, tmp_path_factory):
    """The folder of a whole export. Do not change it."""
    return made_once(tmp_path_factory, "whole", lambda folder: publishes_whole(least_run, folder / "to")) / "to"


@pytest.mark.slow
class TestInterruption:
    @pytest.mark.parametrize(("moment", "number"), zip(MOMENTS, itertools.cycle([signal.SIGTERM, signal.SIGINT])))
    def test_leaves_nothing_behind(self, least_run, tmp_path, moment, number):
        above = tmp_path / "a"
        assert end_amid(moment, number, least_run, above / "to", above) == (130, "error: interrupted\n")
        assert list(tmp_path.iterdir()) == []

    def test_of_a_later_export_leaves_the_earlier_one_alone(self, least_run, whole, tmp_path):
        to = shutil.copytree(whole, tmp_path / "to")
        before = contents(to)
        program = Program(least_run, to)
        # Long before anything is put in place: it cannot be over before the signal comes.
        program.wait_for("SavedModel: decode")
        assert program.end(signal.SIGTERM)[0] == 130
        assert contents(to) == before


# Exports of files that hold nothing, each in a process of its own, forked by one that has imported all of it. An export
# kills itself before that of the renames that others could see whose number is read; what is written is how it ended.
KILLED = """
import pathlib, pickle, signal, sys
sys.path.insert(0, "tests")
import os, pytest
from export.cli import main
from helpers.exporting import hold_nothing

run, to, opened = sys.argv[1:]
hold_nothing(pytest.MonkeyPatch(), pickle.loads(pathlib.Path(opened).read_bytes()))

def killing(rename):
    def renamed(source, target):
        global left
        if not all(any(part.startswith(".export-") for part in pathlib.Path(path).parts) for path in (source, target)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
    return renamed

for line in sys.stdin:
    if not (process := os.fork()):
        left = int(line)
        os.rename, os.replace = killing(os.rename), killing(os.replace)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.exit(main(["--run", run, "--to", to]))
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture
def killed_before(opened, tiny_run, tmp_path, forked):
    """Returns a function that exports to tmp_path/"to", killed before a rename, and returns how the export ended."""
    kept = tmp_path / "opened"
    kept.write_bytes(pickle.dumps((types.SimpleNamespace(config=opened[0].config), opened[1])))
    command = [sys.executable, "-c", KILLED, *map(str, (tiny_run, tmp_path / "to", kept))]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(command, cwd=ROOT, env=user_environment(), stderr=said, **options) as program,
    ):

        def killed(number):
            program.stdin.write(f"{number}\n")
            status = program.stdout.readline()
            assert status, (tmp_path / "said").read_text()
            return int(status)

        yield killed


@pytest.mark.slow
class TestKill:
    def test_at_any_moment_leaves_nothing_visible_and_the_same_command_publishes(self, least_run, tmp_path):
        to = tmp_path / "to"
        for moment in MOMENTS:
            assert end_amid(moment, signal.SIGKILL, least_run, to)[0] == -signal.SIGKILL
            assert half_written(to) == []
        publishes_whole(least_run, to)

    def test_before_each_rename_leaves_every_part_whole(self, killed_before, tmp_path):
        """One after the other, into one folder: the first export has no part to replace, the others have them all."""
        to = tmp_path / "to"
        for before in (False, True):
            for number in range(1, 30):
                status = killed_before(number)
                assert half_written(to) == []
                if status == 0:
                    break
                assert status == -signal.SIGKILL, (tmp_path / "said").read_text()
                # An older folder of ONNX files is there, or was moved aside, from where the next one brings it back.
                places = [to / "onnx", *to.glob(".export-*/old-onnx")]
                assert not before or any({path.name for path in place.glob("*")} == {*PARTS} for place in places)
            # Cases, version, ONNX files, their predecessors, cards, files for a server, manifest.
            assert number > (6 if before else 9)
            is_whole(to)


@pytest.mark.slow
class TestFullDisk:
    # Nothing fits; a part of the cases; of the SavedModel; most; all but the cards. The last sizes are near to what an
    # export takes beside what it leaves: it may fit.
    @pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.9, 1])
    def test_is_one_line_and_leaves_nothing(self, least_run, whole, disk, share):
        kilobytes = 4 + int(share * sum(-(-path.stat().st_size // 4096) * 4 for path in whole.rglob("*")))
        folder = disk(kilobytes)
        status, _, err = Program(least_run, folder / "to").end()
        if share == 1 and status == 0:
            is_whole(folder / "to")
            return
        assert status == 2, err
        assert err.count("\n") == 1 and err.startswith(f"error: cannot write to {folder / 'to'}: "), err
        assert "No space left on device" in err
        assert list(folder.iterdir()) == []
