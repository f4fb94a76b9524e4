"""The notebook of the examples: what is committed is whole, and it runs."""

from __future__ import annotations

import base64
import io
import json

import pytest
from helpers.places import PATIENCE, ROOT
from PIL import Image

TOUR = ROOT / "examples" / "tour.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(cells):
    """What cells have printed."""
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])


def sizes_of(cells):
    """Width and height of the pictures that cells have drawn."""
    found = [output.get("data", {}).get("image/png") for cell in cells for output in cell["outputs"]]
    return [Image.open(io.BytesIO(base64.b64decode("".join(one)))).size for one in found if one]


def test_every_cell_has_run_in_order_and_the_outputs_say_what_the_text_says():
    cells = code_cells(json.loads(TOUR.read_text(encoding="utf-8")))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert "; 0 of 49152 values differ" in text_of(cells) and len(sizes_of(cells)) == 5
    assert TOUR.stat().st_size < 2**20


@pytest.mark.slow
def test_runs_elsewhere_and_gives_as_much(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(TOUR, as_version=4)
    committed = code_cells(notebook)
    wanted = text_of(committed), sizes_of(committed)
    for cell in committed:
        cell["outputs"], cell["execution_count"] = [], None
    patience = {"timeout": PATIENCE, "startup_timeout": PATIENCE}
    nbclient.NotebookClient(notebook, **patience, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said, sizes = text_of(code_cells(notebook)), sizes_of(code_cells(notebook))
    assert "; 0 of 49152 values differ" in said and sizes == wanted[1]
    assert not list(tmp_path.iterdir())
