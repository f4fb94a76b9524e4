"""The web page: a static folder with the run's own ONNX files, that any file server can serve."""

from __future__ import annotations

import dataclasses
import importlib.metadata
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

from tfdecouple.config import DataConfig
from tfdecouple.data.image_file import read_image
from tfdecouple.errors import UserError

PAGE = pathlib.Path(__file__).parents[1] / "page"
CONFIG = "model/config.json"
RUNTIME_VERSION = "1.30.0"


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture that the page begins with, of scikit-image: one that anybody may publish.

    Attributes:
        file: in the folder of scikit-image's pictures.
        title: what the page calls it.
        author: as scikit-image states it.
        licence: likewise.
    """

    file: str
    title: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        """As `data.photographs` names it, where it is one of them."""
        return self.file.partition(".")[0]

    @property
    def picture(self) -> str:
        """The file in the page's folder."""
        return f"model/{self.name}.png"


# The first two are the pair that the page begins with.
EXAMPLES = (
    Example("coffee.png", "Coffee", "Rachel Michetti", "CC0"),
    Example("chelsea.png", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    Example("astronaut.png", "Astronaut", "NASA", "public domain"),
    Example("rocket.jpg", "Rocket", "SpaceX", "public domain"),
    Example("retina.jpg", "Retina", "Mikael Häggström", "CC0"),
    Example("hubble_deep_field.jpg", "Deep field", "NASA", "public domain"),
)
# What the page loads of the package onnxruntime-web: the build for the processor; and that for graphics cards, too,
# where there is one and the processor is slow.
# The names of the first are those under which the page's worker tells of their progress.
_PROCESSOR = {
    "runtimeEntry": "ort.wasm.min.mjs",
    "runtimeGlue": "ort-wasm-simd-threaded.mjs",
    "runtime": "ort-wasm-simd-threaded.wasm",
}
_CARD = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
RUNTIME_FILES = (*_PROCESSOR.values(), *_CARD)


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
    for name, pixels in example_images(about["image_size"]).items():
        Image.fromarray(pixels).save(folder / name)
    (folder / CONFIG).write_text(
        json.dumps(page_config(onnx, runtime, about, models), indent=2) + "\n", encoding="utf-8"
    )


def page_config(
    onnx: pathlib.Path, runtime: pathlib.Path, about: Mapping[str, Any], models: Iterable[str]
) -> dict[str, Any]:
    """Returns what the page is told: what the model is, the sizes of its files, where the project is."""
    sizes = {name: (onnx / f"{name}.onnx").stat().st_size for name in models}
    sizes |= {part: (runtime / name).stat().st_size for part, name in _PROCESSOR.items()}
    return {**about, "sizes": sizes, "project": project_url()}


def project_url() -> str | None:
    """Returns the address of this project, where the installed package states one."""
    stated = importlib.metadata.metadata("tfdecouple")
    links = [entry.partition(",") for entry in stated.get_all("Project-URL") or ()]
    pages = stated.get_all("Home-page") or [
        address.strip() for label, _, address in links if label.lower() in ("homepage", "source", "repository")
    ]
    return pages[0] if pages else None


def example_images(size: int) -> dict[str, np.ndarray]:
    """Returns the pictures that the page begins with, uint8 `[size, size, 3]`, by their names in its folder."""
    photographs = pathlib.Path(skimage.__file__).parent / "data"
    return {example.picture: read_image(str(photographs / example.file), size, 0) for example in EXAMPLES}


def examples_for(data: DataConfig | None) -> list[dict[str, Any]]:
    """Returns what the page says of its pictures: file, title, author, licence, and whether the model learnt from them.

    Args:
        data: what the model was trained on; None where nobody knows. Of other data than the embedded photographs nobody
            has looked whether these pictures are among them.
    """
    learnt = data.photographs if data is not None and data.source == "photographs" else None
    return [
        {
            "file": example.picture,
            "title": example.title,
            "author": example.author,
            "licence": example.licence,
            "seen": None if learnt is None else example.name in learnt,
        }
        for example in EXAMPLES
    ]


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
