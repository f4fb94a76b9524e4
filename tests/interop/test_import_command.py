"""`python -m tfdecouple import-wolf` and what follows it: the imported run is opened and sampled.

`tests/project/test_readme.py` exports it.
"""

import json

import numpy as np
import pytest
from helpers.places import DATA
from helpers.refusals import refused

from tfdecouple.cli import main

pytestmark = pytest.mark.usefixtures("eager")

DATA = DATA / "wolf_small"
REFERENCE = dict(np.load(DATA / "reference.npz"))
SHAPE = ["--image-shape", 32, 32, 3]
ARGUMENTS = ["import-wolf", "--config", DATA / "config.json", "--weights", DATA / "model.npz", *SHAPE]


def imports(*more):
    return main(list(map(str, [*ARGUMENTS, *more])))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The folder that the command made, and what it printed."""
    run = tmp_path_factory.mktemp("imported") / "wolf"
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *text, **options: said.append(" ".join(map(str, text))))
        assert imports("--workdir", run) == 0
    return run, "\n".join(said)


def test_it_says_how_many_parameters_came_and_how_to_open_them(imported):
    run, said = imported
    summary = json.loads((run / "summary.json").read_text())
    assert f"{run}: {summary['parameters']['total']:,} parameters imported" in said
    assert f"tfdecouple.load_model({str(run)!r})" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "no/such.npz"], "no/such.npz"),
        (["--config", "no/such.json"], "no/such.json"),
        (["--image-shape", 48, 48, 3], "48"),
        (["--n-bits", 9], "n_bits is 9"),
        (["--n-bits", 0], "n_bits is 0"),
    ],
)
def test_mistake_is_one_line_and_leaves_no_run(tmp_path, capsys, arguments, message):
    line = refused(capsys, lambda: imports("--workdir", tmp_path / "run", *arguments))
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_overwritten(imported, capsys):
    before = (imported[0] / "config.json").read_bytes()
    assert str(imported[0]) in refused(capsys, lambda: imports("--workdir", imported[0]))
    assert (imported[0] / "config.json").read_bytes() == before
