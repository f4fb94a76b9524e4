import base64
import importlib.util
import io
import os
import pathlib
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.places import PATIENCE, ROOT, run_python
from PIL import Image


@pytest.mark.slow
def test_site_builds_without_warnings_and_fetches_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / ".ci" / "site_pages.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    # A broken link is a warning, and mkdocs.yml makes warnings errors.
    done = run_python("-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    for page, names in hook.list_public_names().items():
        anchors = re.findall(r'id="([^"]+)"', pages[tmp_path / "api" / page / "index.html"])
        assert set(names) <= set(anchors), page
    for path, text in pages.items():
        # A browser fetches scripts, pictures and these kinds of links with the page.
        tags = re.findall(r"<link[^>]*>", text)
        links = [tag for tag in tags if re.search("stylesheet|icon|preload|preconnect", tag)]
        fetched = [*re.findall(r'\bsrc="([^"]+)"', text), *re.findall(r'href="([^"]+)"', " ".join(links))]
        assert fetched and not [link for link in fetched if link.strip().lower().startswith(("http", "//"))], path
        assert "fonts.googleapis" not in text, path
    start = pages[tmp_path / "index.html"]
    wishes = re.findall(r'<a href="(?:(?!</tr>).)*', start[: start.index("<h2")].partition("I want to ...")[2])
    assert len(wishes) >= 20
    tour = pages[tmp_path / "tour" / "index.html"]
    # The page has the pictures and what the cells print.
    assert len(re.findall(r'src="[^"]+\.png"', tour)) >= 5 and "0 of 49152 values differ" in tour


@pytest.fixture
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_figure_of_the_architecture_is_what_the_program_draws(figures):
    drawn = figures.draw_architecture()
    assert (figures.IMAGES / "architecture.svg").read_text(encoding="utf-8") == drawn
    # Strict XML, in light and dark colours.
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and "prefers-color-scheme: dark" in drawn


@pytest.mark.slow
def test_committed_picture_of_one_v_with_several_z_is_what_the_bundled_weights_draw(figures):
    file = io.BytesIO()
    figures.draw_codes().save(file, "JPEG", quality=figures.QUALITY)
    drawn, committed = (
        np.asarray(Image.open(source), np.int64) for source in (file, figures.IMAGES / "one_v_three_z.jpg")
    )
    # Other processors round differently.
    assert committed.shape == drawn.shape and np.abs(committed - drawn).mean() < 2


# {notebook: a text that it prints only if all that it shows has worked}.
NOTEBOOKS = {
    "tour": "; 0 of 49152 values differ",
    "own_photographs": "\n0 values differ",
    "labels_and_directions": "from the top: brighter, ",
    "export_and_onnx": "values that differ: 0\n",
}


def outputs(notebook):
    """Returns the text that the cells of a notebook printed, and (width, height) of each picture that they drew."""
    cell_outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pictures = [output.get("data", {}).get("image/png") for output in cell_outputs]
    sizes = [Image.open(io.BytesIO(base64.b64decode("".join(encoded)))).size for encoded in pictures if encoded]
    return "".join("".join(output.get("text", "")) for output in cell_outputs), sizes


def test_all_notebooks_are_tested():
    assert {path.stem for path in ROOT.glob("examples/*.ipynb")} == {*NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_draws_pictures_of_the_committed_sizes(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    notebook = pytest.importorskip("nbformat").read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    _, committed = outputs(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            # The notebooks train with a tenth of their updates, which is enough to run every cell.
            cell["source"] = re.sub(r"^(updates = \d+)0$", r"\1", cell["source"], flags=re.MULTILINE)
    # The commands of this environment, as where the environment is active.
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patience = {"timeout": PATIENCE, "startup_timeout": PATIENCE}
    nbclient.NotebookClient(notebook, **patience, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed, sizes = outputs(notebook)
    assert NOTEBOOKS[name] in printed and sizes == committed
    # The tour writes no files.
    assert name != "tour" or not list(tmp_path.iterdir())
