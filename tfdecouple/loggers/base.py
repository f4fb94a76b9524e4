"""The base class of all loggers, and functions that several loggers share."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfdecouple.storage.files import write_text

Row = Mapping[str, Any]


class Logger:
    """The base class of loggers, which receive the rows and pictures of a run's log; its methods do nothing.

    Args:
        folder: the run folder; nothing is touched before `open`.
        config: the `Config` of the run.

    Attributes:
        name: name of the logger in `training.loggers`.
        package: name of the package that the logger needs, which an extra installs; "" for none.
        is_foreign: whether the logger calls a client of another project, whose failure must not end a run.
    """

    name = ""
    package = ""
    is_foreign = False

    def __init__(self, folder: pathlib.Path, config: Any):
        self.folder = folder
        self.config = config

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Starts a log, or resumes it at a step of the run.

        Args:
            step: the step of the run.
            rows: the rows of the log up to the step.
        """

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row of metrics; the arguments are those of `MetricsLog.write`."""

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds a picture, a PNG file."""

    def flush(self) -> None:
        """Writes out all buffered rows and pictures."""

    def close(self) -> None:
        """Closes the log."""


def select_numbers(kind: str, values: Row) -> dict[str, float]:
    """Returns the metrics of a row that are numbers, by names such as "train/bits_per_dim"."""
    return {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}


def flat_options(config: Any) -> dict[str, Any]:
    """Returns all options of a `Config` by their dotted names; lists and null become JSON texts."""
    options = config.options().items()
    return {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value) for name, value in options
    }


def read_or_create_id(path: pathlib.Path, make_id: Callable[[], str]) -> str:
    """Returns the id in a file of the run folder; if the file is absent, a new id is written to it first."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_text(path, make_id())
    return path.read_text(encoding="utf-8").strip()
