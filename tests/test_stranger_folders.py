"""What a stranger's folder may hold: files of bounded sizes and folders, and no way out of it."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import socket
import threading
import tracemalloc

import numpy as np
import pytest
from helpers.models import LEAST
from helpers.refusals import message_of, refused
from PIL import Image

import tfdecouple
from export.export_folder import load_manifest as load_export_manifest
from tfdecouple.cli import main, train_main
from tfdecouple.config import Config, DataConfig
from tfdecouple.corpus.codes_manifest import CodesManifest
from tfdecouple.data.image_file import read_image
from tfdecouple.errors import ConfigError, DataError, RunError, UserError
from tfdecouple.runs.latent_directions import Direction, Directions
from tfdecouple.runs.metrics_log import MetricsLog
from tfdecouple.runs.opened_run import hash_weights
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.training.workers import find_cluster

pytestmark = pytest.mark.usefixtures("eager_file")

DEEP = "[" * 50_000


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run folder, from somebody else."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def outside(tmp_path):
    """A file that is none of the run's."""
    path = tmp_path / "secret"
    path.write_text("a private key\n")
    return path


def _socket(path, outside):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def _link(path, outside):
    path.symlink_to(outside)


# Functions that put something at a path of a run folder, given a file outside.
WAYS_OUT = {
    "metrics.jsonl": _link,
    "metrics.jsonl, relative": lambda path, outside: path.symlink_to(os.path.relpath(outside, path.parent)),
    "summary.json": lambda path, outside: os.mkfifo(path),
    "directions.json": _socket,
    ".lock": lambda path, outside: path.symlink_to(outside.with_name("absent")),
    "checkpoints": lambda path, outside: path.symlink_to(outside.parent),
    "images/deeper/file.png": _link,
    "wandb/id": _link,
    "images/wandb/run-1/file.png": _link,
}
COMMANDS = {
    "publish": ["publish", "--run", "run", "--to", "published", "--licence", "mit"],
    "sample": ["sample", "--run", "run"],
    "curves": ["curves", "--run", "run"],
}


class TestRunFolder:
    @pytest.mark.parametrize("way", WAYS_OUT)
    def test_that_leads_out_is_refused_in_one_line(self, run, outside, way, monkeypatch):
        monkeypatch.chdir(run.parent)
        path = run / way.partition(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        WAYS_OUT[way](path, outside)
        with pytest.raises(UserError) as refused:
            tfdecouple.load_model("run")
        assert path.name in str(refused.value) and "\n" not in str(refused.value)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_that_leads_out_is_refused_by_a_command(self, run, outside, command, monkeypatch, capsys):
        monkeypatch.chdir(run.parent)
        (run / "metrics.jsonl").unlink(missing_ok=True)
        (run / "metrics.jsonl").symlink_to(outside)
        assert main(COMMANDS[command]) == 2
        assert "metrics.jsonl is a link" in capsys.readouterr().err
        assert not (run.parent / "published").exists() and not (run / "pictures").exists()

    def test_whose_card_leads_out_is_refused_before_its_licence_is_read(self, run, outside, capsys):
        (run / "README.md").symlink_to(outside)
        assert "README.md is a link" in refused(
            capsys, lambda: main(["publish", "--run", str(run), "--to", str(run.parent / "published")])
        )

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_whose_weights_are_not_finite_is_refused_on_opening(self, run, tmp_path, capsys, value):
        folder = CheckpointFolder(run / "checkpoints")
        model = tfdecouple.load_model(run)
        weights = model.named_variables()
        name = next(name for name in weights if name.startswith("flow/") and name.endswith("/kernel"))
        weights[name].assign(np.full(weights[name].shape, value, np.float32))
        folder.write_checkpoint("best", folder.list_checkpoint_steps("best")[0], {"model": weights})
        for command in (
            ["sample", "--run", run],
            ["publish", "--run", run, "--to", tmp_path / "x", "--licence", "mit"],
        ):
            line = refused(capsys, lambda command=command: main(list(map(str, command))))
            assert f"the weights of {run} are not finite ({name} at step " in line
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("name", ["a\nb", "\x1b[2Jb", "x\r\u202eb", "long " * 150])
    def test_whose_directions_have_names_of_any_characters_is_edited_with_printable_ones(
        self, run, tmp_path, capsys, name
    ):
        model = tfdecouple.load_model(run)
        vector = np.zeros(model.config.latent_dim, np.float32)
        Directions(hash_weights(model), {}, (Direction(name, "means", vector),)).write(run)
        Image.fromarray(np.zeros(model.config.image_shape, np.uint8)).save(tmp_path / "a.png")
        command = ["edit", "--run", run, "--out", tmp_path / "out", "--size", "model", "--direction"]
        assert main(list(map(str, [*command, name, tmp_path / "a.png"]))) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.isprintable() and len(line) < 1000
        assert "'none'" in refused(capsys, lambda: main(list(map(str, [*command, "none", tmp_path / "a.png"]))))

    def test_whose_direction_has_a_name_of_a_million_letters_is_refused(self, run, capsys):
        model = tfdecouple.load_model(run)
        vector = np.zeros(model.config.latent_dim, np.float32)
        Directions(hash_weights(model), {}, (Direction("x" * 10**6, "means", vector),)).write(run)
        message_of(RunError, lambda: tfdecouple.load_directions(run))

    def test_whose_log_is_too_large_is_not_drawn(self, run, capsys):
        sparse(run / "metrics.jsonl")
        line = refused(capsys, lambda: main(["curves", "--run", str(run)]))
        assert "metrics.jsonl has 300,000,000 bytes" in line

    def test_whose_log_and_card_are_too_large_is_published_without_them(self, run, tmp_path, capsys):
        (run / "README.md").write_text('---\nlicense: "mit"\n')
        for name in ("README.md", "metrics.jsonl"):
            sparse(run / name)
        command = ["publish", "--run", str(run), "--to", str(tmp_path / "published")]
        tracemalloc.start()
        try:
            assert main(command) == 0
            assert tracemalloc.get_traced_memory()[1] < 10**8
        finally:
            tracemalloc.stop()
        assert "metrics.jsonl has more than 134,217,728 bytes and is left out" in capsys.readouterr().out
        files = {path.name: path.stat().st_size for path in (tmp_path / "published").iterdir()}
        assert "metrics.jsonl" not in files and files["README.md"] < 10_000

    def test_that_leads_to_another_run_leaves_it_alone(self, run, tmp_path, capsys):
        other = shutil.copytree(run, tmp_path / "other")
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").symlink_to(other / "checkpoints")
        before = sorted(other.rglob("*"))
        assert train_main(["--config", str(run / "config.json"), "--workdir", str(run), "--steps", "41"]) == 2
        assert "checkpoints" in capsys.readouterr().err and sorted(other.rglob("*")) == before

    def test_that_is_new_has_no_lock_elsewhere(self, tmp_path, capsys):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".lock").symlink_to(tmp_path / "made")
        (tmp_path / "config.json").write_text(Config(model=LEAST, data=DataConfig(photograph_crops=64)).to_json())
        options = ["--config", tmp_path / "config.json", "--workdir", tmp_path / "run", "--steps", 1]
        assert train_main(list(map(str, options))) == 2
        assert ".lock" in capsys.readouterr().err and not (tmp_path / "made").exists()

    def test_with_logs_that_weights_and_biases_links_to_its_cache_is_opened(self, run, outside):
        logs = run / "wandb" / "offline-run-20260101_000000-1" / "logs"
        logs.mkdir(parents=True)
        (logs / "debug-core.log").symlink_to(outside)
        tfdecouple.load_model(run)

    def test_with_links_within_it_is_opened(self, run):
        (run / "checkpoints").rename(run / "kept")
        (run / "checkpoints").symlink_to("kept")
        (run.parent / "link").symlink_to(run)
        tfdecouple.load_model(run.parent / "link").require_initialized()


def sparse(path: pathlib.Path) -> pathlib.Path:
    """A file of 300 MB that takes no room."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 300_000_000)
    return path


READERS = {
    "config.json": Config.from_json,
    "_manifest.json": lambda path: CodesManifest.read_manifest(path.parent),
    "manifest.json": lambda path: load_export_manifest(path.parent),
}


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[2Jb.png", "\u202eb.png"])
def test_file_names_in_errors_of_the_library_are_printable(tmp_path, name):
    (tmp_path / name).write_bytes(b"no image")
    assert message_of(DataError, lambda: read_image(str(tmp_path / name), (8, 8, 3), 0)).isprintable()
    assert message_of(DataError, lambda: read_image(str(tmp_path / "absent" / name), (8, 8, 3), 0)).isprintable()


@pytest.mark.parametrize("devices", ["1000000000", "257", "0", "-1"])
def test_devices_that_no_machine_has_are_refused_before_they_are_made(tmp_path, capsys, devices):
    (tmp_path / "config.json").write_text(Config(model=LEAST, data=DataConfig(photograph_crops=64)).to_json())
    options = ["--config", str(tmp_path / "config.json"), "--workdir", str(tmp_path / "run"), "--devices", devices]
    assert f"--devices is {devices}; it must be at " in refused(capsys, lambda: train_main(options))


def test_log_with_lines_without_end_is_resumed_with_its_rows(tmp_path):
    row = b'{"step": 1, "kind": "train", "a": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(row)
    os.truncate(tmp_path / "metrics.jsonl", 300_000_000)
    tracemalloc.start()
    try:
        assert MetricsLog(tmp_path).open(1) > 0
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
    assert (tmp_path / "metrics.jsonl").read_bytes() == row


class TestJson:
    @pytest.mark.parametrize("name", READERS)
    def test_that_is_too_large_is_not_read(self, tmp_path, name):
        with pytest.raises(UserError, match=r"300,000,000 bytes"):
            READERS[name](sparse(tmp_path / name))

    @pytest.mark.parametrize("name", READERS)
    def test_that_is_no_file_is_not_waited_for(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        # Whoever reads it all the same gets an end.
        writer = os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK)
        threading.Timer(3, os.close, [writer]).start()
        with pytest.raises(UserError, match="no regular file"):
            READERS[name](tmp_path / name)

    @pytest.mark.parametrize("name", READERS)
    def test_that_is_nested_deep_is_one_line(self, tmp_path, name):
        (tmp_path / name).write_text(DEEP)
        with pytest.raises(UserError, match="nested too deeply") as refused:
            READERS[name](tmp_path / name)
        assert "\n" not in str(refused.value)

    def test_of_six_megabytes_is_refused_as_a_config(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"model": {"steps": [[1] * 1000] * 2000}}))
        with pytest.raises(ConfigError, match=r"6,0\d\d,\d\d\d bytes"):
            Config.from_json(path)

    def test_of_the_environment_is_one_line(self, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", DEEP)
        with pytest.raises(ConfigError, match="TF_CONFIG"):
            find_cluster()
