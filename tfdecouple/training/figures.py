"""What the steps of training report: one step's figures, and their sums until the next row of the log."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# What is averaged over the steps between two rows of the log; checkpoints hold the sums.
WINDOW = (
    "bits_per_dim",
    "reconstruction",
    "kl",
    "dequantization",
    "gradient_norm",
)


class Wishes(NamedTuple):
    """What a process tells all workers with a step.

    Attributes:
        stop: whether it was asked to stop. The step is taken all the same.
        read_after: after how many steps it would read from the devices again, see `reading.ReadSchedule`.
    """

    stop: bool = False
    read_after: int = 1


NO_WISHES = Wishes()


class StepResult(NamedTuple):
    """What a step reports: scalars on a device, or, once they are read, plain numbers.

    Attributes:
        bits_per_dim: mean over the batch.
        reconstruction, kl, dequantization: the terms of the bound, mean nats per image.
        gradient_norm: global norm of the gradient, before any clipping.
        learning_rate: of this update.
        applied: False where nothing was changed: loss or gradient norm were not finite, `inversion_error` was above
            its bound, or training has halted.
        stop: above 0 where a worker was asked to stop; the same on all of them.
        read_after: the mean of what the workers wished for; the same on all of them.
        inversion_error: with `training.memory=invert` how far the backward pass was from what it should get back: the
            largest difference of an image at the input of each stage relative to the largest number there, added up
            over the stages; of all images of the batch the largest. Else 0.
    """

    bits_per_dim: Any
    reconstruction: Any
    kl: Any
    dequantization: Any
    gradient_norm: Any
    learning_rate: Any
    applied: Any
    stop: Any
    read_after: Any
    inversion_error: Any = 0.0

    def read(self) -> StepResult:
        """Waits for the step and returns plain numbers."""
        return StepResult(*(np.asarray(value).item() for value in self))

    def figures(self) -> tf.Tensor:
        """Returns the figures of `WINDOW` of a result that was not read, float32 `[len(WINDOW)]`."""
        return tf.stack([getattr(self, name) for name in WINDOW])


def means(sums: np.ndarray) -> dict[str, float]:
    """Returns the means of the figures by name, NaN where no step was applied.

    >>> means(np.array([7.0, 2.0, 4.0, 0.0, 1.0, 2]))["bits_per_dim"], means(np.zeros(6))["kl"]
    (3.5, nan)

    Args:
        sums: of each of `WINDOW` over the applied steps, and the number of these, `[len(WINDOW) + 1]`.
    """
    *totals, count = sums.tolist()
    return {name: value / count if count else math.nan for name, value in zip(WINDOW, totals, strict=True)}
