"""Tests that untrusted data sets, files and folders run no code, lead nowhere else and take limited memory."""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers.commands import command, refuse
from helpers.models import LEAST
from helpers.refusals import message_of
from PIL import Image

import tfdecouple
from export.export_folder import load_manifest as load_export_manifest
from tfdecouple.config import Config, DataConfig
from tfdecouple.corpus.code_files import CodesManifest
from tfdecouple.data.image_file import read_image
from tfdecouple.data.sources import open_source
from tfdecouple.errors import DataError, RunError, UserError
from tfdecouple.interop import wolf
from tfdecouple.loggers import MetricsLog
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.latent_directions import Direction, Directions
from tfdecouple.runs.opened_run import hash_weights
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.system.process import make_python_command

pytestmark = pytest.mark.usefixtures("eager_file")

PAYLOAD = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
FEATURES = {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "featuresDict": {"features": {"x": {"pythonClassName": "PAYLOAD.Feature"}}},
}


class TestDataSet:
    @pytest.mark.parametrize("name", ["innocent/1.0.0", "innocent/default/1.0.0", "cifar10/9.9.9"])
    def test_data_set_without_a_class_in_tfds_runs_no_code(self, tmp_path, monkeypatch, name):
        where, module = tmp_path / "data" / name, f"payload_{name.replace('/', '_').replace('.', '_')}"
        where.mkdir(parents=True)
        # The module leaves a file `ran` beside itself when it is imported.
        (tmp_path / f"{module}.py").write_text(PAYLOAD)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        (where / "features.json").write_text(json.dumps(FEATURES).replace("PAYLOAD", module))
        splits = [{"name": "train", "shardLengths": ["9"], "numBytes": "9"}]
        info = {"name": name.partition("/")[0], "version": where.name, "fileFormat": "tfrecord", "splits": splits}
        (where / "dataset_info.json").write_text(json.dumps(info))
        named, _, version = name.rpartition("/")
        config = DataConfig(source=f"tfds:{named}:{version}", data_dir=str(tmp_path / "data"))
        assert named in message_of(DataError, lambda: open_source(config, (8, 8, 3)))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["kaggle:innocent", "huggingface:innocent", "cifar10/data_dir=elsewhere"])
    def test_name_of_a_data_set_cannot_load_code_or_choose_a_folder(self, tmp_path, name):
        for data_dir in (None, str(tmp_path)):
            with pytest.raises(DataError, match=name):
                open_source(DataConfig(source=f"tfds:{name}", data_dir=data_dir), (8, 8, 3))


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The working folder, with modules and a package that leave a file `ran` when they are imported."""
    # Python imports `sitecustomize` when it starts.
    for name in ("sitecustomize", "numpy", "pydantic", "onnxruntime/__init__"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_subprocess_imports_nothing_from_the_working_folder(planted, monkeypatch):
    for name in ("json", "tfdecouple", "export"):
        (planted / f"{name}.py").write_text(PAYLOAD)
    # With `python -m` the working folder is the first entry of `sys.path`; with `python -c` it is "".
    monkeypatch.setattr(sys, "path", ["", os.curdir, str(planted), *sys.path])
    imports = "import json, onnxruntime, tfdecouple, export, os; print(os.environ['MARK'])"
    command = make_python_command("-c", imports, MARK="here")
    ended = subprocess.run(**command, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("here\n", "", 0)
    assert not (planted / "ran").exists()


def test_program_imports_nothing_from_the_working_folder(planted):
    ended = subprocess.run([sys.executable, "-m", "tfdecouple", "explain"], capture_output=True, text=True)
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert not (planted / "ran").exists()


class Runs:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pytorch_file_that_would_run_code_is_refused(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path, folder = tmp_path / "model.pt", tmp_path / "made"
    torch.save({"a": torch.zeros(2), "b": Runs(folder)}, path, _use_new_zipfile_serialization=zipped)
    message = message_of(UserError, lambda: wolf.read_state_dict(path))
    assert "model.pt" in message and "no code in it was run" in message and "weights_only" not in message
    assert not folder.exists()
    torch.load(path, weights_only=False)
    assert folder.is_dir()


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu124"])
def test_vulnerable_version_of_pytorch_is_refused(tmp_path, monkeypatch, version):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(2)}, path)
    assert list(wolf.read_state_dict(path)) == ["a"]
    monkeypatch.setattr(torch, "__version__", version)
    message = message_of(UserError, lambda: wolf.read_state_dict(path))
    assert f"needs torch 2.6 or later, and {version} is installed" in message and "pip install -U" in message


@contextlib.contextmanager
def at_most_memory(count):
    """Asserts that the memory that Python takes within the context is below `count` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < count
    finally:
        tracemalloc.stop()


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "secret"
    path.write_text("a private key\n")
    return path


def bind_socket(path, outside):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def link(path, outside):
    path.symlink_to(outside)


# (path in a run folder, function that puts something there, given a file outside).
WAYS_OUT = [
    *((name, link) for name in ("metrics.jsonl", "images/deeper/file.png", "wandb/id", "images/wandb/run-1/file.png")),
    ("metrics.jsonl", lambda path, outside: path.symlink_to(os.path.relpath(outside, path.parent))),
    ("summary.json", lambda path, outside: os.mkfifo(path)),
    ("directions.json", bind_socket),
    (".lock", lambda path, outside: path.symlink_to(outside.with_name("absent"))),
    ("checkpoints", lambda path, outside: path.symlink_to(outside.parent)),
]


class TestRunFolder:
    @pytest.mark.parametrize(("name", "make"), WAYS_OUT)
    def test_run_folder_with_a_link_outside_or_no_regular_file_is_refused(self, run, outside, name, make, monkeypatch):
        monkeypatch.chdir(run.parent)
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        make(path, outside)
        assert path.name in message_of(UserError, lambda: tfdecouple.load_model("run"))

    @pytest.mark.parametrize("line", ["publish --run run --to published --licence mit", "sample --run run"])
    def test_command_refuses_a_run_folder_with_a_link_outside(self, run, outside, line, monkeypatch, capsys):
        monkeypatch.chdir(run.parent)
        (run / "metrics.jsonl").symlink_to(outside)
        assert "metrics.jsonl is a link" in refuse(capsys, *line.split())
        assert not (run.parent / "published").exists() and not (run / "pictures").exists()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_run_whose_weights_are_not_finite_is_refused(self, run, tmp_path, capsys, value):
        folder = CheckpointFolder(run / "checkpoints")
        model = tfdecouple.load_model(run)
        weights = model.named_variables()
        name = next(name for name in weights if name.startswith("flow/") and name.endswith("/kernel"))
        weights[name].assign(np.full(weights[name].shape, value, np.float32))
        folder.write_checkpoint("best", folder.list_checkpoint_steps("best")[0], {"model": weights})
        for words in (["sample"], ["publish", "--to", tmp_path / "x", "--licence", "mit"]):
            line = refuse(capsys, *words, "--run", run)
            assert f"the weights of {run} are not finite ({name} at step " in line
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("name", ["\x1b[2Jx\r\n\u202eb", "long " * 150])
    def test_names_of_directions_are_printed_without_control_characters(self, run, tmp_path, capsys, name):
        model = tfdecouple.load_model(run)
        vector = np.zeros(model.config.latent_dim, np.float32)
        Directions(hash_weights(model), {}, (Direction(name, "means", vector),)).write(run)
        Image.fromarray(np.zeros(model.config.image_shape, np.uint8)).save(tmp_path / "a.png")
        words = ("edit", tmp_path / "a.png", "--run", run, "--out", tmp_path / "out", "--size", "model", "--direction")
        command(*words, name)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.isprintable() and len(line) < 1000
        assert "'none'" in refuse(capsys, *words, "none")
        Directions(hash_weights(model), {}, (Direction("x" * 10**6, "means", vector),)).write(run)
        message_of(RunError, lambda: tfdecouple.load_directions(run))

    def test_publish_leaves_out_a_log_and_a_card_that_are_too_large(self, run, tmp_path, capsys):
        (run / "README.md").write_text('---\nlicense: "mit"\n')
        for name in ("README.md", "metrics.jsonl"):
            sparse(run / name)
        with at_most_memory(10**8):
            command("publish", "--run", run, "--to", tmp_path / "published")
        assert "metrics.jsonl has more than 134,217,728 bytes and is left out" in capsys.readouterr().out
        files = {path.name: path.stat().st_size for path in (tmp_path / "published").iterdir()}
        assert "metrics.jsonl" not in files and files["README.md"] < 10_000

    def test_published_card_shows_texts_of_an_untrusted_summary_as_text(self, run, tmp_path):
        (run / "README.md").write_text('---\nlicense: "mit"\n')
        texts = {"rights": "mine\n# Heading <img src=x> | [link](http://x) \x1b[2J \\<b>", "data": "<script>"}
        texts |= {"source": "x", "imported_from": "a|b", "reconstruction": "<i>"}
        (run / "summary.json").write_text(json.dumps(texts))
        command("publish", "--run", run, "--to", tmp_path / "published")
        card = (tmp_path / "published" / "README.md").read_text()
        assert "\x1b" not in card and "\n# Heading" not in card
        body = card.partition("\n---\n")[2]
        assert not re.search(r"(?<!\\)(\\\\)*<", body)
        rows = [line for line in body.splitlines() if line.startswith("| ")]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
        assert r"mine # Heading \<img src=x\> \| \[link](http://x)" in body

    def test_training_refuses_checkpoints_linked_to_another_run(self, run, tmp_path, capsys):
        other = shutil.copytree(run, tmp_path / "other")
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").symlink_to(other / "checkpoints")
        before = sorted(other.rglob("*"))
        line = refuse(capsys, "train", "--config", run / "config.json", "--workdir", run, "--steps", 41)
        assert "checkpoints" in line and sorted(other.rglob("*")) == before

    def test_run_with_links_inside_its_folder_or_in_the_folder_of_weights_and_biases_is_opened(self, run, outside):
        logs = run / "wandb" / "offline-run-20260101_000000-1" / "logs"
        logs.mkdir(parents=True)
        (logs / "debug-core.log").symlink_to(outside)
        (run / "checkpoints").rename(run / "kept")
        (run / "checkpoints").symlink_to("kept")
        (run.parent / "link").symlink_to(run)
        assert bool(tfdecouple.load_model(run.parent / "link").initialized.value)


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
def test_file_names_in_errors_are_printable(tmp_path, name):
    (tmp_path / name).write_bytes(b"no image")
    for folder in (tmp_path, tmp_path / "absent"):
        assert message_of(DataError, lambda path=str(folder / name): read_image(path, (8, 8, 3), 0)).isprintable()


def test_damaged_tiff_file_prints_nothing_beside_the_error(tmp_path, capfd):
    """The strips of the compressed file begin behind its end."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    entries = int.from_bytes(content[4:8], "little") + 2
    for entry in range(entries, entries + 12 * content[entries - 2], 12):
        if int.from_bytes(content[entry : entry + 2], "little") == 273:  # the tag StripOffsets
            content[entry + 8 : entry + 12] = (10**8).to_bytes(4, "little")
    path.write_bytes(content)
    assert "a.tif" in message_of(DataError, lambda: read_image(str(path), (8, 8, 3), 0))
    assert capfd.readouterr() == ("", "")


# A NumPy file whose header has 10^6 bytes.
LONG = b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little") + b" " * 10**6


LONG_IN_ZIP = io.BytesIO()
with zipfile.ZipFile(LONG_IN_ZIP, "w") as _archive:
    _archive.writestr("a.npy", LONG)


@pytest.mark.parametrize(
    "content", [bytes(2000), b"", b"\x80\x04.", b"PK\3\4" + bytes(99), LONG, LONG_IN_ZIP.getvalue()]
)
def test_file_that_is_no_array_is_refused_without_advice_to_run_its_code(tmp_path, content):
    for name, error, read in (
        ("a.npy", DataError, lambda path: read_image(path, (8, 8, 5), 0)),
        ("a.npy", DataError, lambda path: read_image(path, (8, 8, 5), 0, io.BytesIO(content))),
        ("a.npz", UserError, wolf.read_state_dict),
    ):
        (tmp_path / name).write_bytes(content)
        message = message_of(error, lambda read=read, name=name: read(str(tmp_path / name)))
        assert name in message and "pickle" not in message


@pytest.mark.parametrize(
    "array", [np.array(["x"]), np.zeros(1, [("a", "f4")]), b"no array"], ids=["text", "struct", "bytes"]
)
def test_weights_of_the_reference_that_are_no_numbers_are_refused(array):
    theirs = next(iter(wolf.match_weights(model := DecoupledModel(LEAST)).values()))
    assert f"{theirs} is " in message_of(UserError, lambda: wolf.assign_weights(model, {theirs: array}))


def test_npz_file_that_expands_to_gigabytes_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(300_000_000, np.uint8))
    assert "300,000,128 bytes" in message_of(UserError, lambda: wolf.read_state_dict(tmp_path / "a.npz"))


def test_log_with_300_megabytes_of_zeros_is_reduced_to_its_rows(tmp_path):
    row = b'{"step": 1, "kind": "train", "a": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(row)
    os.truncate(tmp_path / "metrics.jsonl", 300_000_000)
    with at_most_memory(10**7):
        assert MetricsLog(tmp_path).open(1) > 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == row


def make_pipe(path):
    os.mkfifo(path)
    # A program that reads the pipe nevertheless gets an end.
    threading.Timer(3, os.close, [os.open(path, os.O_RDWR | os.O_NONBLOCK)]).start()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (sparse, "300,000,000 bytes"),
        (make_pipe, "no regular file"),
        (lambda path: path.write_text("[" * 50_000), "nested too deeply"),
    ],
    ids=["large", "pipe", "nested"],
)
def test_json_that_is_too_large_or_deep_or_no_file_is_refused_in_one_line(tmp_path, name, make, words):
    make(tmp_path / name)
    assert words in message_of(UserError, lambda: READERS[name](tmp_path / name))
