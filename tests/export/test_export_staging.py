"""Publication of an export: which files stand where afterwards, and that nobody ever sees half of it."""

import dataclasses
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.exporting import PARTS, RECORDS, SERVING, ignore_message, list_incomplete_files, read_card, read_tree

from export import pipeline
from export.card import JSON_NAME, TEXT_NAME
from export.export_folder import Staging, ignore_interruptions, interrupt_on_sigterm
from export.pipeline import ExportConfig, export
from tfdecouple.errors import UserError


class TestVersions:
    def test_are_counted_on_from_the_highest_past_nine(self, quick, command, tmp_path):
        for version, arguments in ((7, ("--version", 7)), (3, ("--version", 3)), (8, ()), (9, ()), (10, ()), (11, ())):
            status, out, err = command("--format", "savedmodel", *arguments)
            assert (status, err) == (0, "")
            assert str(tmp_path / "to" / "savedmodel" / str(version)) in out.splitlines()
        assert {path.name for path in (tmp_path / "to" / "savedmodel").iterdir()} == {"3", "7", "8", "9", "10", "11"}
        assert read_card(tmp_path / "to")["formats"]["savedmodel"]["files"] == ["savedmodel/11"]

    def test_neighbours_that_are_no_versions_do_not_count(self, tmp_path):
        for name in ("3", "old-7", "8.bak", ".9", "v10", "١١", "-12", "1e3"):
            (tmp_path / "savedmodel" / name).mkdir(parents=True)
        with Staging(tmp_path) as staging:
            assert staging.list_versions() == [3]

    def test_one_that_exists_is_refused_and_everything_is_kept(self, quick, command, refused, tiny_run, tmp_path):
        assert command("--version", 2)[0] == 0
        line = refused("--version", 2)
        assert "version 2 exists already" in line and "leave --version out" in line
        # Another one comes into being after the options were checked.
        request = ExportConfig(run=tiny_run, to=tmp_path / "to", version=3)
        (tmp_path / "to" / "savedmodel" / "3").mkdir()
        (tmp_path / "to" / "savedmodel" / "3" / "saved_model.pb").touch()
        before = read_tree(tmp_path)
        with pytest.raises(UserError, match="version 3 exists already"):
            export(request, ignore_message)
        assert read_tree(tmp_path) == before

    @pytest.mark.parametrize("version", [0, 2**63])
    def test_number_that_no_server_takes_is_refused(self, refused, version):
        assert f"the version is {version}; it must be at least 1" in refused("--version", version)


class TestPlace:
    def test_second_export_to_the_same_folder_is_refused_while_the_first_goes_on(self, quick, refused, tmp_path):
        with Staging(tmp_path / "to"):
            assert "another export is writing to" in refused()
        assert not (tmp_path / "to").exists()

    def test_remains_of_a_killed_export_are_removed_and_nothing_else_is(self, quick, command, tmp_path):
        to = tmp_path / "to"
        (to / ".export-killed" / "savedmodel" / "variables").mkdir(parents=True)
        (to / ".export-killed" / "vectors.npz").touch()
        (to / ".export.lock").touch()
        (to / "notes.txt").write_text("mine")
        (to / ".hidden").write_text("mine too")
        assert command()[0] == 0
        beside = {"client.py", JSON_NAME, TEXT_NAME, *RECORDS, *SERVING, "notes.txt", ".hidden"}
        assert {path.name for path in to.iterdir()} == {"savedmodel", "onnx", *beside}

    def test_folder_that_a_killed_export_had_moved_aside_comes_back(self, tmp_path):
        # Killed between the two renames: its successor is not there yet.
        (tmp_path / ".export-killed" / "old-onnx").mkdir(parents=True)
        (tmp_path / ".export-killed" / "old-onnx" / "encoder.onnx").write_text("old")
        (tmp_path / ".export-killed" / "old-web").mkdir()
        (tmp_path / "web").mkdir()
        (tmp_path / "web" / "index.html").write_text("new")
        with Staging(tmp_path):
            pass
        assert {name: bytes_ for name, bytes_ in read_tree(tmp_path).items() if bytes_ is not None} == {
            "onnx/encoder.onnx": b"old",
            "web/index.html": b"new",
        }

    def test_folder_is_back_in_its_place_where_its_successor_cannot_take_it(self, tmp_path):
        (tmp_path / "onnx").mkdir()
        with Staging(tmp_path) as staging, pytest.raises(OSError):
            staging.publish_folder(staging.area / "never built", "onnx")
        assert (tmp_path / "onnx").is_dir()

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_folders_made_for_nothing_are_removed(self, monkeypatch, tmp_path, error):
        (tmp_path / "a").mkdir()
        with pytest.raises(KeyError), Staging(tmp_path / "a" / "b" / "c") as staging:
            (staging.area / "half").mkdir()
            raise KeyError
        monkeypatch.setattr("tempfile.mkdtemp", Mock(side_effect=error))
        expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected), Staging(tmp_path / "a" / "b"):
            pass
        assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a"]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_amid_the_renames_comes_too_late(self, quick, command, monkeypatch, tmp_path, number):
        # TensorFlow's threads are about, which may take a signal that the main thread has blocked.
        put = Staging.publish_version

        def signalled(staging, built, name):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            put(staging, built, name)

        before = signal.getsignal(number)
        monkeypatch.setattr(Staging, "publish_version", signalled)
        status, out, err = command()
        assert (status, err) == (0, "")
        assert (tmp_path / "to" / "savedmodel" / "1" / "saved_model.pb").exists()
        assert (tmp_path / "to" / JSON_NAME).exists()
        assert signal.getsignal(number) is before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_before_them_ends_the_export_with_130(self, quick, command, monkeypatch, tmp_path, number):
        def signalled(*_, **__):
            os.kill(os.getpid(), number)
            time.sleep(5)

        monkeypatch.setattr(pipeline, "compare_in_process", signalled)
        assert command()[::2] == (130, "error: interrupted\n")
        assert list(tmp_path.iterdir()) == []

    def test_signals_are_left_alone_in_other_threads(self):
        def enter():
            with interrupt_on_sigterm(), ignore_interruptions():
                return "entered"

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(enter).result() == "entered"


def test_reader_sees_nothing_of_an_export_until_all_of_it_is_ready(quick, tiny_run, tmp_path):
    seen = []

    def look(text):
        if (tmp_path / "to").exists():
            seen.append({path.name for path in (tmp_path / "to").iterdir() if not path.name.startswith(".")})

    export(ExportConfig(run=tiny_run, to=tmp_path / "to"), look)
    assert len(seen) > 5 and not any(seen)
    assert list_incomplete_files(tmp_path / "to") == []


def test_edited_settings_of_a_server_are_kept_by_a_later_export(quick, command, tmp_path):
    assert command("--format", "savedmodel")[0] == 0
    edited = tmp_path / "to" / "batching.config"
    edited.write_text("max_batch_size { value: 8 }\n")
    (tmp_path / "to" / "monitoring.config").unlink()
    assert command("--format", "savedmodel")[0] == 0
    assert edited.read_text() == "max_batch_size { value: 8 }\n"
    assert "prometheus_config" in (tmp_path / "to" / "monitoring.config").read_text()


class TestOnnxFolder:
    def test_is_replaced_whole(self, quick, command, tmp_path):
        assert command("--format", "onnx")[0] == 0
        (tmp_path / "to" / "onnx" / "more.onnx").touch()
        # A card that cannot be read is replaced.
        (tmp_path / "to" / JSON_NAME).write_text("{")
        assert command("--format", "onnx")[0] == 0
        assert {path.name for path in (tmp_path / "to" / "onnx").iterdir()} == {*PARTS}
        assert sorted(read_card(tmp_path / "to")["formats"]["onnx"]["bytes"]) == sorted(PARTS)

    def test_of_an_earlier_export_is_never_left_beside_newer_files(self, quick, command, refused, tmp_path):
        assert command("--format", "onnx")[0] == 0
        assert "holds the format onnx of an earlier export" in refused("--format", "savedmodel")
        assert command("--format", "savedmodel", "onnx")[0] == 0
        assert set(read_card(tmp_path / "to")["formats"]) == {"savedmodel", "onnx"}


def test_only_listed_vectors_are_removed(quick, command, monkeypatch, tmp_path):
    folder = tmp_path / "to" / "test_vectors"
    assert command("--format", "onnx")[0] == 0
    (first,) = folder.iterdir()
    own = {"mine.npz", f"{'0' * 16}.npz"}
    for name in own:
        (folder / name).write_text("mine")
    monkeypatch.setattr(pipeline, "make_test_vectors", lambda model, images, report: {"more": np.zeros(3)})
    assert command("--format", "onnx")[0] == 0
    left = {path.name for path in folder.iterdir()}
    assert own < left and len(left) == 3 and first.name not in left
    # A manifest that cannot be read lists nothing.
    (tmp_path / "to" / "manifest.json").write_text("{")
    monkeypatch.setattr(pipeline, "make_test_vectors", lambda model, images, report: {"more": np.zeros(4)})
    status, out, err = command("--format", "onnx")
    assert (status, err) == (0, "") and left < {path.name for path in folder.iterdir()}
    assert "the manifest is written anew, of this export alone, and nothing is removed: " in out


def test_a_folder_with_another_models_files_is_refused_and_kept(quick, command, refused, opened, monkeypatch):
    assert command("--format", "onnx")[0] == 0
    other = opened[0], dataclasses.replace(opened[1], name="other")
    monkeypatch.setattr(pipeline, "open_run", lambda run, name: other)
    assert "holds the format onnx of an earlier export, exported as tiny from run tiny" in refused("--format", "onnx")
