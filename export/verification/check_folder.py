"""What the gate checks of files that are no models: the web page, the cards, the settings of a server.

Each is compared with what it was made from, as it lies on the disk.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorflow_serving.config import model_server_config_pb2

from export.card import card_text
from export.formats.saved_model import write_serving_files
from export.formats.web import CONFIG, PAGE, RUNTIME_FILES, example_images, page_config
from export.manifest import file_digest
from tfdecouple.errors import one_line


def page_problems(
    page: pathlib.Path, onnx: pathlib.Path, runtime: pathlib.Path, about: Mapping[str, Any], models: Iterable[str]
) -> Iterator[str]:
    """Yields what is wrong with a web page.

    Args:
        page: its folder.
        onnx: folder of the ONNX files, which have passed their check.
        runtime: folder of onnxruntime-web's files.
        about: of the model, as `export.formats.web.build_page` took it.
        models: of its models, likewise.
    """
    models = list(models)
    sources = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.is_file()}
    sources |= {f"model/{name}.onnx": onnx / f"{name}.onnx" for name in models}
    sources |= {f"runtime/{name}": runtime / name for name in RUNTIME_FILES}
    pictures = example_images(about["image_size"])
    found = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    expected = {*sources, *pictures, CONFIG}
    yield from (f"web/{name} is missing" for name in sorted(expected - found))
    yield from (f"web/{name} is not of the page" for name in sorted(found - expected))
    for name, source in sources.items():
        if name in found and file_digest(page / name) != file_digest(source):
            yield f"web/{name} differs from what it was copied from"
    for name, pixels in pictures.items():
        if name in found and not _same_picture(page / name, pixels):
            yield f"web/{name} is not the picture that it should be"
    if CONFIG in found and _json(page / CONFIG) != page_config(onnx, runtime, about, models):
        yield f"web/{CONFIG} does not say what the model is"


def _same_picture(path: pathlib.Path, pixels: np.ndarray) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return np.array_equal(np.asarray(picture.convert("RGB")), pixels)
    except (OSError, SyntaxError, ValueError):
        return False


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        return None


def card_problems(path: pathlib.Path, card: Mapping[str, Any], text: pathlib.Path | None = None) -> Iterator[str]:
    """Yields what is wrong with a model card, given its values: in its JSON file, and in the one to be read."""
    values = json.loads(json.dumps(card))
    if _json(path) != values:
        yield f"{path.name} is not the card of this export"
    if text is not None and text.read_text(encoding="utf-8") != card_text(values):
        yield f"{text.name} does not say what {path.name} says"


def _models_served(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Returns name and folder of each model that models.config serves.

    Raises:
        OSError, text_format.ParseError: where it cannot be read.
    """
    text = (folder / "models.config").read_text(encoding="utf-8", errors="replace")
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return [(model.name, model.base_path.rpartition("/")[2]) for model in config.model_config_list.config]


def served_others(folder: pathlib.Path, name: str) -> str:
    """Returns the names of the models that a folder's models.config serves where `name` is none; "" where it is one."""
    try:
        names = [served for served, _ in _models_served(folder)]
    except (OSError, text_format.ParseError):
        return "what a server cannot read"
    return "" if name in names else ", ".join(names) or "nothing"


def serving_problems(folder: pathlib.Path, name: str) -> Iterator[str]:
    """Yields what is wrong with the settings of a server, given the name of the model that they are for."""
    try:
        models = _models_served(folder)
    except (OSError, text_format.ParseError) as error:
        yield f"models.config cannot be read by a server: {one_line(error, first=True)}"
        return
    if models != [(name, name)]:
        yield f"models.config serves {models}; this model is {name}"
    with tempfile.TemporaryDirectory() as scratch:
        write_serving_files(pathlib.Path(scratch), name)
        for right in sorted(pathlib.Path(scratch).iterdir()):
            if not (folder / right.name).is_file() or (folder / right.name).read_bytes() != right.read_bytes():
                yield f"{right.name} is not what is written for the model {name}"
