import ast
import dataclasses
import os
import shutil
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from helpers.documents import list_commands, split_code, split_command
from helpers.models import TINY, random_images, save_images
from helpers.places import DATA, ROOT, read_output

import tfdecouple

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPER = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
DATA_PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
EXPORT = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
IMPORTED = DATA / "wolf_small"
# Options that make the quickstart and its export short. The shapes of images and z stay. The steps are enough to change
# every weight: the verification of exports would find no effect at the start.
SMALL = ["model.steps=[1,1]", "model.hidden_channels=[4,4]", "model.encoder_channels=[4]", "data.photograph_crops=64"]
SMALL += ["training.steps=20", "training.learning_rate=0.01", "training.warmup_steps=2", "training.ema_decay=0.5"]
SMALL += ["training.batch_size=8", "training.init_images=16", "training.evaluation_images=16"]


def commands(text):
    """The commands that run the project's programs in the blocks of a document, as lists of Python's arguments."""
    lines = [line for block in split_code(text) if not block.language for line in list_commands(block.text)]
    words = [split_command(line) for line in lines if line.startswith(("python", "tfdecouple"))]
    return [rest if program == "python" else ["-m", program, *rest] for program, *rest in words]


def run(*arguments, folder=ROOT):
    return read_output(sys.executable, *arguments, folder=folder)


def python_blocks(text):
    return [block.text for block in split_code(text) if block.language == "python"]


def call_functions(block):
    """Appends to Python code a call of each function that it defines, with variables of the arguments' names."""
    functions = [node for node in ast.parse(block).body if isinstance(node, ast.FunctionDef)]
    return block + "".join(f"\n{node.name}({', '.join(arg.arg for arg in node.args.args)})" for node in functions)


class TestReadme:
    def test_commands_of_the_readme_run_in_order(self, tmp_path):
        """Commands that need images of the reader are left out."""
        for name in ("train.py", "tfdecouple", "export"):
            (tmp_path / name).symlink_to(ROOT / name)
        for name in ("config.json", "model.npz"):
            shutil.copy(IMPORTED / name, tmp_path)
        save_images(tmp_path, dict(zip(("a.jpg", "b.jpg"), random_images(2, 48), strict=True)))
        outputs = {}
        imports = [command for command in commands(PAPER) if "import-wolf" in command]
        for arguments in [*commands(README), *imports]:
            if any(argument.startswith("folder:/my/") for argument in arguments):
                continue
            key = " ".join(arguments)
            if key == "train.py":
                arguments += [word for assignment in SMALL for word in ("--set", assignment)]
            outputs[key] = run(*arguments, folder=tmp_path)
        assert len(outputs) == 4, list(outputs)
        assert (tmp_path / "runs" / "quickstart" / "images").is_dir() and "bits/dim" in outputs["train.py"]
        exported = tmp_path / "exported" / "quickstart"
        assert (exported / "savedmodel" / "1" / "saved_model.pb").is_file()
        assert (exported / "onnx" / "decoder.onnx").is_file() and (exported / "MODEL_CARD.md").is_file()
        assert (tmp_path / "runs" / "imported" / "config.json").is_file()

    def test_python_code_of_the_readme_runs(self):
        from tfdecouple.data.batches import load_images
        from tfdecouple.data.sources import open_source
        from tfdecouple.runs.run_folder import RunFolder

        (block,) = python_blocks(README)
        config = RunFolder("photographs").read_config()
        images, _ = load_images(open_source(config.data, config.model.image_shape), "test", 16)
        assert "images = ..." in block
        names = {"given": images}
        exec(compile(block.replace("images = ...", "images = given"), "README.md", "exec"), names)
        # The comments state these shapes.
        assert images.dtype == np.uint8 and images.shape == (16, 64, 64, 3)
        assert (names["z"].shape, names["v"].shape) == ((16, 32), (16, 64, 64, 3))
        assert names["z"].dtype == names["v"].dtype == np.float32
        assert names["ab"].shape == names["ba"].shape == (1, 64, 64, 3)
        assert np.asarray(names["new"]).shape == (16, 64, 64, 3) and np.asarray(names["bits"]).shape == (16,)

    def test_python_code_of_the_data_page_runs(self, tiny_run, tmp_path, monkeypatch):
        out = tmp_path / "codes"
        options = ("--run", tiny_run, "--out", out, "--v", "--format", "parquet", "--limit", 20)
        run("-m", "tfdecouple", "encode", *options)
        monkeypatch.chdir(tmp_path)
        blocks = python_blocks(DATA_PAGE)
        assert len(blocks) == 2
        names = {}
        for block in blocks:
            exec(compile(block, "data.md", "exec"), names)
        assert np.asarray(names["images"]).shape[1:] == (8, 8, 3)
        assert names["z"].shape[1:] == (4,) and names["z"].shape[0] == len(names["table"])
        assert os.listdir(tmp_path) == ["codes"]

    def test_python_code_of_the_export_page_runs(self, exported, tmp_path, monkeypatch):
        (tmp_path / "exported").symlink_to(exported)
        save_images(tmp_path, dict(zip(("a.jpg", "b.jpg"), random_images(2, 48), strict=True)))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        images = random_images(2)
        blocks = python_blocks(EXPORT)
        assert len(blocks) == 3
        for block in blocks:
            names = {"images": images}
            exec(compile(block, "export.md", "exec"), names)
            if "same" in names:
                np.testing.assert_array_equal(names["same"], images)
                assert np.shape(names["ab"]) == (1, 8, 8, 3)
        # The last block uses the client.
        sys.modules.pop("client")
        assert names["small"].shape == (8, 8, 3) and names["ab"].shape == names["ba"].shape == (48, 48, 3)
        np.testing.assert_array_equal(names["small"], names["model"].crop_and_resize(names["a"]))
        assert names["new"].shape == (8, 8, 8, 3)

    @pytest.mark.parametrize("page", ["exactness", "training", "understanding"])
    def test_python_code_of_a_page_runs(self, page, tmp_path, monkeypatch, eager):
        """The blocks of a page share variables: those that its text takes for granted, and those of earlier blocks."""
        monkeypatch.chdir(tmp_path)
        photographs = random_images(2, size=70)
        save_images(tmp_path, {"r.jpg": photographs[0], "photographs/a.jpg": photographs[1]})
        names = {"tf": tf, "tfdecouple": tfdecouple, "photograph": photographs[0], "reference": photographs[1]}
        if page == "training":
            model = tfdecouple.DecoupledModel(dataclasses.replace(TINY, image_shape=(32, 32, 3), classes=4))
            names |= {"images": random_images(4, size=32), "labels": np.arange(4), "model": model}
            model.initialize(names["images"])
        else:
            model = tfdecouple.load_model("photographs")
            names |= {"images": random_images(2, size=64), "model": model}
        blocks = python_blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
        assert blocks
        for block in blocks:
            exec(compile(call_functions(textwrap.dedent(block)), f"{page}.md", "exec"), names)
