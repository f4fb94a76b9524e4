"""How often a run's test images were looked at, counted in its folder: who chooses by them measures no new images."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfdecouple.errors import RunError

if TYPE_CHECKING:
    from tfdecouple.data.source import Source

LOOKS = "looks.json"


def place_of_looks(run: str | pathlib.Path, otherwise: pathlib.Path) -> pathlib.Path:
    """Returns the folder that counts the looks at a run's test images: RUN/evaluation, wherever results go.

    Args:
        run: see `run_folder.find_run`.
        otherwise: the folder for weights that are no run folder, or where nothing may be written into that.
    """
    from tfdecouple.run_folder import is_folder

    own = pathlib.Path(run) / "evaluation"
    return own if is_folder(run) and _may_hold(own) else otherwise


def count_look(place: pathlib.Path, source: Source) -> int:
    """Counts a look at the test images of a data set, and returns how many there were with it.

    Raises:
        RunError: where the count cannot be read or written.
    """
    from tfdecouple.storage.files import write_json
    from tfdecouple.storage.locks import locked

    path = place / LOOKS
    key = f"{source.name}: {source.title}, test ({source.descriptions['test']})"
    with writing_to(place, advice=""):
        place.mkdir(parents=True, exist_ok=True)
        # Two evaluations at a time must not count as one.
        with locked(place / ".looks.lock", wait=True):
            try:
                looks = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                count = int(looks.get(key, 0)) + 1
            except (ValueError, TypeError, AttributeError) as error:
                raise RunError(
                    f"{path} is no count of looks at the test images ({error}); move it away to count anew"
                ) from error
            write_json(path, {**looks, key: count})
    return count


def _may_hold(folder: pathlib.Path) -> bool:
    """Returns whether files may be written into a folder, or it may be made; runs of others may be read-only."""
    return os.access(folder if folder.exists() else folder.parent, os.W_OK)


@contextlib.contextmanager
def writing_to(folder: pathlib.Path, advice: str = "; choose another --out") -> Iterator[None]:
    """Turns what the system says against writing into one line, which ends with the advice.

    Raises:
        RunError: where a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to the folder {folder}: {error.strerror or error}{advice}") from error
