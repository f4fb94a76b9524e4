"""The web page: a static folder with the run's own ONNX files, that any file server can serve."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data.sample_images import PHOTOGRAPHS, Photograph
from tfdecouple.errors import UserError
from tfdecouple.visualization.full_size import read_photograph

PAGE = pathlib.Path(__file__).parents[1] / "page"
CONFIG = "model/config.json"
RUNTIME_VERSION = "1.30.0"
# The files that the page loads of the package onnxruntime-web: for the processor, and for graphics cards.
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
GPU_FILES = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")

# Pixels along the longer side of an example.
EXAMPLE_SIDE = 640


def _photograph(name: str, author: str, licence: str) -> Photograph:
    return Photograph(name, "scikit-image", f"skimage/data/{name}.jpg", author, licence)


# The pictures that the page offers, by title: anybody may publish them. It begins with the first two.
EXAMPLES = {
    "Chelsea the cat": PHOTOGRAPHS["chelsea"],
    "Astronaut": PHOTOGRAPHS["astronaut"],
    "Coffee": PHOTOGRAPHS["coffee"],
    "Rocket": PHOTOGRAPHS["rocket"],
    "Retina": _photograph("retina", "Mikael Häggström", "CC0"),
    "Deep field": _photograph("hubble_deep_field", "NASA", "public domain"),
}


def build_page(
    folder: pathlib.Path, onnx: pathlib.Path, runtime: pathlib.Path, about: Mapping[str, Any], models: Iterable[str]
) -> None:
    """Writes the page.

    Args:
        folder: where to; made.
        onnx: folder of the ONNX files.
        runtime: folder of onnxruntime-web's files, from `find_runtime`.
        about: name, shape of the images and more of the model, for the page; `web_gpu` of it asks for the runtime for
            graphics cards, too.
        models: names of the ONNX files that the page runs (`signatures.page_names`).
    """
    shutil.copytree(PAGE, folder)
    sources = {f"model/{name}.onnx": onnx / f"{name}.onnx" for name in models}
    sources |= {f"runtime/{name}": runtime / name for name in RUNTIME_FILES}
    sizes = {path: source.stat().st_size for path, source in sources.items()}
    if about["web_gpu"]:
        sources |= {f"runtime/{name}": runtime / name for name in GPU_FILES}
    for path, source in sources.items():
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / path)
    for path, content in example_images().items():
        (folder / path).write_bytes(content)
    config = {**about, "sizes": sizes, "project": project_url()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def folder_bytes(folder: pathlib.Path) -> int:
    """Returns the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def project_url() -> str | None:
    """Returns the address of this project, where the installed package states one."""
    stated = importlib.metadata.metadata("tfdecouple")
    links = [entry.partition(",") for entry in stated.get_all("Project-URL") or ()]
    pages = stated.get_all("Home-page") or [
        address.strip() for label, _, address in links if label.lower() in ("homepage", "source", "repository")
    ]
    return pages[0] if pages else None


def example_images() -> dict[str, bytes]:
    """Returns the example photographs as JPEG files, by their paths in the page's folder."""
    files = {}
    for one in EXAMPLES.values():
        path = importlib.metadata.distribution(one.package).locate_file(one.path)
        buffer = io.BytesIO()
        Image.fromarray(read_photograph(str(path), 3, EXAMPLE_SIDE).pixels).save(buffer, "JPEG", quality=90)
        files[f"model/{one.name}.jpg"] = buffer.getvalue()
    return files


def examples_for(data: DataConfig | None) -> list[dict[str, Any]]:
    """Returns file, title, author and licence of each example, and whether the model was trained on it.

    Args:
        data: what the model was trained on. None and other data than the embedded photographs leave unknown whether
            an example was among them.
    """
    seen = data.photographs if data is not None and data.source == "photographs" else None
    return [
        {
            "file": f"model/{one.name}.jpg",
            "title": title,
            "author": one.author,
            "licence": one.licence,
            "seen": None if seen is None else one.name in seen,
        }
        for title, one in EXAMPLES.items()
    ]


def find_runtime(given: pathlib.Path | None, scratch: pathlib.Path, web_gpu: bool) -> pathlib.Path:
    """Returns a folder with the files of onnxruntime-web that the page needs.

    Args:
        given: where the user says that they are; None lets npm fetch them.
        scratch: where npm may write.
        web_gpu: whether those for graphics cards are needed, too.

    Raises:
        UserError: where they cannot be had, saying how to get them.
    """
    needed = RUNTIME_FILES + (GPU_FILES if web_gpu else ())
    if given is not None:
        for folder in (given, given / "dist", given / "node_modules" / "onnxruntime-web" / "dist"):
            if all((folder / name).is_file() for name in needed):
                return folder
        raise UserError(
            f"{given} does not hold all of {', '.join(needed)}; give the folder of the npm package onnxruntime-web"
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
    return find_runtime(scratch, scratch, web_gpu)
