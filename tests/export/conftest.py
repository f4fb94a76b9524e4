"""The tiny run, opened once; the export's command line, with and without verification; the name of the served model."""

import shutil

import pytest
from helpers.exporting import SIGNATURES, contents, hold_nothing, read_vectors, take_from
from helpers.once import made_once
from helpers.serving_server import read_models

from export.cli import EXIT_REFUSED, main
from export.deployed.deployed_model import DeployedModel
from export.endpoints import endpoints
from export.formats.saved_model import save_saved_model, write_warmup
from export.provenance import open_run


@pytest.fixture(scope="session")
def opened(tiny_run):
    """The tiny run's model and its origin. Do not change them."""
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


@pytest.fixture(scope="module")
def model(opened):
    return opened[0]


@pytest.fixture(scope="module")
def origin(opened):
    return opened[1]


@pytest.fixture(scope="module")
def vectors(exported):
    """The test vectors of an export; to compute them anew would take most of the time."""
    return read_vectors(exported)


@pytest.fixture(scope="module")
def small_saved_model(model, tmp_path_factory):
    """A right SavedModel of two signatures: fewer are loaded faster."""

    def make(folder):
        chosen = [endpoint for endpoint in endpoints(model.config) if endpoint.name in SIGNATURES]
        save_saved_model(DeployedModel(model), chosen, folder / "savedmodel")
        write_warmup(folder / "savedmodel", "tiny", chosen)

    return made_once(tmp_path_factory, "small", make) / "savedmodel"


@pytest.fixture
def earlier(exported, tmp_path):
    """A folder that an earlier export filled."""
    return shutil.copytree(exported, tmp_path / "to")


@pytest.fixture
def built(opened, vectors, exported, small_saved_model, monkeypatch):
    """Takes files that are there already instead of building them, so that only sabotage and verification are left."""
    take_from(monkeypatch, exported, opened, small_saved_model, vectors)


@pytest.fixture
def refusal(built, earlier, tiny_run, capsys):
    """Runs an export that must be refused, and returns what it says; what was published before must stay as it was."""

    def run(*arguments):
        before = contents(earlier)
        assert main(["--run", str(tiny_run), "--to", str(earlier), *arguments]) == EXIT_REFUSED == 4
        assert contents(earlier) == before
        err = capsys.readouterr().err
        assert err.startswith("error: not published: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture(scope="module")
def name(exported):
    """What the server knows the exported model as."""
    (model,) = read_models(exported)
    return model.name
