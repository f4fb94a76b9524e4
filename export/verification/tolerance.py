"""Whether answers of a file are the model's, image by image, measured by how stable the model itself is on each image.

float32 rounds every number to a relative 6e-8, and every runtime adds up in an order of its own: two right programs
differ. By how much depends on the image. So the model is asked again with codes and inputs moved by a relative 1e-6
(`reference.py`), and what its answer changes by then measures what a file may differ by.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# By how much, relative to a value or to the range of x, inputs are moved to see how the model's answer changes.
PERTURBATION = 1e-6
# A file may differ by so many times that change, or the median one where it is less. Measured: 0.03 to 1.1 times.
FACTOR = 4.0
# What rounding alone does where nothing changes: of the largest value of an image, and absolutely, since z, v and
# log-variances near 0 are sums of numbers of size 1.
FLOOR = 2e-6
# An image on which float32 moves values by half a level or more is unstable: its pixels can say nothing of a file.
UNSTABLE = 0.5

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Floats:
    """The model's answer in floats, and how far each image of it may be off.

    Attributes:
        right: float32 `[n, ...]`.
        bound: largest difference of any value, float32 `[n]`; infinite where the model's own answer is not finite.
    """

    right: np.ndarray
    bound: np.ndarray

    @classmethod
    def measured(cls, right: np.ndarray, *moved: np.ndarray) -> Floats:
        """Measures the bound from the answers to moved inputs."""
        bound = _bound(right, moved) + FLOOR * (1 + _largest(right))
        return cls(right, np.where(np.isfinite(bound), bound, np.inf).astype(np.float32))

    def judge(self, found: np.ndarray) -> tuple[Figures, str | None]:
        """Returns figures for the card, and what is wrong or None.

        Args:
            found: the file's answer, of the same shape and type.
        """
        judged = np.isfinite(self.bound)
        largest = _largest(self.right)
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.abs(found.astype(np.float64) - self.right)
        off = _largest(change)
        wrong = judged & ~(off <= self.bound)
        scale = max(float(largest[judged].max(initial=0)), float(np.finfo(np.float32).tiny))
        figures = {
            "max": float(off[judged].max(initial=0) / scale),
            "mean": float(change[judged].mean() / scale) if judged.any() else 0.0,
            "unstable": int((~judged).sum()),
        }
        if not judged.any():
            return figures, "the model itself has no finite answer to any of the images"
        if not wrong.any():
            return figures, None
        worst = int(np.argmax(np.where(wrong, np.nan_to_num(off / self.bound, nan=np.inf), 0)))
        return figures, (
            f"image {worst} differs from the model by {off[worst]:.1e}, values reaching {largest[worst]:.1e}; allowed "
            f"{self.bound[worst]:.1e}" + _more(wrong)
        )


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The model's answer in pixels, and which neighbouring levels float32 can move each to.

    Attributes:
        right: uint8 `[n, height, width, channels]`.
        below: how much less each may be, uint8 as `right`.
        above: how much more, likewise.
        bound: how far float32 can move the values behind the pixels, in levels, float32 `[n]`; infinite where the
            model's own answer is not finite.
        step: what neighbouring levels differ by as pixels: 1 with 8 bits.
    """

    right: np.ndarray
    below: np.ndarray
    above: np.ndarray
    bound: np.ndarray
    step: np.ndarray

    @classmethod
    def measured(cls, levels: np.ndarray, *moved: np.ndarray, n_bins: int) -> Pixels:
        """Measures the bounds.

        Args:
            levels: the model's answer before it is rounded down to a level, `[n, height, width, channels]`.
            *moved: the same of moved inputs.
            n_bins: number of levels.
        """

        def clipped(values: np.ndarray) -> np.ndarray:
            # What lies beyond the first and last level becomes that level however far it is.
            return np.clip(np.nan_to_num(values.astype(np.float64), nan=-1e9), -0.5, n_bins + 0.5)

        step = 256 // n_bins
        middle = clipped(levels)
        # Where most images are unstable, those that are stable remain so.
        bound = _bound(middle, [clipped(values) for values in moved], UNSTABLE / 2) + FLOOR * n_bins / 2
        bound[~np.isfinite(levels).reshape(len(levels), -1).all(1)] = np.inf
        reach = bound.reshape(-1, 1, 1, 1)
        lowest, right, highest = (
            np.clip(np.floor(values), 0, n_bins - 1) * step for values in (middle - reach, middle, middle + reach)
        )
        middle, below, above = (one.astype(np.uint8) for one in (right, right - lowest, highest - right))
        return cls(middle, below, above, bound.astype(np.float32), np.array(step))

    def judge(self, found: np.ndarray) -> tuple[Figures, str | None]:
        """As `Floats.judge`; figures are in pixel values, of the images on which the model is stable."""
        stable = self.bound < UNSTABLE
        change = found.astype(np.int32) - self.right
        size = np.abs(change).reshape(len(change), -1)[stable]
        figures = {
            "max": float(size.max(initial=0)),
            "mean": float(size.mean()) if stable.any() else 0.0,
            "differing": float((size > 0).mean()) if stable.any() else 0.0,
            "unstable": int((~stable).sum()),
        }
        if not stable.any():
            return figures, (
                "the model itself is unstable on every image: inputs moved by "
                f"{PERTURBATION:g} change its values by half a level and more"
            )
        off = (change < -self.below.astype(np.int32)) | (change > self.above) | (change % self.step != 0)
        counts = off.reshape(len(off), -1).sum(1) * stable
        if not counts.any():
            return figures, None
        worst = int(np.argmax(counts))
        return figures, (
            f"{counts[worst]} subpixels of image {worst} differ from the model by up to {np.abs(change[worst]).max()}; "
            f"allowed is what moves its values by {self.bound[worst]:.1e} levels" + _more(counts > 0)
        )


Answer = Floats | Pixels


def restored(arrays: dict[str, np.ndarray]) -> Answer:
    """Returns an answer of its fields."""
    return Pixels(**arrays) if "step" in arrays else Floats(**arrays)


def _bound(right: np.ndarray, moved: list[np.ndarray] | tuple[np.ndarray, ...], most: float = np.inf) -> np.ndarray:
    """How far each image may be off by what moved inputs do to it.

    What they do to the median image is allowed to each, up to `most`: a single answer can happen to hardly change.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        changes = FACTOR * np.max([_largest(other.astype(np.float64) - right) for other in moved], 0)
    finite = changes[np.isfinite(changes)]
    return np.maximum(changes, min(np.median(finite), most) if len(finite) else 0)


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest magnitude of each image; not a number where one value is none."""
    return np.abs(values.reshape(len(values), -1)).max(1).astype(np.float64)


def _more(wrong: np.ndarray) -> str:
    others = int(wrong.sum()) - 1
    return f" (and so for {others} more of {len(wrong)} images)" if others else ""
