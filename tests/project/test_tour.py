"""Tests of the notebook `tour.ipynb`: it is committed with outputs, and a new run draws pictures of the same sizes."""

import base64
import io
import json

import pytest
from helpers.places import PATIENCE, ROOT
from PIL import Image

TOUR = ROOT / "examples" / "tour.ipynb"
EXACT = "; 0 of 49152 values differ"


def outputs(notebook):
    """Returns the text that the cells of a notebook printed, and (width, height) of each picture that they drew."""
    found = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pictures = [output.get("data", {}).get("image/png") for output in found]
    sizes = [Image.open(io.BytesIO(base64.b64decode("".join(one)))).size for one in pictures if one]
    return "".join("".join(output.get("text", "")) for output in found), sizes


def test_committed_tour_has_outputs_of_all_cells_in_order():
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    printed, sizes = outputs(notebook)
    assert EXACT in printed and len(sizes) == 5
    assert TOUR.stat().st_size < 2**20


@pytest.mark.slow
def test_tour_runs_and_draws_pictures_of_the_committed_sizes(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    notebook = pytest.importorskip("nbformat").read(TOUR, as_version=4)
    _, committed = outputs(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    patience = {"timeout": PATIENCE, "startup_timeout": PATIENCE}
    nbclient.NotebookClient(notebook, **patience, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed, sizes = outputs(notebook)
    assert EXACT in printed and sizes == committed
    assert not list(tmp_path.iterdir())
