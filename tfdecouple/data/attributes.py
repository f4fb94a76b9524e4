"""Attributes of images in a CSV file: numbers by file name, such as age, pose, or 1 and 0 for yes and no."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterable
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

    def require_unique_rows(self, keys: Iterable[str]) -> None:
        """Raises DataError if a row names its image by the last part of a path, and two images share this part.

        Args:
            keys: names of all images of the source, in all splits.
        """
        whose: dict[str, str] = {}
        for key in keys:
            last = key.rpartition("/")[2]
            if last in self.rows and (key == last or key not in self.rows) and whose.setdefault(last, key) != key:
                raise DataError(
                    f"{self.path} has a row {last!r}, but there are two such images, {whose[last]} and {key}; name "
                    "them by their paths"
                )

    def look_up(self, keys: Iterable[str]) -> np.ndarray:
        """Returns the attributes of images, float64 `[n, columns]`; NaN where the table has no number.

        Args:
            keys: names of the images from `Source.key`, paths below the folder; a row may have only the last part.
        """
        unknown = np.full(len(self.names), math.nan)
        numbers = [self.rows.get(key, self.rows.get(key.rpartition("/")[2], unknown)) for key in keys]
        return np.array(numbers).reshape(len(numbers), len(self.names))


def read_attributes(path: str | pathlib.Path) -> Attributes:
    """Returns the attributes in a CSV file: a line of column names, then lines that begin with an image's file name.

    Raises:
        DataError: where the file cannot be read or is malformed; the message names the line and the wrong value.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _read_rows(str(path), csv.reader(file, strict=True, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"cannot read the attributes {path}: {reason}; give a CSV file in UTF-8") from error


def _read_rows(path: str, lines: Any) -> Attributes:
    header = [name.strip() for name in next(lines, [])]
    if len(header) < 2 or not all(header[1:]):
        raise DataError(
            f"{path} begins with no line of names; it must be such as: file,age,smiling (commas between them)"
        )
    if len(set(header[1:])) < len(header) - 1:
        twice = next(name for number, name in enumerate(header[1:]) if name in header[1 : number + 1])
        raise DataError(f"{path} has two columns {twice!r}; each needs a name of its own")
    rows: dict[str, np.ndarray] = {}
    for cells in lines:
        if not cells:
            continue
        place = f"line {lines.line_num} of {path}"
        if len(cells) != len(header):
            raise DataError(f"{place} has {len(cells)} cells, and the first line {len(header)}; they must be as many")
        name = cells[0].strip()
        if name in rows:
            raise DataError(f"{place} has the image {name!r} once more; each image may have one line")
        rows[name] = np.array(
            [_parse_number(cell, column, place) for cell, column in zip(cells[1:], header[1:], strict=True)]
        )
    if not rows:
        raise DataError(f"{path} has a line of names and no image")
    return Attributes(path, tuple(header[1:]), rows)


def _parse_number(cell: str, column: str, place: str) -> float:
    text = cell.strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e100:
        raise DataError(f"{place} has {text[:40]!r} as {column}; it must be a number, or empty where none is known")
    return value
