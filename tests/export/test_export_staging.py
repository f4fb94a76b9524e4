"""Publication of an export: what stands where afterwards, and that nobody ever sees half of it."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.exporting import hold_nothing
from helpers.forked import forked_programs
from helpers.models import LEAST, SMALL, TINY, give_effect, random_images
from helpers.places import PATIENCE, ROOT, user_environment
from helpers.runs import write_run
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from export import pipeline
from export.card import JSON_NAME, TEXT_NAME, card_text
from export.cli import main
from export.formats import web
from export.origin import open_run
from export.pipeline import Request, export
from export.signatures import endpoints
from export.staging import Staging, interruptible, uninterrupted
from tfdecouple.errors import UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.runs import averaged_names
from tfdecouple.storage.checkpoints import CheckpointFolder

PARTS = ("encoder.onnx", "decoder.onnx", "sampler.onnx")
# By which an export is verified later.
RECORDS = ("manifest.json", "cases")
SERVING = ("batching.config", "docker-compose.yml", "models.config", "monitoring.config")


def silent(text):
    """Says nothing."""


def contents(folder):
    """Everything in a folder, hidden or not: files with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def opened(tiny_run):
    return open_run(tiny_run)


@pytest.fixture
def quick(opened, monkeypatch):
    """Exports of files that hold nothing and pass: what is tested is where they go."""
    hold_nothing(monkeypatch, opened)


@pytest.fixture
def command(tiny_run, tmp_path, capsys):
    """Runs `python -m export` of the tiny run, and returns status, output and errors."""

    def run(*arguments, run=tiny_run, to=tmp_path / "to"):
        status = main(["--run", str(run), "--to", str(to), *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(command, tmp_path):
    """Runs a command that must end with status 2 and one line, and change nothing; returns the line."""

    def run(*arguments, **options):
        before = contents(tmp_path)
        status, _, err = command(*arguments, **options)
        assert status == 2
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err
        assert contents(tmp_path) == before
        return err

    return run


def read_card(folder):
    return json.loads((folder / JSON_NAME).read_text())


class TestVersions:
    def test_are_counted_on_past_nine(self, quick, command, tmp_path):
        for version in range(1, 12):
            status, out, err = command("--format", "savedmodel")
            assert (status, err) == (0, "")
            assert str(tmp_path / "to" / "savedmodel" / str(version)) in out.splitlines()
        versions = {path.name for path in (tmp_path / "to" / "savedmodel").iterdir()}
        assert versions == {str(version) for version in range(1, 12)}
        assert read_card(tmp_path / "to")["formats"]["savedmodel"]["files"] == ["savedmodel/11"]

    def test_neighbours_that_are_no_versions_do_not_count(self, tmp_path):
        for name in ("3", "old-7", "8.bak", ".9", "v10", "١١", "-12", "1e3"):
            (tmp_path / "savedmodel" / name).mkdir(parents=True)
        with Staging(tmp_path) as staging:
            assert staging.versions() == [3]

    def test_first_one_is_one(self, tmp_path):
        with Staging(tmp_path / "new") as staging:
            assert staging.versions() == []

    def test_number_can_be_chosen_and_the_next_goes_on_from_the_highest(self, quick, command, tmp_path):
        assert command("--version", 7)[0] == 0
        assert command("--version", 3)[0] == 0
        assert command()[0] == 0
        assert {path.name for path in (tmp_path / "to" / "savedmodel").iterdir()} == {"3", "7", "8"}

    def test_one_that_exists_is_refused_and_kept(self, quick, command, refused):
        assert command("--version", 2)[0] == 0
        line = refused("--version", 2)
        assert "version 2 exists already" in line and "leave --version out" in line

    def test_one_that_came_meanwhile_is_kept_and_so_is_everything_else(self, quick, command, tiny_run, tmp_path):
        assert command("--version", 1)[0] == 0
        request = Request(run=tiny_run, to=tmp_path / "to", version=2)
        (tmp_path / "to" / "savedmodel" / "2").mkdir()
        (tmp_path / "to" / "savedmodel" / "2" / "saved_model.pb").touch()
        before = contents(tmp_path)
        with pytest.raises(UserError, match="version 2 exists already"):
            export(request, silent)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("version", [0, -1, 2**63])
    def test_number_that_no_server_takes_is_refused(self, refused, version):
        assert f"the version is {version}; it must be at least 1" in refused("--version", version)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--format", "onxx"], "there is no format 'onxx'; there are savedmodel, onnx, ort, litert, web"),
            (["--precision", "int4"], "there is no precision 'int4'; there are float16, int8"),
            (["--endpoints", "decode", "score_all"], "this model has no endpoint 'score_all'; it has encode, "),
        ],
    )
    def test_mistake_in_the_command(self, refused, arguments, message):
        assert message in refused(*arguments)

    def test_no_format(self, tiny_run, tmp_path):
        with pytest.raises(UserError, match="no format is given"):
            Request(run=tiny_run, to=tmp_path, formats=())

    def test_run_that_there_is_not(self, refused, tmp_path):
        assert "there is no run folder" in refused(run=tmp_path / "none")

    def test_folder_that_is_no_run(self, refused, tmp_path):
        (tmp_path / "run").mkdir()
        assert "it has no config.json" in refused(run=tmp_path / "run")

    def test_run_without_a_checkpoint(self, refused, tiny_run, tmp_path):
        (tmp_path / "run").mkdir()
        shutil.copy(tiny_run / "config.json", tmp_path / "run")
        assert "holds no checkpoint yet" in refused(run=tmp_path / "run")

    def test_run_whose_checkpoint_is_cut_off(self, refused, tiny_run, tmp_path):
        run = shutil.copytree(tiny_run, tmp_path / "run")
        (data,) = (run / "checkpoints").glob("*.data-*")
        os.truncate(data, 1000)
        assert data.name.partition(".")[0] in refused(run=run)

    def test_run_of_a_model_that_was_never_initialised(self, refused, tmp_path):
        run = write_run(tmp_path / "run", DecoupledModel(TINY))
        assert "not initialised" in refused(run=run)

    def test_run_that_diverged(self, refused, tmp_path):
        model = DecoupledModel(TINY)
        model.initialize(random_images(16))
        kernel = next(v for v in model.trainable_variables if len(v.shape) == 4)
        kernel.assign(kernel * np.nan)
        run = write_run(tmp_path / "run", model)
        assert "not finite" in refused(run=run)

    def test_folder_that_is_a_file(self, refused, tmp_path):
        (tmp_path / "file").touch()
        assert f"cannot write to {tmp_path / 'file'}" in refused(to=tmp_path / "file")
        assert f"cannot write to {tmp_path / 'file' / 'to'}" in refused(to=tmp_path / "file" / "to")

    def test_disk_that_is_full_as_the_last_file_is_written(self, quick, command, refused, monkeypatch):
        # By then everything else is ready; none of it may be visible, nor anything of before be gone.
        def full(path, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        assert command()[0] == 0
        monkeypatch.setattr(pipeline, "write_text", full)
        assert "No space left on device" in refused()

    def test_reader_of_the_output_that_goes_away_is_no_full_disk(self, quick, tiny_run, tmp_path):
        def gone(text):
            if "checking" in text:
                raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            export(Request(run=tiny_run, to=tmp_path / "to"), gone)
        assert not (tmp_path / "to").exists()


@pytest.fixture
def default_interrupt():
    """Lets Ctrl-C interrupt, also where a shell started the tests in the background and has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class TestPlace:
    def test_second_export_to_the_same_folder_is_refused_while_the_first_goes_on(self, quick, refused, tmp_path):
        with Staging(tmp_path / "to"):
            assert "another export is writing to" in refused()
        assert not (tmp_path / "to").exists()

    def test_lock_on_a_file_that_its_holder_removed_is_no_lock(self, monkeypatch, tmp_path):
        # The moment between opening the file and locking it, in which the export before removes it and ends.
        lock, times = fcntl.flock, []

        def late(descriptor, operation):
            times.append(descriptor)
            if len(times) == 1:
                (tmp_path / ".export.lock").unlink()
            lock(descriptor, operation)

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", late)
            first = Staging(tmp_path).__enter__()
        assert len(times) == 2
        with pytest.raises(UserError, match="another export"), Staging(tmp_path):
            pass
        first.__exit__()
        assert list(tmp_path.iterdir()) == []

    def test_staging_is_hidden_and_on_the_same_file_system(self, tmp_path):
        with Staging(tmp_path / "to") as staging:
            assert staging.area.parent == tmp_path / "to" and staging.area.name.startswith(".")
            assert staging.area.stat().st_dev == (tmp_path / "to").stat().st_dev

    def test_remains_of_a_killed_export_are_removed_and_nothing_else_is(self, quick, command, tmp_path):
        to = tmp_path / "to"
        (to / ".export-killed" / "savedmodel" / "variables").mkdir(parents=True)
        (to / ".export-killed" / "cases.npz").touch()
        (to / ".export.lock").touch()
        (to / "notes.txt").write_text("mine")
        (to / ".hidden").write_text("mine too")
        assert command()[0] == 0
        names = {path.name for path in to.iterdir()}
        assert names == {
            "savedmodel",
            "onnx",
            "client.py",
            JSON_NAME,
            TEXT_NAME,
            *RECORDS,
            *SERVING,
            "notes.txt",
            ".hidden",
        }

    def test_folder_that_a_killed_export_had_moved_aside_comes_back(self, tmp_path):
        # Killed between the two renames: its successor is not there yet.
        (tmp_path / ".export-killed" / "old-onnx").mkdir(parents=True)
        (tmp_path / ".export-killed" / "old-onnx" / "encoder.onnx").write_text("old")
        (tmp_path / ".export-killed" / "old-web").mkdir()
        (tmp_path / "web").mkdir()
        (tmp_path / "web" / "index.html").write_text("new")
        with Staging(tmp_path):
            pass
        assert {name: bytes_ for name, bytes_ in contents(tmp_path).items() if bytes_ is not None} == {
            "onnx/encoder.onnx": b"old",
            "web/index.html": b"new",
        }

    def test_folder_is_back_in_its_place_where_its_successor_cannot_take_it(self, tmp_path):
        (tmp_path / "onnx").mkdir()
        with Staging(tmp_path) as staging, pytest.raises(OSError):
            staging.put_folder(staging.area / "never built", "onnx")
        assert (tmp_path / "onnx").is_dir()

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_what_it_made_is_removed_where_it_cannot_begin(self, monkeypatch, tmp_path, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("tempfile.mkdtemp", fail)
        expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected), Staging(tmp_path / "a" / "b"):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_folders_made_for_nothing_are_removed(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(KeyError), Staging(tmp_path / "a" / "b" / "c") as staging:
            (staging.area / "half").mkdir()
            raise KeyError
        assert list(tmp_path.iterdir()) == [tmp_path / "a"] and list((tmp_path / "a").iterdir()) == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_amid_the_renames_comes_too_late(self, quick, command, monkeypatch, tmp_path, number):
        # TensorFlow's threads are about, which may take a signal that the main thread has blocked.
        put = Staging.put_version

        def signalled(staging, built, version):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            put(staging, built, version)

        before = signal.getsignal(number)
        monkeypatch.setattr(Staging, "put_version", signalled)
        status, out, err = command()
        assert (status, err) == (0, "")
        assert (tmp_path / "to" / "savedmodel" / "1" / "saved_model.pb").exists()
        assert (tmp_path / "to" / JSON_NAME).exists()
        assert signal.getsignal(number) is before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_before_them_ends_the_export_with_130(
        self, quick, command, monkeypatch, tmp_path, number, default_interrupt
    ):
        def signalled(*_, **__):
            os.kill(os.getpid(), number)
            time.sleep(5)

        monkeypatch.setattr(pipeline, "pass_gate", signalled)
        assert command()[::2] == (130, "error: interrupted\n")
        assert list(tmp_path.iterdir()) == []

    def test_signals_are_left_alone_in_other_threads(self):
        failures = []

        def enter():
            try:
                with interruptible(), uninterrupted():
                    pass
            except ValueError as error:
                failures.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert failures == []


class Poller(threading.Thread):
    """Looks at an export folder again and again, as a server does, and notes what was only half there."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.ended = threading.Event()
        self.half: list[str] = []
        self.looks = 0
        self.seen: set[str] = set()

    def run(self):
        last = False
        while not last:
            # One look more when everything is written: the last version may be younger than the look before.
            last = self.ended.is_set()
            self.looks += 1
            self.half += half_written(self.folder)
            with contextlib.suppress(FileNotFoundError):
                self.seen |= {path.name for path in (self.folder / "savedmodel").iterdir()}

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()


def half_written(folder):
    """Returns what is visible in an export folder and not whole."""
    half = []
    versions = folder / "savedmodel"
    for version in versions.iterdir() if versions.exists() else ():
        files = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
        half += [f"{version.name} without {name}" for name in files if not (version / name).is_file()]
        if not (version / "assets.extra" / JSON_NAME).exists():
            half.append(f"{version.name} without a card")
    for name in (JSON_NAME, *SERVING):
        # A file that is there has its end.
        with contextlib.suppress(FileNotFoundError):
            text = (folder / name).read_text()
            if not text.endswith("\n") or (name == JSON_NAME and not json.loads(text)):
                half.append(name)
    return half


class TestReader:
    def test_never_sees_half_a_version(self, quick, tiny_run, tmp_path):
        with Poller(tmp_path / "to") as poller:
            for _ in range(8):
                export(Request(run=tiny_run, to=tmp_path / "to"), silent)
        assert poller.half == []
        assert poller.looks > 20
        assert poller.seen == {str(version) for version in range(1, 9)}

    def test_sees_nothing_of_an_export_until_all_of_it_is_ready(self, quick, tiny_run, tmp_path):
        seen = []

        def look(text):
            if (tmp_path / "to").exists():
                seen.append({path.name for path in (tmp_path / "to").iterdir() if not path.name.startswith(".")})

        export(Request(run=tiny_run, to=tmp_path / "to"), look)
        assert len(seen) > 5 and not any(seen)


class TestServingFiles:
    def test_one_that_serves_another_model_is_kept_and_named(self, quick, command, tmp_path):
        assert command("--format", "savedmodel")[0] == 0
        settings = tmp_path / "to" / "models.config"
        own = settings.read_text()
        others = {own.replace("tiny", "other"): "other", "nonsense {": "what a server cannot read"}
        for text, served in {own: None, **others}.items():
            settings.write_text(text)
            status, out, err = command("--format", "savedmodel")
            assert (status, err) == (0, "") and settings.read_text() == text
            told = f"models.config is left as it is: it serves {served}, and not this model, tiny\n"
            assert (told in out) == (served is not None) == ("left as it is" in out)

    def test_edited_one_is_kept_by_a_later_export(self, quick, command, tmp_path):
        assert command("--format", "savedmodel")[0] == 0
        edited = tmp_path / "to" / "batching.config"
        edited.write_text("max_batch_size { value: 8 }\n")
        (tmp_path / "to" / "monitoring.config").unlink()
        assert command("--format", "savedmodel")[0] == 0
        assert edited.read_text() == "max_batch_size { value: 8 }\n"
        assert "prometheus_config" in (tmp_path / "to" / "monitoring.config").read_text()


class TestOnnxFolder:
    def test_is_replaced_whole(self, quick, command, tmp_path):
        assert command("--precision", "int8")[0] == 0
        small = {f"{name.removesuffix('.onnx')}.int8.onnx" for name in PARTS}
        assert {path.name for path in (tmp_path / "to" / "onnx").iterdir()} == {*PARTS, *small}
        assert command("--format", "onnx")[0] == 0
        assert {path.name for path in (tmp_path / "to" / "onnx").iterdir()} == {*PARTS}
        assert sorted(read_card(tmp_path / "to")["formats"]["onnx"]["bytes"]) == sorted(PARTS)

    def test_is_kept_by_an_export_of_another_format(self, quick, command, tmp_path):
        assert command("--format", "onnx")[0] == 0
        before = contents(tmp_path / "to" / "onnx")
        entry = read_card(tmp_path / "to")["formats"]["onnx"]
        assert command("--format", "savedmodel")[0] == 0
        assert contents(tmp_path / "to" / "onnx") == before
        # The card keeps what it said of the files that are still there.
        formats = read_card(tmp_path / "to")["formats"]
        assert set(formats) == {"savedmodel", "onnx"} and formats["onnx"] == entry
        assert "### onnx" in (tmp_path / "to" / TEXT_NAME).read_text()

    def test_card_that_cannot_be_read_is_replaced(self, quick, command, tmp_path):
        assert command("--format", "onnx")[0] == 0
        (tmp_path / "to" / JSON_NAME).write_text("{")
        assert command("--format", "savedmodel")[0] == 0
        assert set(read_card(tmp_path / "to")["formats"]) == {"savedmodel"}


class TestCard:
    def test_agrees_with_the_files(self, exported, tiny_run):
        card = read_card(exported)
        files = {path.name: path.stat().st_size for path in (exported / "onnx").iterdir()}
        assert card["formats"]["onnx"]["bytes"] == files
        assert card["formats"]["onnx"]["files"] == sorted(f"onnx/{name}" for name in files)
        assert card["formats"]["savedmodel"]["files"] == ["savedmodel/1"]
        for name, endpoint in card["endpoints"].items():
            assert endpoint["onnx"] is None or (exported / endpoint["onnx"]).is_file(), name
        assert (exported / TEXT_NAME).read_text() == card_text(card)
        inner = json.loads((exported / "savedmodel" / "1" / "assets.extra" / JSON_NAME).read_text())
        assert inner == card

    def test_states_parity_round_trip_and_time_of_every_endpoint(self, exported, opened):
        card = read_card(exported)
        every = {one.name: {output.name for output in one.outputs} for one in endpoints(opened[0].config)}
        with_onnx = {one.name for one in endpoints(opened[0].config) if one.onnx}
        for name, expected in {"savedmodel": set(every), "onnx": with_onnx}.items():
            entry = card["formats"][name]
            compared = {key: every[key] for key in expected} | {"decode of drawn codes": every["decode"]}
            assert {key: set(outputs) for key, outputs in entry["parity"].items()} == compared
            assert set(entry["latency_ms"]) == {"encode", "decode", "sample"}
            assert all(trip["identical"] == trip["images"] > 0 for trip in entry["round_trip"].values())
            assert set(entry["round_trip"]) == {"real", "black", "white", "noise", "0/255 noise", "checkerboard"}
        text = (exported / TEXT_NAME).read_text()
        assert all(f"| `{key}` |" in text and f"| {key} |" in text for key in every)
        assert "nan" not in text.lower().split()

    def test_states_the_error_and_size_of_the_smaller_files(self, exported):
        entry = read_card(exported)["formats"]["onnx"]
        variant = entry["variants"]["int8"]
        for name, size in variant["bytes"].items():
            assert (exported / "onnx" / name).stat().st_size == size
        assert len(variant["bytes"]) == 3
        megabytes = sum(variant["bytes"].values()) / 1e6
        wrong, images = variant["round_trip"]["differing"], variant["images"]
        stated = f"The int8 files ({megabytes:.1f} MB in all) encode and decode {images} images with {wrong:.4%} of the"
        assert stated in (exported / TEXT_NAME).read_text()

    def test_signatures_are_those_of_the_saved_model(self, exported):
        message = saved_model_pb2.SavedModel.FromString((exported / "savedmodel" / "1" / "saved_model.pb").read_bytes())
        signatures = dict(message.meta_graphs[0].signature_def)
        card = read_card(exported)
        assert {name for name in signatures if not name.startswith("__")} == {*card["endpoints"], "serving_default"}
        for name, endpoint in card["endpoints"].items():
            for kind, infos in (("inputs", signatures[name].inputs), ("outputs", signatures[name].outputs)):
                found = {
                    key: [tf.as_dtype(info.dtype).name, *(dimension.size for dimension in info.tensor_shape.dim)]
                    for key, info in infos.items()
                }
                stated = {array["name"]: [array["dtype"], -1, *array["shape"][1:]] for array in endpoint[kind]}
                assert found == stated, name

    def test_onnx_files_say_the_same_of_themselves(self, exported):
        card = read_card(exported)
        for name, endpoint in {"encoder": "encode", "decoder": "decode", "sampler": "sample"}.items():
            for suffix, precision in {"": "float32", ".int8": "int8"}.items():
                model = onnx.load(exported / "onnx" / f"{name}{suffix}.onnx")
                says = {entry.key: entry.value for entry in model.metadata_props}
                assert says.pop("endpoint") == endpoint
                assert says.pop("precision") == precision
                assert says == {key: card[key] for key in says}
                assert {"run", "step", "averaged", "config_sha256", "image_size", "n_bits", "d_z", "name"} <= set(says)

    def test_of_a_run_that_averages_says_so_with_its_figures(self, finished_run):
        model, origin = open_run(finished_run)
        summary = json.loads((finished_run / "summary.json").read_text())
        assert (origin.run, origin.step, origin.averaged) == ("run", summary["best_step"], True)
        assert origin.bits_per_dim == {
            "validation": summary["validation_bits_per_dim"],
            "test": summary["test"]["bits_per_dim"],
            "test_images": 5,
        }
        assert origin.metadata()["averaged"] == "true" and origin.metadata()["step"] == str(origin.step)
        # These are the averages at that step, and not what training had there.
        kept = CheckpointFolder(finished_run / "checkpoints")
        trained, averaged = DecoupledModel(model.config), DecoupledModel(model.config)
        covered = averaged_names(model)
        kept.read("step", origin.step, {"model": trained.named_variables()})
        averages = {name: variable for name, variable in averaged.named_variables().items() if name in covered}
        kept.read("step", origin.step, {"averages": averages})
        found = {name: variable.numpy() for name, variable in model.named_variables().items() if name in covered}
        assert all(np.array_equal(found[name], averages[name].numpy()) for name in covered)
        raw = trained.named_variables()
        assert not all(np.array_equal(found[name], raw[name].numpy()) for name in covered)

    def test_of_a_run_that_averages_reaches_its_readers(self, quick, monkeypatch, finished_run, command, tmp_path):
        monkeypatch.setattr(pipeline, "open_run", open_run)
        status, _, err = command("--format", "savedmodel", "--name", "my faces/2", run=finished_run)
        assert (status, err) == (0, "")
        card = read_card(tmp_path / "to")
        assert (card["name"], card["run"], card["averaged"]) == ("my-faces-2", "run", "true")
        entry = card["formats"]["savedmodel"]
        assert (entry["run"], str(entry["step"])) == ("run", card["step"])
        text = (tmp_path / "to" / TEXT_NAME).read_text()
        assert f"run run, step {card['step']}, averaged" in text
        assert f"{card['bits_per_dim']['test']:.3f} on 5 test images" in text
        assert "my-faces-2" in (tmp_path / "to" / "models.config").read_text()


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A run of a model without z."""
    random.seed(0)
    model = DecoupledModel(dataclasses.replace(SMALL, conditioning="none"))
    model.initialize(random_images(16))
    return write_run(tmp_path_factory.mktemp("runs") / "plain", give_effect(model))


@pytest.mark.usefixtures("forked")
class TestModelWithoutZ:
    def test_is_exported_with_the_endpoints_that_it_has(self, plain_run, tmp_path):
        export(Request(run=plain_run, to=tmp_path / "to"), silent)
        card = read_card(tmp_path / "to")
        arrays = {
            name: ([array["name"] for array in one["inputs"]], [array["name"] for array in one["outputs"]])
            for name, one in card["endpoints"].items()
        }
        assert arrays == {
            "encode": (["images"], ["v"]),
            "decode": (["v"], ["images"]),
            "sample": (["v_noise", "temperature"], ["images"]),
            "score": (["images", "u_noise"], ["bits_per_dim", "shell", "typicality"]),
        }
        assert set(card["formats"]["savedmodel"]["parity"]) == {*arrays, "decode of drawn codes"}
        assert card["architecture"]["latent_dim"] is None and card["d_z"] == "0"
        for endpoint in ("encode", "decode", "sample"):
            model = onnx.load(tmp_path / "to" / card["endpoints"][endpoint]["onnx"])
            assert [value.name for value in model.graph.input] == arrays[endpoint][0]
            assert [value.name for value in model.graph.output] == arrays[endpoint][1]
        text = (tmp_path / "to" / TEXT_NAME).read_text()
        assert "no z (an unconditional flow)" in text and '"z"' not in text

    def test_has_no_page(self, refused, plain_run):
        assert "this model has none; leave the format web out" in refused("--format", "web", run=plain_run)


@pytest.fixture
def runtime(tmp_path):
    """The three files of onnxruntime-web, as the npm package has them."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for number, name in enumerate(web.RUNTIME_FILES):
        (folder / "dist" / name).write_bytes(bytes(100 + number))
    return folder


class TestWeb:
    def test_page_is_complete(self, quick, command, runtime, tmp_path, opened):
        status, out, err = command("--format", "web", "--web-runtime", runtime)
        assert (status, err) == (0, "")
        page = tmp_path / "to" / "web"
        assert str(page) in out.splitlines()
        assert {path.name for path in page.iterdir()} == {
            *(path.name for path in web.PAGE.iterdir()),
            "model",
            "runtime",
        }
        for path in web.PAGE.iterdir():
            assert (page / path.name).read_bytes() == path.read_bytes()
        assert contents(page / "runtime") == contents(runtime / "dist")
        config = json.loads((page / "model" / "config.json").read_text())
        examples = config.pop("examples")
        pictures = [example["file"] for example in examples]
        # The run's data are the embedded photographs.
        assert {example["seen"] for example in examples} == {True, False}
        assert {path.name for path in (page / "model").iterdir()} == {
            *PARTS,
            "config.json",
            *(name.removeprefix("model/") for name in pictures),
        }
        sizes = {name.removesuffix(".onnx"): (page / "model" / name).stat().st_size for name in PARTS}
        assert config == {
            "name": "tiny",
            "image_size": 8,
            "centre_crop": 0,
            "latent_dim": 4,
            "bits_per_dim": None,
            "data": opened[1].data,
            "sizes": {**sizes, "runtime": 303},
            "project": None,
        }
        assert len(pictures) >= 2
        for name in pictures:
            with Image.open(page / name) as picture:
                assert (picture.size, picture.mode) == ((8, 8), "RGB")

    def test_is_alone_where_nothing_else_was_asked_for(self, quick, command, runtime, tmp_path):
        assert command("--format", "web", "--web-runtime", runtime / "dist")[0] == 0
        assert {path.name for path in (tmp_path / "to").iterdir()} == {"web", JSON_NAME, TEXT_NAME, *RECORDS}
        assert set(read_card(tmp_path / "to")["formats"]) == {"web"}

    def test_runtime_that_is_not_there_is_refused_before_anything_takes_time(
        self, quick, refused, monkeypatch, runtime
    ):
        def slow(*_, **__):
            raise AssertionError

        monkeypatch.setattr(pipeline, "make_cases", slow)
        (runtime / "dist" / web.RUNTIME_FILES[2]).unlink()
        line = refused("--format", "web", "--web-runtime", runtime)
        assert str(runtime) in line and web.RUNTIME_FILES[2] in line

    def test_without_npm_says_how_to_get_the_runtime(self, quick, refused, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        line = refused("--format", "web")
        assert "there is no npm here" in line and "--web-runtime" in line


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
    "checking": ("checking the SavedModel", 2.0),
    "converting": ("ONNX: decoder", 0.2),
    # This check is over after 0.4 s.
    "checking at the end": ("checking the ONNX files", 0.1),
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
    """The folder of a whole export."""
    to = tmp_path_factory.mktemp("whole") / "to"
    publishes_whole(least_run, to)
    return to


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


# An export of files that hold nothing, which kills itself before one of the renames that others could see.
KILLED = """
import pathlib, pickle, signal, sys
sys.path.insert(0, "tests")
import os, pytest
from helpers.exporting import hold_nothing

run, to, opened, number = sys.argv[1:]
left = int(number)

def killing(rename):
    def renamed(source, target):
        global left
        if not all(any(part.startswith(".export-") for part in pathlib.Path(path).parts) for path in (source, target)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
    return renamed

os.rename, os.replace = killing(os.rename), killing(os.replace)
hold_nothing(pytest.MonkeyPatch(), pickle.loads(pathlib.Path(opened).read_bytes()))
from export.cli import main
sys.exit(main(["--run", run, "--to", to]))
"""


@pytest.mark.slow
class TestKill:
    def test_at_any_moment_leaves_nothing_visible_and_the_same_command_publishes(self, least_run, tmp_path):
        to = tmp_path / "to"
        for moment in MOMENTS:
            assert end_amid(moment, signal.SIGKILL, least_run, to)[0] == -signal.SIGKILL
            assert [path for path in to.iterdir() if not path.name.startswith(".")] == []
        publishes_whole(least_run, to)

    def test_before_each_rename_leaves_every_part_whole(self, opened, tiny_run, tmp_path, forked):
        """One after the other, into one folder: the first export has no part to replace, the others have them all."""
        to, kept = tmp_path / "to", tmp_path / "opened"
        kept.write_bytes(pickle.dumps((types.SimpleNamespace(config=opened[0].config), opened[1])))
        for before in (False, True):
            for number in range(1, 30):
                command = [sys.executable, "-c", KILLED, *map(str, (tiny_run, to, kept, number))]
                ended = subprocess.run(command, cwd=ROOT, env=user_environment(), capture_output=True, text=True)
                assert half_written(to) == []
                if ended.returncode == 0:
                    break
                assert ended.returncode == -signal.SIGKILL, ended.stderr
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
