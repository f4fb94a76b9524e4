"""What a place is where rows of a run's log go, and what all of them need."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tfdecouple.storage.files import write_text

Row = Mapping[str, Any]


class Options(Protocol):
    """What a logger may ask of a run's `Config`."""

    @property
    def name(self) -> str:
        """The name of the run."""

    def options(self) -> Mapping[str, Any]:
        """Returns the values of all options by their dotted names."""

    def to_dict(self) -> dict[str, Any]:
        """Returns all options as plain values for JSON."""


class Logger:
    """One place where rows of the log go.

    Subclasses implement what they can show.

    Args:
        folder: the run folder; nothing is touched before `open`.
        config: of the run.

    Attributes:
        name: in `training.loggers`.
        package: what it needs that an extra brings; "" for nothing.
        is_foreign: whether it belongs to somebody else's program, whose failure must not end a run.
    """

    name = ""
    package = ""
    is_foreign = False

    def __init__(self, folder: pathlib.Path, config: Options):
        self.folder = folder
        self.config = config

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Begins, or goes on from a step.

        Args:
            step: of the run.
            rows: of the log until then.
        """

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row: see `MetricsLog.write`."""

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Shows a PNG file."""

    def flush(self) -> None:
        """Writes out what is held."""

    def close(self) -> None:
        """Ends."""


def numbers(kind: str, values: Row) -> dict[str, float]:
    """Returns the figures of a row that are numbers, by their names in a place of all kinds."""
    return {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}


def parameters(config: Options) -> dict[str, Any]:
    """Returns all options by their dotted names, as text where a value is no single one."""
    single = bool | int | float | str
    options = config.options().items()
    return {name: value if isinstance(value, single) else json.dumps(value) for name, value in options}


def remembered(path: pathlib.Path, make: Callable[[], str]) -> str:
    """Returns what a file of the run folder remembers, or makes it and writes it down."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_text(path, make())
    return path.read_text(encoding="utf-8").strip()
