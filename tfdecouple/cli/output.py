"""Where pictures go, and what is said of them."""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import tempfile
from typing import Any

from PIL import Image

from tfdecouple.cli.run_images import OpenedRun
from tfdecouple.errors import UserError
from tfdecouple.runs.run_folder import is_folder
from tfdecouple.storage.files import write_bytes, write_json

PICTURES = "pictures"


def results_folder(run: str, out: pathlib.Path | None, name: str) -> pathlib.Path:
    """Returns the folder for what is made of a run, unless the user names one: in the run's own folder.

    What is made of weights that were trained already goes into the working folder, and where that may not be written
    into a new one of the system's for temporary files.

    Args:
        run: as the user named it.
        out: the folder that the user names, or None.
        name: of the folder otherwise, such as "pictures".
    """
    if out is not None:
        return out
    if is_folder(run):
        return pathlib.Path(run) / name
    if os.access(name if os.path.isdir(name) else os.curdir, os.W_OK):
        return pathlib.Path(name)
    return pathlib.Path(tempfile.mkdtemp(prefix="tfdecouple-")) / name


def save_picture(
    opened: OpenedRun, options: argparse.Namespace, name: str, picture: Image.Image | bytes, says: str, **facts: Any
) -> None:
    """Writes and prints as `save`; the file also says which command made the picture, and of which weights.

    Args:
        opened: the run.
        options: of the command.
        name: as for `save`.
        picture: as for `save`.
        says: as for `save`.
        **facts: for the JSON file, in its order.
    """
    save(options.run, options.out, name, picture, {"command": options.command, **opened.facts(), **facts}, says)


def save(
    run: str, out: pathlib.Path | None, name: str, picture: Image.Image | bytes, facts: dict[str, Any], says: str
) -> None:
    """Writes a picture and the facts beside it, and prints where they are.

    Args:
        run: as the user named it.
        out: where to; None for `results_folder`'s `pictures`.
        name: of the files, without an ending.
        picture: the picture, or a PNG file of it.
        facts: for the JSON file.
        says: one line on what came out.

    Raises:
        UserError: where they cannot be written.
    """
    path = results_folder(run, out, PICTURES) / f"{name}.png"
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        picture = buffer.getvalue()
    try:
        write_bytes(path, picture)
        write_json(path.with_suffix(".json"), facts)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another folder with --out") from error
    print(f"{path}: {says}", flush=True)
