from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import onnxruntime
import pytest
from helpers.exporting import read_vectors
from helpers.models import random_images, strengthen_z
from helpers.places import ROOT, TESTS, read_output
from helpers.program_inputs import SIZE, make_png_header, write_picture_files
from helpers.runs import write_run
from helpers.variants import OF_CLASSES, fresh

from export.formats.web import PAGE, RUNTIME_VERSION, describe_examples, describe_model, make_example_files
from export.pipeline import ExportConfig, export
from export.provenance import open_run
from tfdecouple.config import DataConfig
from tfdecouple.data.image_file import read_image
from tfdecouple.runs.latent_directions import CLASSIFIER, MEANS, Direction, Directions
from tfdecouple.runs.opened_run import hash_weights, load_model
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.visualization.guided_filter import change_at_full_size, shrink_photograph

EXAMPLE = ROOT / "examples" / "web"
CHECKS = TESTS / "helpers" / "page_checks.mjs"
NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_example_and_the_exporter_name_the_same_runtime():
    package = json.loads((EXAMPLE / "package.json").read_text(encoding="utf-8"))
    pinned = {**package.get("dependencies", {}), **package.get("devDependencies", {})}
    assert pinned["onnxruntime-web"] == RUNTIME_VERSION


def test_temperatures_of_the_slider_are_verified(exported):
    (most,) = re.findall(r'id="temperature" [^>]*max="([^"]+)"', (PAGE / "index.html").read_text(encoding="utf-8"))
    assert read_vectors(exported)["in/sample/temperature"].max() == np.float32(most)


@NEEDS_NODE
@pytest.mark.parametrize("check", re.findall(r"^  async (\w+)\(", CHECKS.read_text(encoding="utf-8"), re.MULTILINE))
def test_the_modules_of_the_page_do_without_a_browser_what_they_should(check, tmp_path):
    folder = shutil.copytree(ROOT / "export" / "page", tmp_path / "page")
    (folder / "package.json").write_text('{"type": "module"}')
    read_output("node", CHECKS, folder, check)


@NEEDS_NODE
def test_the_page_changes_photographs_as_python_does(tmp_path):
    shutil.copyfile(ROOT / "export" / "page" / "guided_filter.js", tmp_path / "guided_filter.js")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(
        'import { readFileSync, writeFileSync } from "node:fs";\n'
        'import { applyColourMaps, fitColourMaps, shrinkToSquare } from "./guided_filter.js";\n'
        "const [width, height, size] = process.argv.slice(2).map(Number);\n"
        'const rgba = new Uint8ClampedArray(readFileSync("photograph"));\n'
        "const before = shrinkToSquare(rgba, width, height, size);\n"
        'writeFileSync("before", before);\n'
        'const maps = fitColourMaps(before, readFileSync("after"), size);\n'
        "const result = new Uint8ClampedArray(rgba.length);\n"
        "applyColourMaps(maps, size, { width, height, rgba }, result, 0, height);\n"
        'writeFileSync("result", result);\n'
    )
    rng = np.random.default_rng(0)
    for height, width, size in ((70, 45, 16), (33, 90, 8)):
        rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
        after = rng.integers(0, 256, (size, size, 3), np.uint8)
        rgba.tofile(tmp_path / "photograph")
        after.tofile(tmp_path / "after")
        read_output("node", "run.js", width, height, size, folder=tmp_path)
        before = shrink_photograph(rgba[..., :3], size, size)
        np.testing.assert_array_equal(np.fromfile(tmp_path / "before", np.uint8).reshape(before.shape), before)
        result = np.fromfile(tmp_path / "result", np.uint8).reshape(rgba.shape)
        np.testing.assert_array_equal(result[..., 3], rgba[..., 3])
        expected = change_at_full_size(rgba[..., :3], before, after)
        assert np.abs(result[..., :3].astype(int) - expected).max() <= 1


@pytest.fixture(scope="module")
def tools(npm_example):
    """The folder of the browser check `check.mjs`, with the packages that npm installs for it."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    return npm_example("web")


@pytest.fixture(scope="module")
def steered_run(tiny_run, tmp_path_factory):
    """A copy of the tiny run with two directions in z, each by both methods; the page shows the difference of means."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("steered") / "tiny")
    rng = np.random.default_rng(0)
    pairs = itertools.product(("<b>bright", "dark"), (MEANS, CLASSIFIER))
    found = (Direction(*pair, rng.standard_normal(4).astype(np.float32), {"accuracy": 0.75}) for pair in pairs)
    Directions(hash_weights(load_model(run)), {}, tuple(found)).write(run)
    return run


@pytest.mark.slow
def test_the_page_of_a_model_of_7_bits_whose_prior_knows_labels_works_in_a_browser(tools, tmp_path):
    config = dataclasses.replace(OF_CLASSES["prior-classes"], class_probabilities=(3, 1, 2), n_bits=7)
    model = strengthen_z(fresh(config))
    runtime = tools / "node_modules" / "onnxruntime-web"
    run = write_run(tmp_path / "run", model)
    export(ExportConfig(run=run, to=tmp_path / "to", formats=("web",), web_runtime=runtime), report=lambda text: None)
    read_output("node", "check.mjs", tmp_path / "to" / "web", "--browser", CHROMIUM, folder=tools)


def test_directions_of_the_same_weights_alone_come_to_the_page(steered_run, tmp_path):
    _, origin = open_run(steered_run)
    found = describe_model(origin)["directions"]
    assert [direction["name"] for direction in found] == ["<b>bright", "dark"]
    assert found[0]["description"].startswith("tells 75.0%")
    kept = Directions.read(steered_run, 4)
    assert found[1]["vector"] == kept["dark"].vector.tolist()
    other = shutil.copytree(steered_run, tmp_path / "other")
    Directions("0" * 64, {}, tuple(kept)).write(other)
    _, origin = open_run(other)
    assert "directions" not in describe_model(origin) and "other weights" in origin.omissions["directions.json"]


def test_the_page_knows_which_examples_the_model_has_seen():
    found = {example["file"]: example for example in describe_examples(RunFolder("photographs").read_config().data)}
    assert set(found) == set(make_example_files())
    assert found["model/coffee.jpg"]["seen"] is True and found["model/retina.jpg"]["seen"] is False
    assert found["model/retina.jpg"]["licence"] == "CC0"
    # "seen" is None if the data are other images or unknown, since nobody knows whether they had the example.
    for data in (DataConfig(source="folder:."), DataConfig(source="tfds:mnist"), None):
        assert {example["seen"] for example in describe_examples(data)} == {None}


@pytest.mark.slow
def test_the_page_works_in_a_browser_and_decodes_what_python_decodes(steered_run, tools, tmp_path):
    page, runtime = tmp_path / "page", tools / "node_modules" / "onnxruntime-web"
    export(ExportConfig(run=steered_run, to=page, formats=("onnx", "web"), web_runtime=runtime), report=str)
    a, b = random_images(16, seed=1), random_images(16, seed=2)
    encoded = {name: base64.b64encode(images.tobytes()).decode() for name, images in (("a", a), ("b", b))}
    (tmp_path / "inputs.json").write_text(json.dumps(encoded))
    report = tmp_path / "report.json"
    (tmp_path / "files").mkdir()
    files = write_picture_files(tmp_path / "files")
    (tmp_path / "files" / "bomb.png").write_bytes(make_png_header(20_000, 20_000))
    command = ["node", "check.mjs", str(page / "web"), "--json", str(report), "--pairs", str(tmp_path)]
    command += ["--read", str(tmp_path / "files"), "--browser", str(CHROMIUM)]
    read_output(*command, folder=tools)
    found = json.loads(report.read_text())
    assert "20000 x 20000 pixels" in found["read"].pop("bomb.png")
    assert set(found["read"]) == set(files)
    for name, path in files.items():
        right = read_image(str(path), (SIZE, SIZE, 3), 0)
        read = np.frombuffer(base64.b64decode(found["read"][name]), np.uint8)
        np.testing.assert_array_equal(read.reshape(right.shape), right, name)
    pairs = found["pairs"]
    encoder, decoder = (onnxruntime.InferenceSession(str(page / "onnx" / f"{n}.onnx")) for n in ("encoder", "decoder"))
    (z_a, v_a), (z_b, v_b) = (encoder.run(["z", "v"], {"images": images}) for images in (a, b))
    for name, z, v in (("ab", z_a, v_b), ("ba", z_b, v_a)):
        (right,) = decoder.run(None, {"z": z, "v": v})
        found = np.frombuffer(base64.b64decode(pairs[name]), np.uint8).reshape(right.shape)
        # Runtimes round differently, so a value halfway between two integers may differ by 1.
        change = np.abs(found.astype(int) - right)
        assert change.max() <= 1 and (change > 0).mean() < 1e-3
