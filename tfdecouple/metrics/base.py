"""The base class of the metrics of `evaluate`, their results, and means with standard errors."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from tfdecouple.errors import RunError
from tfdecouple.runtime.requirements import require

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error.

    Attributes:
        mean: the mean over the images.
        standard_error: the standard error of the mean; NaN for a single image.
    """

    mean: float
    standard_error: float

    @classmethod
    def from_values(cls, values: Any) -> Estimate:
        """Returns the estimate of one value per image, `[images]`; sums are taken in float64."""
        values = np.asarray(values, np.float64)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), float(error))

    @classmethod
    def from_share(cls, share: float, count: int) -> Estimate:
        """Returns a share of `count` images with its binomial standard error."""
        return cls(float(share), math.sqrt(share * (1 - share) / max(count, 1)))

    def to_text(self, digits: int) -> str:
        """Returns the mean with its standard error, where there is one.

        >>> Estimate(3.14159, 0.0123).to_text(3), Estimate(3.0, math.nan).to_text(1)
        ('3.142 ± 0.012', '3.0')
        """
        error = f" ± {self.standard_error:.{digits}f}" if math.isfinite(self.standard_error) else ""
        return f"{self.mean:.{digits}f}{error}"


class Result(NamedTuple):
    """The result of a metric.

    Attributes:
        values: plain values for the JSON file, where NaN and infinities become null.
        lines: the lines that are printed.
        picture: a picture that is written as a PNG file beside the JSON file; None for no picture.
    """

    values: dict[str, Any]
    lines: Sequence[str]
    picture: Image.Image | None = None


class Metric:
    """A metric that `evaluate` computes; `cli/evaluate.py` lists the metrics in the order of their computation.

    A module of a metric imports TensorFlow and scikit-learn inside functions, so that `--help` loads neither.

    Attributes:
        name: the name of the result's file, and of the option that requests the metric unless `is_requested` says
            otherwise.
        on_split: whether the metric is computed on the images of --split, which its file then names. Otherwise it is
            computed on test images, whatever --split says, and perhaps on training images too.
        needs_z: whether a model without z is refused.
        needs_classes: whether a model without labels is refused.
        needs_plots: whether the metric draws a plot, which needs matplotlib.

    Args:
        options: the parsed options of the command.
    """

    name: ClassVar[str]
    on_split: ClassVar[bool] = True
    needs_z: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    needs_plots: ClassVar[bool] = False

    def __init__(self, options: argparse.Namespace):
        self.options = options

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the metric's options to a group of the parser."""

    def check_options(self) -> None:
        """Refuses values of options that do not fit together, before TensorFlow is imported.

        Raises:
            UserError: naming the option and its value.
        """

    @property
    def option(self) -> str:
        """The option that requests the metric, such as "--latent-use"."""
        return f"--{self.name.replace('_', '-')}"

    def is_requested(self) -> bool:
        """Returns whether the options request the metric."""
        return bool(getattr(self.options, self.name))

    def prepare_inputs(self) -> None:
        """Opens the other inputs of the metric before any metric is computed, because computing may take hours.

        Raises:
            UserError: where something is missing.
        """
        if self.needs_plots:
            require("matplotlib", what=self.option)

    def compute(self, evaluation: Any) -> Result:
        """Computes the metric.

        Args:
            evaluation: the run, its images and the devices: a `cli.evaluate.Evaluation`.

        Raises:
            UserError: in one line, where the user can mend the cause.
        """
        raise NotImplementedError


def print_progress(text: str) -> None:
    """Prints a line of progress on standard error, so that standard output holds results alone."""
    print(text, file=sys.stderr, flush=True)


def describe_draws(k: int) -> str:
    """Returns a number of draws in words, such as "3 draws"."""
    return f"{k} draw{'s' if k > 1 else ''}"


def require_finite(what: str, values: np.ndarray, index: np.ndarray) -> None:
    """Refuses values that are not finite.

    Args:
        what: the name of the values in the message, such as "the bound".
        values: float `[images, ...]`.
        index: the numbers of the images in their split, `[images]`.

    Raises:
        RunError: with the numbers of the images.
    """
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
    if len(bad):
        from tfdecouple.model.round_trip import listed

        raise RunError(
            f"{what} is not finite for {len(bad)} of {len(values)} images (number {listed(index[bad].tolist())}); "
            "the weights are damaged or training diverged: see docs/divergence.md"
        )
