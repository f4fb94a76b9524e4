"""The base class of all loggers, and what of a row is a number."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

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

    def open(self, step: int) -> None:
        """Starts a log, or resumes it at a step of the run; rows of later steps will come again."""

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
