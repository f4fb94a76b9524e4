"""Exports that are interrupted, killed or out of disk space leave nothing half written in sight."""

import itertools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers.exporting import PARTS, RECORDS, SERVING, list_incomplete_files, read_tree
from helpers.forked import forked_programs
from helpers.models import LEAST, give_effect, random_images
from helpers.places import PATIENCE, ROOT, make_once, user_environment
from helpers.runs import write_run

from export.card import JSON_NAME, TEXT_NAME
from export.cli import main
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


# Moments of an export by the message at their beginning, with the seconds to wait from there on an idle machine.
MOMENTS = {
    "SavedModel: decode": 0.0,
    "verifying the SavedModel": 0.5,
    "ONNX: decoder": 0.2,
    # This check is over after 0.4 s.
    "verifying the onnx files": 0.0,
}


def end_amid(message, number, run, to, made=None):
    """Ends an export by a signal after a message, and returns its status and its error.

    If the export was over before the signal came, `made` (`to`, or a folder above it) is removed, and the export is
    tried again with less time in between.
    """
    for attempt in range(6):
        program = Program(run, to)
        program.wait_for(message)
        time.sleep(MOMENTS[message] / 4**attempt)
        status, _, err = program.end(number)
        if status != 0:
            return status, err
        shutil.rmtree(made or to)
    raise AssertionError(f"the export is always over before a signal comes after {message!r}")


def publishes_whole(run, to):
    """Asserts that the same command, uninterrupted, publishes its first version and leaves nothing else."""
    status, _, err = Program(run, to).end()
    assert (status, err) == (0, "")
    is_whole(to)
    assert {path.name for path in (to / "savedmodel").iterdir()} == {"1"}


def is_whole(to):
    """Asserts that all parts are there, and nothing else."""
    assert list_incomplete_files(to) == []
    beside = {"client.py", JSON_NAME, TEXT_NAME, *RECORDS, *SERVING}
    assert {path.name for path in to.iterdir()} == {"savedmodel", "onnx", *beside}
    assert {path.name for path in (to / "onnx").iterdir()} == {*PARTS}


@pytest.fixture(scope="module")
def whole(least_run, tmp_path_factory):
    """The folder of a whole export. Do not change it."""
    return make_once(tmp_path_factory, "whole", lambda folder: publishes_whole(least_run, folder / "to")) / "to"


@pytest.mark.slow
class TestInterruption:
    @pytest.mark.parametrize(("moment", "number"), zip(MOMENTS, 2 * [signal.SIGTERM, signal.SIGINT], strict=True))
    def test_leaves_nothing_behind(self, least_run, tmp_path, moment, number):
        above = tmp_path / "a"
        assert end_amid(moment, number, least_run, above / "to", above) == (130, "error: interrupted\n")
        assert list(tmp_path.iterdir()) == []

    def test_of_a_later_export_leaves_the_earlier_one_alone(self, least_run, whole, tmp_path):
        to = shutil.copytree(whole, tmp_path / "to")
        before = read_tree(to)
        program = Program(least_run, to)
        # Long before anything is put in place: it cannot be over before the signal comes.
        program.wait_for("SavedModel: decode")
        assert program.end(signal.SIGTERM)[0] == 130
        assert read_tree(to) == before


@pytest.fixture
def export_killed_before(quick, tiny_run, tmp_path):
    """A function that exports to tmp_path/"to" in a forked process, killed before a rename, and returns its status."""

    def killing(rename, numbers):
        def renamed(source, target):
            hidden = [
                any(part.startswith(".export-") for part in pathlib.Path(path).parts) for path in (source, target)
            ]
            # The process counts the renames that others can see.
            if not all(hidden) and next(numbers) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        return renamed

    def export_killed(number):
        if process := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        try:
            numbers = itertools.count(1 - number)
            os.rename, os.replace = killing(os.rename, numbers), killing(os.replace, numbers)
            os._exit(main(["--run", str(tiny_run), "--to", str(tmp_path / "to")]))
        finally:
            os._exit(1)

    return export_killed


@pytest.mark.slow
class TestKill:
    def test_at_any_moment_leaves_nothing_visible_and_the_same_command_publishes(self, least_run, tmp_path):
        to = tmp_path / "to"
        for moment in MOMENTS:
            assert end_amid(moment, signal.SIGKILL, least_run, to)[0] == -signal.SIGKILL
            assert list_incomplete_files(to) == []
        publishes_whole(least_run, to)

    def test_before_each_rename_leaves_every_part_whole(self, export_killed_before, tmp_path):
        """One after the other, into one folder: the first export has no part to replace, the others have them all."""
        to = tmp_path / "to"
        for before in (False, True):
            for number in range(1, 30):
                status = export_killed_before(number)
                assert list_incomplete_files(to) == []
                if status == 0:
                    break
                assert status == -signal.SIGKILL
                # An older folder of ONNX files is there, or was moved aside, from where the next one brings it back.
                places = [to / "onnx", *to.glob(".export-*/old-onnx")]
                assert not before or any({path.name for path in place.glob("*")} == {*PARTS} for place in places)
            # Vectors, version, ONNX files, their predecessors, cards, settings of a server, manifest.
            assert number > (6 if before else 9)
            is_whole(to)


@pytest.mark.slow
class TestFullDisk:
    # Nothing fits; a part of the vectors; most; all but the cards. The last size is near to what an export takes beside
    # what it leaves, so that it may fit.
    @pytest.mark.parametrize("share", [0, 0.05, 0.9, 1])
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
