"""A mean over images and how well it is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


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
