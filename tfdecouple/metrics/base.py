"""A metric of `evaluate`: its options, how it is measured, what it prints and what its JSON file says."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        mean: over images.
        standard_error: of the mean, from the spread over images; NaN for a single image.
    """

    mean: float
    standard_error: float

    @classmethod
    def over(cls, values: Any) -> Estimate:
        """Returns the estimate of values of images, `[images]`; sums are taken in float64."""
        values = np.asarray(values, np.float64)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), float(error))


class Result(NamedTuple):
    """What a metric found.

    Attributes:
        values: plain values for the JSON file; NaN and infinities become null there.
        lines: that are printed.
        picture: a PNG file beside the JSON file; None for none.
    """

    values: dict[str, Any]
    lines: Sequence[str]
    picture: Image.Image | None = None


class Metric:
    """Something that `evaluate` measures; `cli/evaluate.py` lists them in the order in which they are measured.

    Their modules import TensorFlow and scikit-learn in functions alone: help is answered without either.

    Attributes:
        name: of the result's file, and of the option that asks for the metric where `is_wanted` is not overridden.
        on_split: whether it is taken of the images of --split, which its file then names; otherwise it is of test
            images, whatever --split says, and perhaps of others.
        needs_z: whether a model without z is refused.
        needs_classes: whether a model that knows no labels is refused.

    Args:
        options: of the command.
    """

    name: ClassVar[str]
    on_split: ClassVar[bool] = True
    needs_z: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    def __init__(self, options: argparse.Namespace):
        self.options = options

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds its options to a group of the parser."""

    def check(self) -> None:
        """Refuses values out of range, before TensorFlow is imported and whether it is wanted or not.

        Raises:
            UserError: naming the option and its value.
        """

    @property
    def option(self) -> str:
        """The option that asks for it, such as "--latent-use"."""
        return f"--{self.name.replace('_', '-')}"

    def is_wanted(self) -> bool:
        """Returns whether the options ask for it."""
        return bool(getattr(self.options, self.name))

    def prepare(self) -> None:
        """Looks for what it needs besides the run, before that is opened: hours may pass before it is measured.

        Raises:
            UserError: for what is missing.
        """

    def measure(self, evaluation: Any) -> Result:
        """Measures.

        Args:
            evaluation: the run, its images and the devices: `cli.evaluate.Evaluation`.

        Raises:
            UserError: in one line, for whatever the user can mend.
        """
        raise NotImplementedError


def say(text: str) -> None:
    """Says how far it is, on standard error, so that results stand alone."""
    print(text, file=sys.stderr, flush=True)


def draws(k: int) -> str:
    """Returns such as "3 draws"."""
    return f"{k} draw{'s' if k > 1 else ''}"


def with_error(mean: float, error: float, digits: int) -> str:
    """Returns a mean with its standard error, where that is known: "3.142 ± 0.012"."""
    known = f" ± {error:.{digits}f}" if math.isfinite(error) else ""
    return f"{mean:.{digits}f}{known}"


def estimated(estimate: Estimate, digits: int) -> str:
    """Returns an estimate as `with_error` does."""
    return with_error(estimate.mean, estimate.standard_error, digits)
