"""The documents, the site that is made of them, and the notebooks: what they say and show runs and exists."""

import ast
import base64
import dataclasses
import io
import os
import pathlib
import pkgutil
import re
import shutil
import sys
import textwrap
from xml.etree import ElementTree

import numpy as np
import pytest
import tensorflow as tf
from helpers import documents
from helpers.models import LEAST, TINY, random_images, save_images
from helpers.places import DATA, PATIENCE, ROOT, read_output, run_python
from helpers.program_inputs import load_program
from PIL import Image

import tfdecouple
from tfdecouple.cli import app
from tfdecouple.config import Config, list_option_names, preset_config, preset_names
from tfdecouple.errors import EXIT_FAILED, DivergedError, UserError
from tfdecouple.system.signals import InterruptedRunError
from tfdecouple.training.workers import LostWorkerError

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in documents.DOCUMENTS}


class TestDocument:
    @pytest.mark.parametrize("name", TEXTS)
    def test_programs_accept_the_commands_of_a_document(self, name):
        spans = documents.find_inline_code(TEXTS[name])
        commands = [code for code in spans if documents.is_command(code)]
        for block in (block for block in documents.split_code(TEXTS[name]) if block.info not in ("python", "json")):
            lines = documents.list_commands(block.content)
            commands += [line for line in lines if block.info or documents.is_command(line)]
        for line in commands:
            # `a|b` stands for two commands.
            choice = re.search(r"\b\w+(\|\w+)+\b", line)
            for word in choice[0].split("|") if choice else [""]:
                try:
                    documents.check_command(line.replace(choice[0], word) if choice else line, (ROOT / name).parent)
                except documents.CommandError as error:
                    # The text may name a command without its options.
                    if "requires" not in str(error) or line not in spans or " --" in line:
                        raise

    @pytest.mark.parametrize("name", preset_names())
    def test_train_accepts_the_options_in_the_notes_of_a_preset(self, name):
        preset = preset_config(name)
        option = r"--[a-z][\w-]* (?!with )(?:[^\s,;']|'[^']*')+"
        for together in re.findall(rf"{option}(?: {option})*", preset.notes):
            options = re.sub(r"\bPATH$", ".", together.rstrip(".:"))
            documents.check_command(f"python train.py --preset {name} {options}")
        assert set(re.findall(r"the preset (\w+)", preset.notes)) <= set(preset_names())

    def test_programs_accept_the_commands_in_their_help(self):
        docs = "\n".join(app[name].default_command.__doc__ for name in app if not name.startswith("-"))
        examples = re.findall("^ {8}((?:python|tfdecouple) .*)", docs, re.MULTILINE)
        assert examples
        for line in [*examples, *re.findall(r"`(tfdecouple [^`<>]+)`", docs)]:
            documents.check_command(line)

    @pytest.mark.parametrize("name", TEXTS)
    def test_options_python_names_and_files_in_a_document_exist(self, name):
        places = (ROOT, (ROOT / name).parent, ROOT / "tfdecouple", ROOT / "export")
        for code in documents.find_inline_code(TEXTS[name]):
            option = re.match(r"(training|data|model)\.([a-z_]+)\b(?!\.py)", code)
            if option and "/" not in code:
                is_option = option[0] in list_option_names() or code.endswith(".json")
                assert is_option or option[2] in dir(tfdecouple.DecoupledModel(LEAST)), f"`{code}`"
                if re.fullmatch(r"\w+\.\w+=\w+", code):
                    Config().override([re.sub(r"=[A-Z]$", "=1", code)])
            if dotted := re.match(r"((?:tfdecouple|export)(?:\.\w+)+)", code):
                pkgutil.resolve_name(dotted[1])
            if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.(py|md|c|mjs|js|sh|yaml|cfg)", code):
                assert any((place / code).exists() for place in places), f"there is no `{code}`"

    @pytest.mark.parametrize("name", TEXTS)
    def test_links_of_a_document_lead_to_files_and_headings(self, name):
        for link in documents.find_links(TEXTS[name]):
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                assert re.match(r"https?://[\w.-]+(:\d+)?(/|$)|mailto:", link), link
                continue
            file = ((ROOT / name).parent / target).resolve() if target else ROOT / name
            assert file.is_relative_to(ROOT) and file.exists(), f"{link} leads nowhere"
            assert not anchor or anchor in documents.list_anchors(file.read_text(encoding="utf-8")), link


class TestReferences:
    def test_exit_statuses_of_the_programs_differ_and_have_rows_in_the_table(self):
        ends = [error.status for error in (UserError, DivergedError, LostWorkerError, InterruptedRunError)]
        # A fault of the program, an interruption, done.
        ends += [EXIT_FAILED, 1, 130, 0]
        assert len(set(ends)) == len(ends) == 8
        assert set(map(int, re.findall(r"^\| (\d+) \|", TEXTS["docs/troubleshooting.md"], re.M))) == set(ends)

    def test_pages_and_headings_that_messages_and_presets_name_exist(self):
        files = [path for folder in ("tfdecouple", "export") for path in (ROOT / folder).rglob("*.*")]
        sources = [path for path in files if path.suffix in (".py", ".json", ".js", ".mjs", ".html")]
        named = {
            name
            for path in sources
            for name in re.findall(r"\bdocs/[\w/-]+\.md(?:#[\w-]+)?", path.read_text(encoding="utf-8"))
        }
        assert len(named) > 8
        for name in named:
            page, _, heading = name.partition("#")
            assert not heading or heading in documents.list_anchors(TEXTS[page]), name


# Options that make the quickstart and its export short. The shapes of images and z stay. The steps are enough to change
# every weight: the verification of exports would find no effect at the start.
SHORT = ["model.steps=[1,1]", "model.hidden_channels=[4,4]", "model.encoder_channels=[4]", "data.photograph_crops=64"]
SHORT += ["training.steps=20", "training.learning_rate=0.01", "training.warmup_steps=2", "training.ema_decay=0.5"]
SHORT += ["training.batch_size=8", "training.init_images=16", "training.evaluation_images=16"]


def list_programs(name):
    """Returns the commands that run the project's programs in the blocks of a document, as arguments of Python."""
    blocks = [block.content for block in documents.split_code(TEXTS[name]) if not block.info]
    lines = [line for text in blocks for line in documents.list_commands(text)]
    words = [documents.split_command(line) for line in lines if line.startswith(("python", "tfdecouple"))]
    return [rest if program == "python" else ["-m", program, *rest] for program, *rest in words]


def run_python_blocks(name, count, **names):
    """Runs the Python blocks of a document, which share variables; returns {name: value} of these."""
    blocks = [block.content for block in documents.split_code(TEXTS[name]) if block.info == "python"]
    assert len(blocks) == count
    for block in map(textwrap.dedent, blocks):
        # A function is also called, with variables of its arguments' names.
        functions = [node for node in ast.parse(block).body if isinstance(node, ast.FunctionDef)]
        calls = [f"\n{node.name}({', '.join(arg.arg for arg in node.args.args)})" for node in functions]
        exec(compile(block.replace("images = ...", "") + "".join(calls), name, "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
class TestPrograms:
    """The script of docs/keras.md runs in tests/model/test_keras_model.py."""

    def test_commands_of_the_readme_run_in_order(self, tmp_path):
        """Commands that need images of the reader are left out."""
        for name in ("train.py", "tfdecouple", "export"):
            (tmp_path / name).symlink_to(ROOT / name)
        for name in ("config.json", "model.npz"):
            shutil.copy(DATA / "wolf_small" / name, tmp_path)
        save_images(tmp_path, dict(zip(("a.jpg", "b.jpg"), random_images(2, 48), strict=True)))
        outputs = {}
        imports = [command for command in list_programs("docs/paper.md") if "import-wolf" in command]
        for arguments in [*list_programs("README.md"), *imports]:
            if any(argument.startswith("folder:/my/") for argument in arguments):
                continue
            key = " ".join(arguments)
            if key == "train.py":
                arguments += [word for assignment in SHORT for word in ("--set", assignment)]
            outputs[key] = read_output(sys.executable, *arguments, folder=tmp_path)
        assert len(outputs) == 4, list(outputs)
        assert (tmp_path / "runs" / "quickstart" / "images").is_dir() and "bits/dim" in outputs["train.py"]
        exported = tmp_path / "exported" / "quickstart"
        assert (exported / "savedmodel" / "1" / "saved_model.pb").is_file()
        assert (exported / "onnx" / "decoder.onnx").is_file() and (exported / "MODEL_CARD.md").is_file()
        assert (tmp_path / "runs" / "imported" / "config.json").is_file()

    def test_python_code_of_the_readme_runs(self):
        names = run_python_blocks("README.md", 1, images=random_images(16, 64))
        # The comments state these shapes.
        assert (names["z"].shape, names["v"].shape) == ((16, 32), (16, 64, 64, 3))
        assert names["z"].dtype == names["v"].dtype == np.float32
        assert names["ab"].shape == names["ba"].shape == (1, 64, 64, 3)
        assert np.asarray(names["new"]).shape == (16, 64, 64, 3) and np.asarray(names["bits"]).shape == (16,)

    def test_python_code_of_the_data_page_runs(self, tiny_run, tmp_path, monkeypatch):
        options = ("--run", tiny_run, "--out", tmp_path / "codes", "--v", "--format", "parquet", "--limit", 20)
        read_output(sys.executable, "-m", "tfdecouple", "encode", *options)
        monkeypatch.chdir(tmp_path)
        names = run_python_blocks("docs/data.md", 2)
        assert np.asarray(names["images"]).shape[1:] == (8, 8, 3)
        assert names["z"].shape == (len(names["table"]), 4)
        assert os.listdir(tmp_path) == ["codes"]

    def test_python_code_of_the_export_page_runs(self, exported, tmp_path, monkeypatch):
        (tmp_path / "exported").symlink_to(exported)
        save_images(tmp_path, dict(zip(("a.jpg", "b.jpg"), random_images(2, 48), strict=True)))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        names = run_python_blocks("docs/export.md", 3, images=random_images(2))
        sys.modules.pop("client")
        np.testing.assert_array_equal(names["same"], random_images(2))
        assert names["small"].shape == (8, 8, 3) and names["ab"].shape == names["ba"].shape == (48, 48, 3)
        np.testing.assert_array_equal(names["small"], names["model"].crop_and_resize(names["a"]))
        assert names["new"].shape == (8, 8, 8, 3)

    @pytest.mark.parametrize(("page", "count"), [("exactness", 3), ("training", 2), ("understanding", 3)])
    def test_python_code_of_a_page_runs(self, page, count, tmp_path, monkeypatch, eager):
        monkeypatch.chdir(tmp_path)
        photographs = random_images(2, size=70)
        save_images(tmp_path, {"r.jpg": photographs[0], "photographs/a.jpg": photographs[1]})
        names = {"tf": tf, "tfdecouple": tfdecouple, "photograph": photographs[0], "reference": photographs[1]}
        if page == "training":
            model = tfdecouple.DecoupledModel(dataclasses.replace(TINY, image_shape=(32, 32, 3), classes=4))
            names |= {"images": random_images(4, size=32), "labels": np.arange(4), "model": model}
            model.initialize(names["images"])
        else:
            names |= {"images": random_images(2, size=64), "model": tfdecouple.load_model("photographs")}
        run_python_blocks(f"docs/{page}.md", count, **names)


@pytest.mark.slow
def test_site_builds_without_warnings_and_fetches_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    # A broken link is a warning, and mkdocs.yml makes warnings errors.
    done = run_python("-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    for page, names in load_program(ROOT / ".ci" / "site_pages.py").list_public_names().items():
        anchors = re.findall(r'id="([^"]+)"', pages[tmp_path / "api" / page / "index.html"])
        assert set(names) <= set(anchors), page
    for path, text in pages.items():
        # A browser fetches scripts, pictures and these kinds of links with the page.
        links = [tag for tag in re.findall(r"<link[^>]*>", text) if re.search("stylesheet|icon|preload|preconn", tag)]
        fetched = [*re.findall(r'\bsrc="([^"]+)"', text), *re.findall(r'href="([^"]+)"', " ".join(links))]
        assert fetched and not [link for link in fetched if link.strip().lower().startswith(("http", "//"))], path
        assert "fonts.googleapis" not in text, path
    tour = pages[tmp_path / "tour" / "index.html"]
    # The page has the pictures and what the cells print.
    assert len(re.findall(r'src="[^"]+\.png"', tour)) >= 5 and "0 of 49152 values differ" in tour


@pytest.fixture
def figures():
    return load_program(ROOT / "docs" / "figures.py")


def test_committed_figure_of_the_architecture_is_what_the_program_draws(figures):
    drawn = figures.draw_architecture()
    assert (figures.IMAGES / "architecture.svg").read_text(encoding="utf-8") == drawn
    # Strict XML, in light and dark colours.
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and "prefers-color-scheme: dark" in drawn


@pytest.mark.slow
def test_committed_picture_of_one_v_with_several_z_is_what_the_bundled_weights_draw(figures):
    file = io.BytesIO()
    figures.draw_codes().save(file, "JPEG", quality=figures.QUALITY)
    sources = (file, figures.IMAGES / "one_v_three_z.jpg")
    drawn, committed = (np.asarray(Image.open(source), np.int64) for source in sources)
    # Other processors round differently.
    assert committed.shape == drawn.shape and np.abs(committed - drawn).mean() < 2


# {notebook: a text that it prints only if all that it shows has worked}.
NOTEBOOKS = {
    "tour": "; 0 of 49152 values differ",
    "own_photographs": "\n0 values differ",
    "labels_and_directions": "from the top: brighter, ",
    "export_and_onnx": "values that differ: 0\n",
}


def read_outputs(notebook):
    """Returns the text that the cells of a notebook printed, and (width, height) of each picture that they drew."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pictures = [output.get("data", {}).get("image/png") for output in outputs]
    sizes = [Image.open(io.BytesIO(base64.b64decode("".join(encoded)))).size for encoded in pictures if encoded]
    return "".join("".join(output.get("text", "")) for output in outputs), sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in ROOT.glob("examples/*.ipynb")])
def test_notebook_runs_and_draws_pictures_of_the_committed_sizes(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    notebook = pytest.importorskip("nbformat").read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    _, committed = read_outputs(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            # The notebooks train with a tenth of their updates, which is enough to run every cell.
            cell["source"] = re.sub(r"^(updates = \d+)0$", r"\1", cell["source"], flags=re.MULTILINE)
    # The commands of this environment, as where the environment is active.
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patience = {"timeout": PATIENCE, "startup_timeout": PATIENCE}
    nbclient.NotebookClient(notebook, **patience, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed, sizes = read_outputs(notebook)
    assert NOTEBOOKS[name] in printed and sizes == committed
    # The tour writes no files.
    assert name != "tour" or not list(tmp_path.iterdir())
