"""The logger to tables of comma-separated values, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from tfdecouple.loggers.base import Logger, Row


class Tables(Logger):
    """A logger to `train.csv`, `validation.csv` and `test.csv`, complete at each checkpoint and at the end."""

    name = "csv"
    _rows: Any = ()

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Writes the tables with the rows that the log has so far."""
        self._rows = list(rows)
        for kind in ("train", "validation", "test"):
            (self.folder / f"{kind}.csv").unlink(missing_ok=True)
        self.flush()

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row of metrics, which `flush` writes, because the row may have new columns."""
        self._rows.append({"step": step, "kind": kind, **values})

    def flush(self) -> None:
        """Writes all tables with all rows."""
        for kind in dict.fromkeys(row["kind"] for row in self._rows):
            rows = [row for row in self._rows if row["kind"] == kind]
            columns = dict.fromkeys(name for row in rows for name in row if name != "kind")
            with (self.folder / f"{kind}.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, columns, extrasaction="ignore")
                table.writeheader()
                table.writerows(rows)

    def close(self) -> None:
        """Writes all tables for the last time."""
        self.flush()
