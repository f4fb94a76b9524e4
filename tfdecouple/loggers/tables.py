"""Tables of comma-separated values, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

from tfdecouple.loggers.base import Logger, Options, Row


class Tables(Logger):
    """A table for each kind of row, `train.csv`, `validation.csv` and `test.csv`, whole whenever the run goes on."""

    name = "csv"

    def __init__(self, folder: pathlib.Path, config: Options):
        super().__init__(folder, config)
        self._columns: dict[str, list[str]] = {}

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Writes the tables of the rows that there are."""
        self._columns = {}
        for kind in ("train", "validation", "test"):
            self._path(kind).unlink(missing_ok=True)
        for row in rows:
            self.write(row["kind"], row["step"], {k: v for k, v in row.items() if k not in ("step", "kind")})

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row; one with new figures makes the table wider."""
        path, row = self._path(kind), {"step": step, **values}
        columns = self._columns.get(kind, [])
        if new := [name for name in row if name not in columns]:
            columns = self._columns[kind] = [*columns, *new]
            old: list[dict[str, Any]] = []
            if path.exists():
                with path.open(encoding="utf-8", newline="") as file:
                    old = list(csv.DictReader(file))
            _write_table(path, columns, old)
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)

    def _path(self, kind: str) -> pathlib.Path:
        return self.folder / f"{kind}.csv"


def _write_table(path: pathlib.Path, columns: list[str], rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
