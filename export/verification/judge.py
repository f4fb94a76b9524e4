"""Whether a file's answers are the model's, image by image, measured by how stable the model itself is on each image.

float32 rounds every number to a relative 6e-8, and every runtime adds up in an order of its own: two right programs
differ. By how much depends on the image. So the model is asked again with codes and inputs moved by a relative 1e-6
(`cases.py`), and what it answers then, its reaction, is the measure of what a file may differ by.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# By how much, relative to a value or to the range of x, inputs are moved to see how the model reacts.
PERTURBATION = 1e-6
# A file may differ by so many times the largest reaction. Measured: 0.03 to 1.1 times.
FACTOR = 4.0
# What rounding alone does where nothing reacts: of the largest value of an image, and absolutely, since z, v and
# log-variances near 0 are sums of numbers of size 1.
FLOOR = 2e-6
# An image on which float32 moves values by half a level or more is unstable: its pixels can say nothing of a file.
UNSTABLE = 0.5
# How many subpixels of an image may differ beyond those that react: a count of few has that much chance in it.
_CHANCE = 8

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
    def measured(cls, right: np.ndarray, moved: list[np.ndarray]) -> Floats:
        """Measures the bound from the answers to moved inputs."""
        with np.errstate(invalid="ignore", over="ignore"):
            reaction = np.max([_largest(other.astype(np.float64) - right) for other in moved], 0)
            bound = FACTOR * reaction + FLOOR * (1 + _largest(right))
        return cls(right, np.where(np.isfinite(bound), bound, np.inf).astype(np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what a file of cases keeps."""
        return {"right": self.right, "bound": self.bound}

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
        excess = np.where(wrong, np.nan_to_num(off / self.bound, nan=np.inf), 0)
        worst = int(np.argmax(excess))
        return figures, (
            f"image {worst} differs from the model by {off[worst]:.1e}, values reaching {largest[worst]:.1e}; allowed "
            f"{self.bound[worst]:.1e}, {FACTOR:g} times what inputs moved by {PERTURBATION:g} change" + _more(wrong)
        )


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The model's answer in pixels, and which subpixels float32 can move to a neighbouring level.

    Attributes:
        right: uint8 `[n, height, width, channels]`.
        bound: how far float32 can move the values behind the pixels, in levels, float32 `[n]`; infinite where the
            model's own answer is not finite.
        near: bool as `right`: where the model's value is nearer than that to the border of two levels.
        moved: how many subpixels of each image changed in the model where its inputs were moved, int32 `[n]`.
        step: what neighbouring levels differ by as pixels: 1 with 8 bits.
    """

    right: np.ndarray
    bound: np.ndarray
    near: np.ndarray
    moved: np.ndarray
    step: int

    @classmethod
    def measured(cls, levels: np.ndarray, moved: list[np.ndarray], n_bins: int) -> Pixels:
        """Measures the bounds.

        Args:
            levels: the model's answer before it is rounded down to a level, `[n, height, width, channels]`.
            moved: the same of moved inputs.
            n_bins: number of levels.
        """

        def clipped(values: np.ndarray) -> np.ndarray:
            # What lies beyond the first and last level becomes that level however far it is.
            return np.clip(np.nan_to_num(values.astype(np.float64), nan=-1e9), -0.5, n_bins + 0.5)

        def rounded(values: np.ndarray) -> np.ndarray:
            return np.clip(np.floor(values), 0, n_bins - 1)

        middle, others = clipped(levels), [clipped(values) for values in moved]
        bound = FACTOR * np.max([_largest(other - middle) for other in others], 0) + FLOOR * n_bins / 2
        bound[~np.isfinite(levels).reshape(len(levels), -1).all(1)] = np.inf
        border = np.clip(np.round(middle), 1, n_bins - 1)
        changed = [(rounded(other) != rounded(middle)).reshape(len(middle), -1).sum(1) for other in others]
        step = 256 // n_bins
        return cls(
            right=(rounded(middle) * step).astype(np.uint8),
            bound=bound.astype(np.float32),
            near=np.abs(middle - border) <= bound.reshape(-1, 1, 1, 1),
            moved=np.max(changed, 0).astype(np.int32),
            step=step,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what a file of cases keeps."""
        near = np.packbits(self.near)
        return {
            "right": self.right,
            "bound": self.bound,
            "near": near,
            "moved": self.moved,
            "step": np.array(self.step),
        }

    def judge(self, found: np.ndarray) -> tuple[Figures, str | None]:
        """As `Floats.judge`; figures are in pixel values."""
        stable = self.bound < UNSTABLE
        change = np.abs(found.astype(np.int32) - self.right)
        each = change.reshape(len(change), -1)
        differing, largest = (each > 0).sum(1), each.max(1)
        figures = {
            "max": float(largest[stable].max(initial=0)),
            "mean": float(each[stable].mean()) if stable.any() else 0.0,
            "differing": float((each[stable] > 0).mean()) if stable.any() else 0.0,
            "unstable": int((~stable).sum()),
        }
        if not stable.any():
            return figures, (
                "the model itself is unstable on every image: inputs moved by "
                f"{PERTURBATION:g} change its values by half a level and more"
            )
        far = ((change > 0) & ~self.near).reshape(len(change), -1).sum(1)
        if (wrong := stable & (far > 0)).any():
            worst = int(np.argmax(np.where(wrong, far, 0)))
            return figures, (
                f"{far[worst]} subpixels of image {worst} differ from the model, by up to {largest[worst]}, where its "
                f"values are more than {self.bound[worst]:.1e} levels from the next level, as far as float32 can move "
                "them; allowed 0" + _more(wrong)
            )
        if (wrong := stable & ~np.isin(each, (0, self.step)).all(1)).any():
            worst = int(np.argmax(np.where(wrong, largest, 0)))
            return figures, (
                f"subpixels of image {worst} differ from the model by up to {largest[worst]}; allowed is one level, "
                f"{self.step}, of values on the border of two" + _more(wrong)
            )
        allowed = (FACTOR * self.moved + _CHANCE).astype(np.int64)
        if (wrong := np.isfinite(self.bound) & (differing > allowed)).any():
            worst = int(np.argmax(np.where(wrong, differing - allowed, 0)))
            return figures, (
                f"{differing[worst]} subpixels of image {worst} differ from the model; allowed {allowed[worst]}, since "
                f"{self.moved[worst]} change in the model where its inputs are moved by {PERTURBATION:g}" + _more(wrong)
            )
        return figures, None


Answer = Floats | Pixels


def restored(arrays: dict[str, np.ndarray]) -> Answer:
    """Returns the answer that `arrays()` was called of."""
    if "near" not in arrays:
        return Floats(**arrays)
    right = arrays["right"]
    near = np.unpackbits(arrays["near"], count=right.size).astype(bool).reshape(right.shape)
    return Pixels(right, arrays["bound"], near, arrays["moved"], int(arrays["step"]))


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest magnitude of each image; not a number where one value is none."""
    return np.abs(values.reshape(len(values), -1)).max(1).astype(np.float64)


def _more(wrong: np.ndarray) -> str:
    others = int(wrong.sum()) - 1
    return f" (and so for {others} more of {len(wrong)} images)" if others else ""
