"""The base class of the metrics of the command `evaluate`, the results of metrics, and means with standard errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tfdecouple.errors import RunError
from tfdecouple.storage.files import Facts

if TYPE_CHECKING:
    from PIL import Image

    from tfdecouple.config import Config


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error, which is NaN for a single image."""

    mean: float
    standard_error: float

    @classmethod
    def from_values(cls, values: ArrayLike) -> Estimate:
        """Returns the `Estimate` of `values`, `[images]`, with one value per image; computes in float64."""
        values = np.asarray(values, np.float64)
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), float(error))

    def to_text(self, digits: int) -> str:
        """Returns the mean as a text with `digits` decimals, followed by the standard error if the error is finite.

        >>> Estimate(3.14159, 0.0123).to_text(3), Estimate(-1e-17, math.nan).to_text(1)
        ('3.142 ± 0.012', '0.0')
        """
        error = f" ± {self.standard_error:.{digits}f}" if math.isfinite(self.standard_error) else ""
        return f"{self.mean:z.{digits}f}{error}"

    def to_percent(self, digits: int) -> str:
        """Returns this estimate of a share as a text in per cent.

        >>> Estimate(0.5953, 0.0049).to_percent(1)
        '59.5 ± 0.5 %'
        """
        return Estimate(100 * self.mean, 100 * self.standard_error).to_text(digits) + " %"


class Result(NamedTuple):
    """The result of a metric of `evaluate`: values for a JSON file, lines of text to print, and a picture or None.

    The values are plain Python objects; NaN and infinities become null in the file.
    """

    values: Facts
    lines: Sequence[str]
    picture: Image.Image | None = None


class Option(NamedTuple):
    """An option of the command `evaluate`: its type, default, help text, and the least value of a number."""

    kind: Any
    default: Any
    help: str
    least: float = 0


class Metric:
    """The base class of the metrics of the command `evaluate`.

    The module of a metric imports TensorFlow and scikit-learn inside functions, so that `--help` loads neither.
    """

    name: ClassVar[str]  # of the metric and of its JSON file, such as "latent_use"
    option: ClassVar[str]  # the command-line option that requests the metric, such as "--latent-use"
    help: ClassVar[str] = ""  # the help text of this option
    needs_z: ClassVar[bool] = False
    # Whether the metric rejects a model whose z is a function of the label instead of the image.
    needs_posterior: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_plots: ClassVar[bool] = False  # whether the metric needs matplotlib
    # {name with underscores: `Option`} for `evaluate`; with a `help`, also a flag with the metric's name.
    added_options: ClassVar[Mapping[str, Option]] = {}

    def __init_subclass__(cls) -> None:
        cls.option = f"--{cls.name.replace('_', '-')}"
        if cls.help:
            cls.added_options = {cls.name: Option(bool, False, cls.help), **cls.added_options}

    def __init__(self, options: Any):
        self.options = options

    @property
    def split(self) -> str:
        """The split of the images that this metric measures, part of the name of its JSON file; by default --split."""
        return str(self.options.split)

    def is_requested(self) -> bool:
        """Returns whether the command-line options request this metric."""
        return bool(getattr(self.options, self.name))

    def prepare_inputs(self, config: Config) -> None:
        """Checks options and files before any metric is computed; UserError if one does not fit the run's `config`."""

    def compute(self, evaluation: Any) -> Result:
        """Computes this metric of a `cli.evaluate.Evaluation`; UserError for a reason that the user can change."""
        raise NotImplementedError


def format_table(rows: Sequence[Sequence[str]], indent: int = 4) -> list[str]:
    """Returns the lines of a table of texts: the first column is left-aligned, all others are right-aligned.

    >>> format_table([["score", "AUROC"], ["shell", "0.5"]], indent=0)
    ['score  AUROC', 'shell    0.5']
    """
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    template = "  ".join([f"{' ' * indent}{{:{first}}}", *(f"{{:>{width}}}" for width in widths)])
    return [template.format(*row) for row in rows]


def require_finite_values(what: str, values: np.ndarray, index: np.ndarray) -> None:
    """Raises RunError, which lists the images with a NaN or an infinity, unless all `values` are finite.

    `values` are `[images, ...]`, and `index`, `[images]`, has the indices of the images in their split. `what` names
    the values.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(tuple(range(1, values.ndim))))
    if len(bad):
        from tfdecouple.model.codes import format_image_numbers

        raise RunError(
            f"{what} is not finite for {len(bad)} of {len(values)} images "
            f"(number {format_image_numbers(index[bad].tolist())}); "
            "the weights are damaged or training diverged: see docs/troubleshooting.md"
        )
