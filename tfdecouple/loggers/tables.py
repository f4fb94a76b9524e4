"""Tables of comma-separated values, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from tfdecouple.loggers.base import Logger, Row


class Tables(Logger):
    """Writes `train.csv`, `validation.csv` and `test.csv`, complete at each checkpoint and at the end."""

    name = "csv"
    _rows: Any = ()

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Writes the tables of the log's rows."""
        self._rows = list(rows)
        for kind in ("train", "validation", "test"):
            (self.folder / f"{kind}.csv").unlink(missing_ok=True)
        self.flush()

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row, which `flush` writes: it may have columns that no row before it had."""
        self._rows.append({"step": step, "kind": kind, **values})

    def flush(self) -> None:
        """Writes all tables."""
        for kind in dict.fromkeys(row["kind"] for row in self._rows):
            rows = [row for row in self._rows if row["kind"] == kind]
            columns = dict.fromkeys(name for row in rows for name in row if name != "kind")
            with (self.folder / f"{kind}.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, columns, extrasaction="ignore")
                table.writeheader()
                table.writerows(rows)

    def close(self) -> None:
        """Writes all tables."""
        self.flush()
