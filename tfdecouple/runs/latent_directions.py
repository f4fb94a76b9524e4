"""Directions in z, each of which changes one property of images, and their file `directions.json` in a run folder."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import pydantic

from tfdecouple.errors import RunError, UserError, nearest, one_line
from tfdecouple.storage.files import Facts, read_model, write_json

FILE = "directions.json"
MEANS, CLASSIFIER, DECODED = "means", "classifier", "decoded"
# With fewer held-out images of a kind than this, an accuracy near chance has a standard error above 6 %.
FEW = 30


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A direction in z that changes one property of an image.

    Adding `vector` to z changes the property by one standard deviation over images. A label counts as a property with
    the values 0 and 1.

    `method` is "means", the difference between the means of z (for numbers the slope of z); "classifier", the normal of
    a linear classifier (for numbers of a ridge regression); or "decoded", from decoded images (for statistics).
    """

    name: str  # of the label, of the column of numbers, or of the statistic, such as "brighter"
    method: str
    vector: np.ndarray  # float32 `[d_z]`
    figures: Facts = dataclasses.field(default_factory=dict)  # metrics on held-out images, counts of images

    def describe_accuracy(self) -> str:
        """Returns a text on what this direction predicts or changes in held-out images; "" if not measured."""
        accuracy, r2 = self.figures.get("accuracy"), self.figures.get("r2")
        changes = self.figures.get("changes")
        if isinstance(changes, dict) and all(isinstance(change, float) for change in changes.values()):
            listed = ", ".join(f"{name} {change:+z.2f}" for name, change in changes.items())
            return f"{listed} standard deviations"
        counts = [self.figures.get(name) for name in ("held_out_with", "held_out_without", "held_out")]
        least = min((count for count in counts if isinstance(count, int)), default=FEW)
        few = f"; too few images to be sure (held out: {least})" if least < FEW else ""
        if isinstance(accuracy, float):
            error = self.figures.get("standard_error")
            is_chance = accuracy - (2 * error if isinstance(error, float) else 0) <= 0.5
            chance = "no better than chance, 50 %" if is_chance else "50 % is chance"
            return f"tells {accuracy:.1%} of held-out images right ({chance}){few}"
        return f"explains {r2:.1%} of the variance of held-out images{few}" if isinstance(r2, float) else ""


@dataclasses.dataclass(frozen=True)
class Directions:
    """All directions in z of a run, in the order in which they were found."""

    weights_sha256: str  # of the model's weights with which the directions were found, hexadecimal
    about: Facts  # the data set, counts of images and random seed with which the directions were found
    directions: tuple[Direction, ...]

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions)

    def __len__(self) -> int:
        """Returns the count of directions in z; a property for which both methods found a direction counts twice."""
        return len(self.directions)

    def __getitem__(self, name: str) -> Direction:
        return self.find(name)

    @property
    def names(self) -> list[str]:
        """The names of all directions in z, a list of texts in which each name stands once."""
        return list(dict.fromkeys(direction.name for direction in self.directions))

    def find(self, name: str, method: str | None = None) -> Direction:
        """Returns the first `Direction` with this name and, if given, this method; raises UserError if absent."""
        matches = [entry for entry in self.directions if entry.name == name and method in (None, entry.method)]
        if not matches:
            listed = ", ".join(self.names[:20]) + (" and more" if len(self.names) > 20 else "")
            by = f" by the method {method}" if method and name in self.names else nearest(name, self.names)
            raise UserError(f"there is no direction {name!r}{by}; there are {listed}")
        return matches[0]

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes directions.json into a run folder and returns the file's path."""
        path = folder / FILE
        # Python writes floats to JSON without rounding, so `read` returns exactly the same vectors.
        directions = [
            {"name": entry.name, "method": entry.method, **entry.figures, "vector": entry.vector.tolist()}
            for entry in self.directions
        ]
        values = {"version": 1, "weights_sha256": self.weights_sha256, **self.about, "directions": directions}
        write_json(path, values)
        return path

    @classmethod
    def read(cls, folder: str | pathlib.Path, latent_dim: int) -> Directions | None:
        """Returns the content of directions.json in a run folder, which may be untrusted; None without this file.

        RunError is raised if the file is damaged, or a vector has not `latent_dim` entries, the dimensions of z.
        """
        path = pathlib.Path(folder) / FILE
        try:
            file = read_model(path, _DirectionsFile, 2**26)
            if wrong := next((entry for entry in file.directions if len(entry.vector) != latent_dim), None):
                raise ValueError(f"the vector of {wrong.name!r} has not the {latent_dim} numbers of this model's z")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {one_line(error)}; tfdecouple directions writes it anew") from error
        directions = (
            Direction(entry.name, entry.method, np.array(entry.vector, np.float32), entry.model_extra or {})
            for entry in file.directions
        )
        return cls(file.weights_sha256, file.model_extra or {}, tuple(directions))


class _DirectionEntry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", strict=True)
    # Labels are named after folders, columns or classes of a data set, whose names are shorter than this.
    name: Annotated[str, pydantic.Field(min_length=1, max_length=1000)]
    method: Literal["means", "classifier", "decoded"]
    # The bounds exclude numbers that are too large for float32, in which the vector is used.
    vector: list[Annotated[float, pydantic.Field(gt=-1e30, lt=1e30)]]


class _DirectionsFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", strict=True)
    version: Literal[1]
    weights_sha256: str
    directions: list[_DirectionEntry]
