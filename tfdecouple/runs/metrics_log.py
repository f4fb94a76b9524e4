"""The log of a run: the file `metrics.jsonl`, whose rows are also passed to loggers such as TensorBoard."""

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfdecouple.errors import one_line
from tfdecouple.loggers import Logger
from tfdecouple.storage.files import move_into_place, parse_json, temporary_file

# The log is read in pieces of at most this length, so a longer line counts as several damaged lines.
_MOST_LINE_BYTES = 2**16
# Name of the metric by which the best weights are chosen; every row of validation metrics has this metric.
_SELECTED_BY = "bits_per_dim"
# The log has these texts instead of NaN and infinities, because JSON has no such numbers.
_NOT_FINITE = ("nan", "inf", "-inf")


class MetricsLog:
    """Writes metrics as rows of `metrics.jsonl`, and passes rows and pictures on to loggers such as TensorBoard.

    If a logger calls a client of another project, such as `wandb`, and the client fails, the logger is dropped with a
    message and the run continues. All methods raise OSError if the disk is full. Before `open`, nothing is written.
    """

    def __init__(self, folder: pathlib.Path, loggers: Sequence[Logger] = (), report: Callable[[str], None] = print):
        self._path = folder / "metrics.jsonl"
        self._loggers = list(loggers)
        self._report = report

    def open(self, step: int, is_last: bool = False) -> int:
        """Opens the log for new rows, and returns how many damaged lines were removed from metrics.jsonl.

        Rows of steps after `step`, at which the run resumes, are removed, because the run will write them again. If
        `step` is the run's last (`is_last`), its test metrics are removed, too. Test metrics of earlier steps stay, so
        that the log shows how often the test images were evaluated.
        """
        damaged = 0
        if self._path.exists():
            measured_again = (step, "test") if is_last else None
            with temporary_file(self._path) as temporary:
                with temporary.open("w", encoding="utf-8") as file:
                    for row in _read_log_lines(self._path):
                        if row is None:
                            damaged += 1
                        elif row["step"] <= step and (row["step"], row["kind"]) != measured_again:
                            file.write(_format_log_row(row))
                move_into_place(temporary, self._path)
        self._call_loggers(lambda logger: logger.open(step))
        return damaged

    def write(self, kind: str, step: int, values: Mapping[str, Any], pictures: Mapping[str, pathlib.Path] = {}) -> None:
        """Adds a row: step, `kind` ("train", "validation", "test") and metrics; loggers also get `pictures`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_format_log_row({"step": step, "kind": kind, **values}))

        def write_row(logger: Logger) -> None:
            logger.write(kind, step, values)
            for name, path in pictures.items():
                logger.write_picture(name, step, path)

        self._call_loggers(write_row)

    def validation_bits_per_dim(self, step: int) -> float | None:
        """Returns the bits/dim of the validation images at `step`; None if the log has no row of such an evaluation."""
        rows = [row for row in read_metrics(self._path) if (row["kind"], row["step"]) == ("validation", step)]
        return float(rows[-1][_SELECTED_BY]) if rows else None

    def flush(self) -> None:
        """Makes all loggers of this log write their buffered rows and pictures to disk."""
        self._call_loggers(lambda logger: logger.flush())

    def close(self) -> None:
        """Closes all loggers of this log, such as the event file of TensorBoard."""
        self._call_loggers(lambda logger: logger.close())

    def _call_loggers(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            # Every exception is caught, because a client of another project may raise anything.
            except Exception as error:
                if not logger.is_foreign:
                    raise
                self._loggers.remove(logger)
                name = logger.package or type(logger).__name__
                self._report(f"{name} failed and gets no more rows: {one_line(error)}")


def read_metrics(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a run's metrics.jsonl (`path`) as dicts, without damaged rows; nothing without the file."""
    return filter(None, _read_log_lines(path)) if path.is_file() else iter(())


def _read_log_lines(path: pathlib.Path) -> Iterator[dict[str, Any] | None]:
    with path.open("rb") as file:
        while line := file.readline(_MOST_LINE_BYTES):
            row = _parse_log_row(line)
            if row or line.endswith(b"\n") or len(line) == _MOST_LINE_BYTES:
                yield row


def _parse_log_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str)
    if is_row and row["kind"] == "validation":
        value = row.get(_SELECTED_BY)
        is_row = type(value) in (int, float) or value in _NOT_FINITE
    return row if is_row else None


def _format_log_row(row: Mapping[str, Any]) -> str:
    safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(safe) + "\n"
