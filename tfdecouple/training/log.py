"""The log of a run: metrics.jsonl, and the loggers beside it."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfdecouple.errors import one_line
from tfdecouple.loggers import Logger
from tfdecouple.storage.files import parse_json, write_text

# What the best weights are chosen by, which every row of an evaluation has.
_MEASURED = "bits_per_dim"
# As which figures that are not finite are written: JSON has no NaN.
_NOT_FINITE = ("nan", "inf", "-inf")


class MetricsLog:
    """Writes rows of figures to `metrics.jsonl`, and hands them and pictures to loggers.

    A logger of somebody else's that fails is left out from then on, with a line that says so: it must not end a run.

    Args:
        folder: the run folder; nothing is touched before `open`.
        loggers: where else they go.
        say: prints a line.
    """

    def __init__(self, folder: pathlib.Path, loggers: Sequence[Logger] = (), say: Callable[[str], None] = print):
        self._path = folder / "metrics.jsonl"
        self._loggers = list(loggers)
        self._say = say

    def open(self, step: int, is_last: bool = False) -> int:
        """Goes on with the log from a step of the run, or begins it.

        Rows of what comes after the step, left by a program that ended before its next checkpoint, are removed: the
        run will write them again. Those of the test images before it stay: they are how often a run that had ended and
        went on has looked at them.

        Args:
            step: that was reached.
            is_last: whether the run takes no further step, so that it measures the test images of this one again.

        Returns:
            How many rows were found that are none of ours, and removed, too.

        Raises:
            OSError: where the disk is full.
        """
        damaged, kept = 0, []
        if self._path.exists():
            rows, damaged = _read(self._path)
            measured_again = (step, "test") if is_last else None
            kept = [row for row in rows if row["step"] <= step and (row["step"], row["kind"]) != measured_again]
            write_text(self._path, "".join(_line(row) for row in kept))
        self._tell(lambda logger: logger.open(step, kept))
        return damaged

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row.

        Args:
            kind: "train", "validation" or "test".
            step: steps taken.
            values: figures by name.

        Raises:
            OSError: where the disk is full.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, "kind": kind, **values}))
        self._tell(lambda logger: logger.write(kind, step, values))

    def validated(self, step: int) -> float | None:
        """Returns the bits/dim of the validation images at a step; None where there is no row of it."""
        found = [row for row in read_metrics(self._path) if (row["kind"], row["step"]) == ("validation", step)]
        return float(found[-1][_MEASURED]) if found else None

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Shows a PNG file.

        Raises:
            OSError: where the disk is full.
        """
        self._tell(lambda logger: logger.write_picture(name, step, path))

    def flush(self) -> None:
        """Writes out what loggers still hold.

        Raises:
            OSError: where the disk is full.
        """
        self._tell(lambda logger: logger.flush())

    def close(self) -> None:
        """Ends the log.

        Raises:
            OSError: where the disk is full.
        """
        self._tell(lambda logger: logger.close())

    def _tell(self, do: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                do(logger)
            # Whatever somebody else's client raises.
            except Exception as error:
                if not logger.is_foreign:
                    raise
                self._loggers.remove(logger)
                self._say(f"{logger.name} failed and gets no more rows: {one_line(error)}")


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`; what is no row, such as a last one cut short by a crash, is left out."""
    return _read(path)[0] if path.is_file() else []


def _read(path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the rows, and how many of the other lines no crash explains."""
    *lines, last = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in [*lines, last]]
    return [row for row in rows if row], rows[:-1].count(None)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line.decode("utf-8"))
    except ValueError:
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str)
    if is_row and row["kind"] == "validation":
        is_row = type(row.get(_MEASURED)) in (int, float) or row.get(_MEASURED) in _NOT_FINITE
    return row if is_row else None


def _line(row: Mapping[str, Any]) -> str:
    safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(safe) + "\n"
