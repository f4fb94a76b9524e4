"""The web page: a static folder with the run's own ONNX files, that any file server can serve."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import skimage
from PIL import Image

from tfdecouple.data.image_file import read_image
from tfdecouple.errors import UserError

PAGE = pathlib.Path(__file__).parents[1] / "page"
CONFIG = "model/config.json"
RUNTIME_VERSION = "1.30.0"
# Photographs of scikit-image that anybody may publish (public domain or CC0).
_DEMO = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
# What the page loads of the package onnxruntime-web: the build for the processor, without WebGPU.
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build_page(
    folder: pathlib.Path, onnx: pathlib.Path, runtime: pathlib.Path, about: Mapping[str, Any], models: Iterable[str]
) -> None:
    """Writes the page.

    Args:
        folder: where to; made.
        onnx: folder of the ONNX files.
        runtime: folder of onnxruntime-web's files, from `find_runtime`.
        about: name, image size and more of the model, for the page.
        models: names of the ONNX files that the page runs (`signatures.page_names`).
    """
    shutil.copytree(PAGE, folder)
    (folder / "model").mkdir()
    (folder / "runtime").mkdir()
    models = list(models)
    for name in models:
        shutil.copyfile(onnx / f"{name}.onnx", folder / "model" / f"{name}.onnx")
    for name in RUNTIME_FILES:
        shutil.copyfile(runtime / name, folder / "runtime" / name)
    for name, pixels in demo_images(about["image_size"]).items():
        Image.fromarray(pixels).save(folder / name)
    (folder / CONFIG).write_text(
        json.dumps(page_config(onnx, runtime, about, models), indent=2) + "\n", encoding="utf-8"
    )


def page_config(
    onnx: pathlib.Path, runtime: pathlib.Path, about: Mapping[str, Any], models: Iterable[str]
) -> dict[str, Any]:
    """Returns what the page is told of the model: what it is, the sizes of its files, the pictures to begin with."""
    sizes = {name: (onnx / f"{name}.onnx").stat().st_size for name in models}
    sizes["runtime"] = sum((runtime / name).stat().st_size for name in RUNTIME_FILES)
    return {**about, "sizes": sizes, "demo_images": [f"model/{name.partition('.')[0]}.png" for name in _DEMO]}


def demo_images(size: int) -> dict[str, np.ndarray]:
    """Returns the pictures that the page begins with, uint8 `[size, size, 3]`, by their names in its folder."""
    photographs = pathlib.Path(skimage.__file__).parent / "data"
    return {f"model/{name.partition('.')[0]}.png": read_image(str(photographs / name), size, 0) for name in _DEMO}


def find_runtime(given: pathlib.Path | None, scratch: pathlib.Path) -> pathlib.Path:
    """Returns a folder with the files of onnxruntime-web that the page needs.

    Args:
        given: where the user says that they are; None lets npm fetch them.
        scratch: where npm may write.

    Raises:
        UserError: where they cannot be had, saying how to get them.
    """
    if given is not None:
        for folder in (given, given / "dist", given / "node_modules" / "onnxruntime-web" / "dist"):
            if all((folder / name).is_file() for name in RUNTIME_FILES):
                return folder
        raise UserError(
            f"{given} does not hold all of {', '.join(RUNTIME_FILES)}; "
            "give the folder of the npm package onnxruntime-web"
        )
    package = f"onnxruntime-web@{RUNTIME_VERSION}"
    advice = f"install Node.js, or fetch the npm package {package} yourself and pass its folder with --web-runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the web page needs {package}, and there is no npm here; {advice}")
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        result = subprocess.run(
            [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(scratch), package],
            env={**os.environ, "npm_config_cache": cache},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise UserError(f"npm cannot fetch {package} ({lines[0][:200] if lines else 'no message'}); {advice}")
    return find_runtime(scratch, scratch)
