import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf
from helpers.exporting import COMPLETE, PARTS, read_card
from helpers.forked import forked_programs
from helpers.models import LEAST
from helpers.places import PATIENCE, ROOT, make_once, user_environment
from helpers.runs import write_run
from helpers.variants import fresh

from export import pipeline, show_progress
from export.export_folder import stage_export
from export.pipeline import export
from export.verification.comparison import Report
from tfdecouple.cli import main
from tfdecouple.errors import EXIT_FAILED, UserError
from tfdecouple.model.any_size import AnySize


def require_complete(to, version="1"):
    """Asserts that an export folder of the default formats is complete, and that nothing else is there or beside it."""
    assert {path.name for path in to.iterdir()} == COMPLETE
    assert {path.name for path in (to / "onnx").iterdir()} == {*PARTS}
    assert [path.name for path in (to / "savedmodel").iterdir()] == [version]
    files = {path.relative_to(to / "savedmodel" / version).as_posix() for path in to.rglob("savedmodel/*/*/*")}
    assert files == {
        *("variables/variables.index", "variables/variables.data-00000-of-00001"),
        *("assets.extra/model_card.json", "assets.extra/tf_serving_warmup_requests"),
    }
    assert [path.name for path in to.parent.glob(".*")] == []


class TestDestination:
    def test_export_folder_does_not_exist_until_the_export_is_complete(self, quick, tiny_run, tmp_path, capsys):
        seen = []
        # In a thread, where Python lets nobody handle signals.
        with show_progress(lambda text: seen.append((tmp_path / "to").exists())), ThreadPoolExecutor(1) as pool:
            pool.submit(export, tiny_run, tmp_path / "to").result()
        assert len(seen) > 5 and not any(seen) and capsys.readouterr().out == ""
        require_complete(tmp_path / "to")

    def test_saved_model_has_the_version_that_was_asked_for(self, quick, command, tmp_path):
        status, out, err = command("--version", 11)
        assert (status, err) == (0, "") and str(tmp_path / "to" / "savedmodel" / "11") in out.splitlines()
        assert "putting it in place" in out
        require_complete(tmp_path / "to", "11")
        assert read_card(tmp_path / "to")["formats"]["savedmodel"]["files"] == ["savedmodel/11"]

    @pytest.mark.parametrize("make", [os.mkdir, lambda path: path.touch(), lambda path: path.symlink_to("nowhere")])
    def test_destination_that_exists_is_refused_and_unchanged(self, quick, refused, tiny_run, tmp_path, make):
        make(tmp_path / "to")
        assert f"{tmp_path / 'to'} exists already, and every export is a new folder" in refused()
        (tmp_path / "to").rmdir() if (tmp_path / "to").is_dir() else (tmp_path / "to").unlink()

        make_late = lambda text: "putting it in place" in text and make(tmp_path / "to")  # noqa: E731
        with show_progress(make_late), pytest.raises(UserError, match="exists already"):
            export(run=tiny_run, to=tmp_path / "to")
        assert [path.name for path in tmp_path.iterdir()] == ["to"] and not (tmp_path / "to" / "onnx").exists()

    def test_destination_of_an_export_that_is_running_is_refused(self, quick, refused, tmp_path):
        with stage_export(tmp_path / "a" / "to"):
            assert "another export is writing to" in refused(to=tmp_path / "a" / "to")
        assert list(tmp_path.iterdir()) == []

    def test_remains_of_a_killed_export_are_hidden_and_removed_by_the_next(self, quick, command, tiny_run, tmp_path):
        if not (process := os.fork()):
            os.rename = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
            main(["export", "--run", str(tiny_run), "--to", str(tmp_path / "to")])
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        assert {path.name for path in tmp_path.iterdir()} == {".to.exporting", ".to.exporting.lock"}
        assert command()[0] == 0
        require_complete(tmp_path / "to")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
class TestSignals:
    def test_signal_amid_the_rename_comes_too_late(self, quick, command, monkeypatch, tmp_path, number):
        # TensorFlow's threads are about, which may take a signal that the main thread has blocked.
        def signalled(source, target, rename=os.rename):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            rename(source, target)

        before = signal.getsignal(number)
        monkeypatch.setattr(pipeline.os, "rename", signalled)
        assert command()[::2] == (0, "")
        require_complete(tmp_path / "to")
        assert signal.getsignal(number) is before

    def test_signal_before_the_rename_ends_the_export(self, quick, command, monkeypatch, tmp_path, number):
        def signalled(*_, **__):
            os.kill(os.getpid(), number)
            time.sleep(5)

        monkeypatch.setattr(pipeline, "compare_in_process", signalled)
        assert command(to=tmp_path / "a" / "b" / "to")[::2] == (130, "interrupted\n")
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def least_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "least", fresh(LEAST))


def start_program(run, to):
    """Starts an export with few signatures, so that the moments of an export come soon."""
    command = [sys.executable, "-m", "tfdecouple", "export", "--run", str(run), "--to", str(to)]
    command += ["--endpoints", "encode", "decode"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with forked_programs():
        return subprocess.Popen(command, cwd=ROOT, env=user_environment(), **options)


# Moments of an export by the message at their beginning, with the seconds to wait from there on an idle machine.
MOMENTS = {"SavedModel: decode": 0.0, "verifying savedmodel": 0.5, "ONNX: decoder": 0.2}


def kill_amid(message, run, to):
    """Kills an export after a message. If it was over before, it is tried again with less time in between."""
    for attempt in range(6):
        process = start_program(run, to)
        assert any(message in line for line in process.stdout), f"it ended before: {process.stderr.read()}"
        time.sleep(MOMENTS[message] / 4**attempt)
        process.kill()
        process.communicate(timeout=PATIENCE)
        if process.returncode == -signal.SIGKILL:
            return
        assert process.returncode == 0
        shutil.rmtree(to)
    pytest.fail(f"the export is always over before a signal comes after {message!r}")


def publish(run, to):
    process = start_program(run, to)
    assert process.communicate(timeout=PATIENCE)[1] == "" and process.returncode == 0
    require_complete(to)


@pytest.mark.slow
class TestProcess:
    def test_export_killed_at_any_moment_leaves_nothing_visible_and_succeeds_when_repeated(self, least_run, tmp_path):
        to = tmp_path / "to"
        for moment in MOMENTS:
            kill_amid(moment, least_run, to)
            assert {path.name for path in tmp_path.iterdir()} == {".to.exporting", ".to.exporting.lock"}
        publish(least_run, to)

    # A part of the vectors fits; most.
    @pytest.mark.parametrize("share", [0.05, 0.9])
    def test_export_to_a_full_disk_is_one_line_and_leaves_nothing(self, least_run, tmp_path_factory, disk, share):
        whole = make_once(tmp_path_factory, "whole", lambda folder: publish(least_run, folder / "to")) / "to"
        kilobytes = 4 + int(share * sum(-(-path.stat().st_size // 4096) * 4 for path in whole.rglob("*")))
        folder = disk(kilobytes)
        process = start_program(least_run, folder / "to")
        err = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 2 and err.count("\n") == 1, err
        assert err.startswith(f"error: cannot write to {folder / 'to'}: ") and "No space left on device" in err
        assert list(folder.iterdir()) == []


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--format", "onxx"], "a format is 'onxx'; it must be one of 'savedmodel', 'onnx', 'litert', 'web'"),
            (["--endpoints", "decode", "score_all"], "this model has no endpoint 'score_all'; it has encode, "),
            (["--format", "onnx", "--endpoints", "encode"], "--endpoints encode is for the format savedmodel alone, "),
            (["--format", "onnx", "--version", "2"], "--version 2 is for the format savedmodel alone, and the formats"),
            (["--web-runtime", "x"], "web alone, and the formats are savedmodel, onnx; leave it out, or add web to --"),
            (["--any-size", "--format", "web"], "--any-size is not for the format web"),
        ],
    )
    def test_mistake_in_the_command_is_refused(self, refused, arguments, message):
        assert message in refused(*arguments)

    def test_destination_below_a_file_is_refused(self, refused, tmp_path):
        (tmp_path / "file").touch()
        assert f"cannot write to {tmp_path / 'file' / 'to'}" in refused(to=tmp_path / "file" / "to")

    @pytest.mark.parametrize("name", ["pipe", "link", ".hidden", ".hidden/file", "notes.txt"])
    def test_what_another_program_puts_among_the_files_is_not_published(self, quick, refused, monkeypatch, name):
        def plant(runtime, folder, vectors, options):
            (folder / name).parent.mkdir(exist_ok=True)
            if name == "pipe":
                os.mkfifo(folder / name)
            elif name == "link":
                (folder / name).symlink_to("encoder.onnx")
            else:
                (folder / name).touch()
            return Report()

        monkeypatch.setattr(pipeline, "compare_in_process", plant)
        line = refused("--format", "onnx", expected=EXIT_FAILED)
        kind = "link" if name == "link" else "unknown"
        assert line.startswith("error: not published: ") and f"{kind}: onnx/{name}" in line

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor"), "out of memory (OOM when "),
            (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory (Cannot allocate memory); take fewer"),
            (tf.errors.ResourceExhaustedError(None, None, "a/b; No space left on device"), "device; free some space"),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), "/to: Disk quota exceeded; free some space there\n"),
            (OSError(errno.EACCES, "Permission denied"), "/to: Permission denied\n"),
            (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "/to: No space left on device; free some space there\n"),
        ],
    )
    def test_lack_of_memory_and_disk_is_named(self, quick, refused, monkeypatch, error, said):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(pipeline, "compare_in_process", fail)
        assert said in refused()


def test_any_size_is_refused_for_weights_of_fixed_size(quick, refused, monkeypatch):
    monkeypatch.setattr(AnySize, "weight_of_fixed_size", property(lambda _: "flow/whitening/last"))
    assert "the weight flow/whitening/last depends on the image size" in refused("--any-size")
