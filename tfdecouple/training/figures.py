"""What the steps of training report: one step's figures, and their sums until the next row of the log."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

# What is averaged over the steps between two rows of the log; checkpoints hold the sums.
WINDOW = ("bits_per_dim", "reconstruction", "kl", "dequantization", "gradient_norm")


class StepResult(NamedTuple):
    """What a step reports: scalars on a device, or, once they are read, plain numbers.

    Attributes:
        bits_per_dim: mean over the batch.
        reconstruction, kl, dequantization: the terms of the bound, mean nats per image.
        gradient_norm: global norm of the gradient, before any clipping.
        learning_rate: of this update.
        applied: False where loss or gradient norm were not finite and nothing was changed.
        skipped: how many steps in a row were not applied, this one included.
        stop: above 0 where a worker was asked to stop; the same on all of them.
    """

    bits_per_dim: Any
    reconstruction: Any
    kl: Any
    dequantization: Any
    gradient_norm: Any
    learning_rate: Any
    applied: Any
    skipped: Any
    stop: Any

    def read(self) -> StepResult:
        """Waits for the step and returns plain numbers: between two checkpoints nothing else is read from a device."""
        return StepResult(*(value.numpy().item() for value in self))

    def not_finite(self) -> list[str]:
        """Returns, of a result that was read, the names of the averaged figures that are NaN or infinite, in words."""
        return [name.replace("_", " ") for name in WINDOW if not math.isfinite(getattr(self, name))]


class Window:
    """The figures of the applied steps since the last row of the log.

    >>> window = Window(np.zeros(len(WINDOW) + 1))
    >>> for bits in (3.0, 4.0):
    ...     window.add(StepResult(bits, 1.0, 2.0, 0.0, 0.5, 1e-3, True, 0, 0.0))
    >>> window.take()["bits_per_dim"], window.take()["bits_per_dim"]
    (3.5, nan)

    Args:
        sums: of each of `WINDOW`, and the number of steps, float64 `[len(WINDOW) + 1]`; zeros at the beginning.
    """

    def __init__(self, sums: np.ndarray):
        self.sums = np.array(sums)

    def add(self, result: StepResult) -> None:
        """Adds a step's result, read."""
        self.sums += [*(getattr(result, name) for name in WINDOW), 1.0]

    def take(self) -> dict[str, float]:
        """Returns the means by name, NaN where no step was applied, and begins anew."""
        *sums, count = self.sums.tolist()
        self.sums[:] = 0
        return {name: value / count if count else math.nan for name, value in zip(WINDOW, sums, strict=True)}
