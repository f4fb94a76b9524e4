"""The log of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdecouple.errors import one_line
from tfdecouple.storage.files import parse_json, write_text


class MetricsLog:
    """Writes rows of figures to `metrics.jsonl` and to TensorBoard.

    Args:
        folder: the run folder; nothing is touched before `open`.
    """

    def __init__(self, folder: pathlib.Path):
        self._path = folder / "metrics.jsonl"
        self._tensorboard = folder / "tensorboard"
        self._writer = tf.summary.create_noop_writer()

    def open(self, step: int) -> int:
        """Goes on with the log from a step of the run, or begins it.

        Rows of what comes after the step, left by a program that ended before its next checkpoint, are removed: the
        run will write them again.

        Returns:
            How many rows were found that are none of ours, and removed, too.

        Raises:
            OSError: where the disk is full.
        """
        damaged = 0
        with _os_errors():
            if self._path.exists():
                # The test row is written after the last checkpoint, at the same step.
                rows, damaged = _read(self._path)
                kept = [row for row in rows if (row["step"], row["kind"] == "test") <= (step, False)]
                write_text(self._path, "".join(_line(row) for row in kept))
                _mark_restart(self._tensorboard, step)
            self._writer = tf.summary.create_file_writer(str(self._tensorboard))
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
        with _os_errors(), self._writer.as_default(step=step):
            for name, value in values.items():
                if isinstance(value, int | float):
                    tf.summary.scalar(f"{kind}/{name}", value)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Shows a PNG file in TensorBoard.

        Raises:
            OSError: where the disk is full.
        """
        with _os_errors(), self._writer.as_default(step=step), Image.open(path) as picture:
            tf.summary.image(name, np.asarray(picture.convert("RGB"))[None])

    def flush(self) -> None:
        """Writes out what TensorBoard's writer still holds.

        Raises:
            OSError: where the disk is full.
        """
        with _os_errors():
            self._writer.flush()

    def close(self) -> None:
        """Ends the log.

        Raises:
            OSError: where the disk is full.
        """
        with _os_errors():
            self._writer.close()


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
    return row if is_row else None


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turns the error of TensorFlow's event writer into the OSError that it is."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, one_line(error, first=True)) from error


def _line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN: a figure that is not finite is written as text.
    safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(safe) + "\n"


def _mark_restart(folder: pathlib.Path, step: int) -> None:
    """Tells TensorBoard that the run went back to `step`, so that it drops what it had seen beyond."""
    with tf.Graph().as_default():
        writer = tf.compat.v1.summary.FileWriter(str(folder), filename_suffix=".restart")
        writer.add_session_log(tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START), step + 1)
        writer.close()
