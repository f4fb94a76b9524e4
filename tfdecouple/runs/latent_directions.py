"""Directions in z of a run, and the file `directions.json` of its folder."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfdecouple.errors import RunError, UserError, nearest, one_line
from tfdecouple.storage.files import read_json, write_json

FILE = "directions.json"
VERSION = 1
MEANS, CLASSIFIER = "means", "classifier"
METHODS = (MEANS, CLASSIFIER)
# A file may be untrusted: it has at most this many directions, and names of at most this length.
MOST, LONGEST_NAME = 10_000, 200


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A direction in z that changes one property of an image.

    Its length is its unit, measured along the direction: the distance between the means of the images with the label
    and without it, or for numbers the change of z in one standard deviation.

    Attributes:
        name: the name of the label, of the two labels ("coffee to rocket"), or of the column.
        method: "means", the difference of means (for numbers the slope of z), or "classifier", the normal of a
            regularised linear classifier (for numbers of a ridge regression).
        vector: float32 `[d_z]`.
        figures: metrics on held-out images, and the number of images.
    """

    name: str
    method: str
    vector: np.ndarray
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def describe_accuracy(self) -> str:
        """Returns in a few words how well the direction separates held-out images; "" where that was not measured."""
        accuracy, r2 = self.figures.get("accuracy"), self.figures.get("r2")
        if isinstance(accuracy, float):
            return f"tells {accuracy:.1%} of held-out images right (50 % is chance)"
        return f"explains {r2:.1%} of the variance of held-out images" if isinstance(r2, float) else ""


@dataclasses.dataclass(frozen=True)
class Directions:
    """All directions of a run.

    Attributes:
        weights_sha256: the digest of the weights that encoded the images.
        about: the data set, numbers of images and seed of the search.
        directions: the directions, in the order of the search.
    """

    weights_sha256: str
    about: Mapping[str, Any]
    directions: tuple[Direction, ...]

    def __iter__(self) -> Iterator[Direction]:
        """Yields the directions."""
        return iter(self.directions)

    def __contains__(self, one: object) -> bool:
        """Returns whether an object is one of the directions, or a name that `[]` finds."""
        return any(one is each or (one == each.name and each.method == MEANS) for each in self.directions)

    def __len__(self) -> int:
        """Returns the number of directions; each method counts."""
        return len(self.directions)

    def __getitem__(self, name: str) -> Direction:
        """Returns the direction of a name by the difference of means."""
        return self.find(name)

    @property
    def names(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(direction.name for direction in self.directions))

    def find(self, name: str, method: str = MEANS) -> Direction:
        """Returns the direction of a name and method.

        Raises:
            UserError: where there is none.
        """
        matches = [one for one in self.directions if (one.name, one.method) == (name, method)]
        if not matches:
            listed = ", ".join(self.names[:20]) + (" and more" if len(self.names) > 20 else "")
            raise UserError(f"there is no direction {name!r}{nearest(name, self.names)}; there are {listed}")
        return matches[0]

    def require_weights(self, weights_sha256: str, run: str) -> None:
        """Raises RunError for other weights than those of the search: their z means other things."""
        if weights_sha256 != self.weights_sha256:
            raise RunError(
                f"the directions in {run} were found with other weights than its best ones now; "
                "find them again with python -m tfdecouple directions"
            )

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the file into a run folder and returns its path.

        Raises:
            RunError: where it cannot be written.
        """
        path = folder / FILE
        # A vector is the same to the last bit when it is read.
        directions = [
            {"name": one.name, "method": one.method, **one.figures, "vector": one.vector.tolist()}
            for one in self.directions
        ]
        values = {"version": VERSION, "weights_sha256": self.weights_sha256, **self.about, "directions": directions}
        try:
            write_json(path, values)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}; free some space there") from error
        return path

    @classmethod
    def read(cls, folder: str | pathlib.Path, latent_dim: int) -> Directions | None:
        """Returns the directions of a run folder, which may be untrusted; None where it has none yet.

        Args:
            folder: a run folder.
            latent_dim: d_z of its model.

        Raises:
            RunError: where the file is damaged, or has another d_z.
        """
        path = pathlib.Path(folder) / FILE
        try:
            values = read_json(path, 2**26)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {one_line(error)}") from error
        try:
            return _parse_directions(values, latent_dim)
        except ValueError as error:
            raise RunError(
                f"{path} holds no directions of this model: {one_line(error)}; python -m tfdecouple directions "
                "writes it anew"
            ) from error


def _parse_directions(values: Any, latent_dim: int) -> Directions:
    """Returns the directions of a JSON file; raises ValueError for the first thing that is wrong."""
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    weights, entries = values.get("weights_sha256"), values.get("directions")
    if not isinstance(weights, str) or not isinstance(entries, list) or len(entries) > MOST:
        raise ValueError("weights_sha256 is no text, or directions no list")
    directions = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError("an entry of directions is no object")
        name, method, vector = (entry.get(key) for key in ("name", "method", "vector"))
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or method not in METHODS:
            raise ValueError(f"a direction has no name or no method of {' and '.join(METHODS)}")
        if not isinstance(vector, list) or not all(map(_is_finite, vector)) or len(vector) != latent_dim:
            raise ValueError(f"the vector of {name!r} is no list of {latent_dim} numbers")
        figures = {key: value for key, value in entry.items() if key not in ("name", "method", "vector")}
        directions.append(Direction(name, method, np.array(vector, np.float32), figures))
    about = {key: value for key, value in values.items() if key not in ("version", "weights_sha256", "directions")}
    return Directions(weights, about, tuple(directions))


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) < 1e30
