import shutil
from types import SimpleNamespace

import onnx
import pytest
from helpers import refusals
from helpers.exporting import SIGNATURES, read_tree, read_vectors
from helpers.places import make_once

from export.endpoints import list_endpoints
from export.exported_model import ExportedModel
from export.formats.saved_model import save_saved_model, write_warmup_requests
from export.formats.web import RUNTIME_FILES
from export.provenance import open_run
from export.verification.comparison import Report
from tfdecouple.cli import main


@pytest.fixture(scope="session")
def opened(tiny_run):
    """The model of the tiny run and its provenance. Do not change them."""
    return open_run(tiny_run)


@pytest.fixture
def replace(opened, monkeypatch):
    """A function that replaces functions of the package `export` by their dotted names, beside three slow ones."""

    def replace_parts(parts):
        slow = {"pipeline.open_run": lambda run, name: opened}
        endpoints = list_endpoints(opened[0].config)
        stub = SimpleNamespace(find_faults=list, collect_arrays=dict, endpoints=endpoints)
        slow["pipeline.ExportedModel"] = lambda *_: stub
        slow["pipeline.load_real_images"] = lambda data, shape: (None, "test images")
        for name, value in {**slow, **parts}.items():
            monkeypatch.setattr(f"export.{name}", value)

    return replace_parts


@pytest.fixture
def quick(replace):
    """Makes exports write placeholder files that pass verification, for tests of where the files go."""

    def save_placeholders(exported, chosen, folder):
        (folder / "variables").mkdir(parents=True)
        for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
            (folder / name).write_text("weights")

    parts = {
        "pipeline.make_test_vectors": lambda model, images, any_size: {},
        "formats.onnx.build_onnx": lambda exported, endpoint, metadata: onnx.ModelProto(producer_name="it"),
        "formats.saved_model.save_saved_model": save_placeholders,
        "pipeline.compare_in_process": lambda runtime, folder, vectors, options: Report(),
    }
    replace(parts)


@pytest.fixture
def runtime(tmp_path):
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for number, name in enumerate(RUNTIME_FILES):
        (folder / "dist" / name).write_bytes(bytes(100 + number))
    return folder


@pytest.fixture
def command(tiny_run, tmp_path, capsys):
    def run(*arguments, run=tiny_run, to=tmp_path / "to"):
        status = main(["export", "--run", str(run), "--to", str(to), *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(tiny_run, tmp_path, capsys):
    """A function that runs an export, asserts its status, one line of error and no changed file; returns the line."""

    def run(*arguments, expected=2, run=tiny_run, to=tmp_path / "to"):
        words, before = ["--run", run, "--to", to, *arguments], read_tree(tmp_path)
        line = refusals.refused(capsys, lambda: main(["export", *map(str, words)]), begun=True, status=expected)
        assert read_tree(tmp_path) == before
        return line

    return run


@pytest.fixture(scope="module")
def model(opened):
    return opened[0]


@pytest.fixture(scope="module")
def vectors(exported):
    """The test vectors of the export folder, by name; computing them again would take long."""
    return read_vectors(exported)


@pytest.fixture(scope="module")
def small_saved_model(model, tmp_path_factory):
    """The path of a correct SavedModel with only two signatures, which loads faster than a full one."""

    def make(folder):
        chosen = [endpoint for endpoint in list_endpoints(model.config) if endpoint.name in SIGNATURES]
        save_saved_model(ExportedModel(model), chosen, folder / "savedmodel")
        write_warmup_requests(folder / "savedmodel", "tiny", chosen)

    return make_once(tmp_path_factory, "small", make) / "savedmodel"


@pytest.fixture
def built(vectors, exported, small_saved_model, replace):
    """Makes exports copy finished files instead of building them, for tests of verification."""
    files = exported / "onnx"
    parts = {
        "pipeline.make_test_vectors": lambda model, images, any_size: dict(vectors),
        "formats.onnx.build_onnx": lambda exported, endpoint, metadata: onnx.load(files / f"{endpoint.onnx}.onnx"),
        "formats.saved_model.save_saved_model": lambda *given: shutil.copytree(small_saved_model, given[2]),
        "formats.saved_model.write_warmup_requests": lambda folder, name, chosen: None,
    }
    replace(parts)
