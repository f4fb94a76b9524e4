"""Attributes of images in a CSV file: numbers by file name, such as age, pose, or 1 and 0 for yes and no."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdecouple.errors import DataError, one_line


@dataclasses.dataclass(frozen=True)
class Attributes:
    """A table of the attributes of images, with one row for each image.

    Attributes:
        path: path of the CSV file, for messages.
        names: names of the columns after the first, which holds file names.
        rows: numbers of an image, float64 `[columns]`, by file name; NaN for an empty cell.
    """

    path: str
    names: tuple[str, ...]
    rows: dict[str, np.ndarray]

    def look_up(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the attributes of images, float64 `[n, columns]`, by `Source.key`; NaN where the table has none."""
        return np.stack([self.rows.get(key, np.full(len(self.names), np.nan)) for key in keys])


def read_attributes(path: str) -> Attributes:
    """Returns the attributes in a CSV file: a line of column names, then lines that begin with an image's file name.

    Raises:
        DataError: where the file cannot be read or is malformed; the message names the line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _read_rows(path, csv.reader(file, strict=True, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"cannot read the attributes {path}: {reason}; give a CSV file in UTF-8") from error


def _read_rows(path: str, lines: Any) -> Attributes:
    names = tuple(name.strip() for name in next(lines, []))[1:]
    if not names or not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path} must begin with a line of names, each different, such as: file,age,smiling")
    rows: dict[str, np.ndarray] = {}
    for name, *cells in filter(None, lines):
        try:
            numbers = np.array([float(cell.strip() or "nan") for cell in cells])
            if name.strip() in rows or len(cells) != len(names) or np.isinf(numbers).any():
                raise ValueError
        except ValueError:
            raise DataError(
                f"line {lines.line_num} of {path} is {one_line(','.join([name, *cells]), 80)!r}; it must be a further "
                f"file and {len(names)} cells, each a number or empty"
            ) from None
        rows[name.strip()] = numbers
    return Attributes(path, names, rows)
