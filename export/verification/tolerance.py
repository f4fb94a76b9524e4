"""The tolerance check: an exported file must give the same pixels as the Keras model, and floats within a tolerance.

float32 rounds every number to a relative 6e-8, and every runtime sums in another order. So two programs without a fault
differ, on some images more than on others. The Keras model therefore answers twice (`KerasAnswers`): for inputs, and
for inputs perturbed by a relative 1e-6. A file's answer is accepted if it differs from the first answer by at most 4
times the difference between the two answers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# The relative size of random changes of inputs, which show how much rounding can change the Keras model's answers.
PERTURBATION = 1e-6
# If inputs change by `PERTURBATION`, the Keras model's answer changes. This multiple of the change is the tolerance of
# a file's answer. Files without a fault differed from the model by 0.03 to 1.1 times the change.
FACTOR = 4.0
# To allow for rounding, each tolerance is raised by this fraction of the magnitude of the answer.
FLOOR = 2e-6
# An image whose tolerance is at least this many bins is not compared, because rounding alone changes its pixels.
UNSTABLE = 0.5


@dataclasses.dataclass(frozen=True)
class Answer:
    """The Keras model's answer for one output of an endpoint, and each image's tolerance for the answer of a file.

    Attributes:
        values: the answer: floats, float32 `[n, ...]`, or pixels, uint8 `[n, height, width, channels]`.
        bound: the tolerance for each image, float32 `[n]`; for pixels in units of bins, before rounding. It is infinite
            for an image that is not compared, because the model's answer to the image is unstable or not finite.
        exact: for pixels, bool in the shape of `values`: whether the file's pixel must be equal. False if the value
            before rounding lies within `bound` of a border between two bins; then one bin of difference is accepted.
            Empty for floats.
        step: the difference between the pixels of neighbouring bins, 1 with 8 bits; 0 for floats.
    """

    values: np.ndarray
    bound: np.ndarray
    exact: np.ndarray
    step: np.ndarray

    @classmethod
    def from_floats(cls, values: np.ndarray, perturbed: np.ndarray, scale: float = 1.0) -> Answer:
        """Returns the `Answer` for an output of floats, from two answers of the Keras model, float32 `[n, ...]`.

        `values` is the answer to the inputs, and `perturbed` the answer to inputs that are changed by a relative 1e-6.
        `scale` is `Array.scale`, the magnitude of the terms whose sum the output is.
        """
        bound = _compute_tolerances(values, perturbed) + FLOOR * (scale + _find_largest(values))
        bound = np.where(np.isfinite(bound), bound, np.inf).astype(np.float32)
        return cls(values, bound, np.zeros(0, bool), np.array(0))

    @classmethod
    def from_bins(cls, bins: np.ndarray, perturbed: np.ndarray, n_bins: int) -> Answer:
        """Returns the `Answer` for an output of pixels, from two answers of the Keras model.

        `bins` is the answer to the inputs, and `perturbed` the answer to inputs that are changed by a relative 1e-6;
        both are `[n, height, width, channels]`, in units of bins, before they are rounded down.
        """

        def clip(values: np.ndarray) -> np.ndarray:
            # Values outside the bins all get the pixel of the first or the last bin, so their distance is limited.
            return np.clip(np.nan_to_num(values.astype(np.float64), nan=-1e9), -0.5, n_bins + 0.5)

        inside = clip(bins)
        bound = _compute_tolerances(inside, clip(perturbed), UNSTABLE / 2) + FLOOR * n_bins / 2
        bound[(bound >= UNSTABLE) | ~np.isfinite(bins).reshape(len(bins), -1).all(1)] = np.inf
        border = np.clip(np.round(inside), 1, n_bins - 1)
        exact = np.abs(inside - border) > bound.reshape(-1, 1, 1, 1)
        step = 256 // n_bins
        values = (np.clip(np.floor(inside), 0, n_bins - 1) * step).astype(np.uint8)
        return cls(values, bound.astype(np.float32), exact, np.array(step))

    def compare_file(self, found: np.ndarray) -> tuple[dict[str, float], str | None]:
        """Compares an exported file's answer `found` with this answer of the Keras model.

        Returns:
            {"max": largest difference, "mean": mean difference (both of floats: divided by the largest value),
            "unstable": count of images that are not compared, "differing": fraction of the colour values that differ
            (pixels only)}, and the problem in one line, or None.
        """
        compared, pixels = np.isfinite(self.bound), self.values.dtype == np.uint8
        count = len(self.values)
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.abs(found.astype(np.float64) - self.values.astype(np.float64)).reshape(count, -1)
        if pixels:
            wrong = (change > 0) & (self.exact.reshape(count, -1) | (change != self.step))
        else:
            wrong = ~(change <= self.bound[:, None])
        wrong_values = wrong.sum(1) * compared
        largest, compared_change = _find_largest(self.values), change[compared]
        scale = 1.0 if pixels else max(float(largest[compared].max(initial=0)), float(np.finfo(np.float32).tiny))
        differences = {
            "max": float(compared_change.max(initial=0) / scale),
            "mean": float(compared_change.mean() / scale) if compared.any() else 0.0,
            "unstable": int((~compared).sum()),
        }
        if pixels:
            differences["differing"] = float((compared_change > 0).mean()) if compared.any() else 0.0
        if not compared.any():
            return differences, (
                "the Keras model itself has no stable answer to any of the images: inputs perturbed by "
                f"{PERTURBATION:g} change its values by half a bin and more, or the values are not finite"
            )
        if not wrong_values.any():
            return differences, None
        worst = int(np.argmax(np.where(wrong_values, np.nan_to_num(change.max(1), nan=np.inf), -1)))
        others = int((wrong_values > 0).sum()) - 1
        return differences, (
            f"{wrong_values[worst]} values of image {worst} differ from the model, by up to {change[worst].max():.2g} "
            f"where the largest is {largest[worst]:.2g}; allowed is "
            + (f"what changes its values by {self.bound[worst]:.1e} bins" if pixels else f"{self.bound[worst]:.1e}")
            + (f" (and {others} more of {count} images are wrong)" if others else "")
        )


def _compute_tolerances(values: np.ndarray, perturbed: np.ndarray, most: float = np.inf) -> np.ndarray:
    """Returns a tolerance for each image, float64 `[n]`: 4 times the largest change from `values` to `perturbed`.

    The two are the Keras model's answers to inputs and to slightly changed inputs. Each tolerance is raised to the
    median over all images, or to `most` if that is smaller, because the change of one image can be small by chance.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        tolerances = FACTOR * _find_largest(perturbed.astype(np.float64) - values)
    finite = tolerances[np.isfinite(tolerances)]
    return np.maximum(tolerances, min(np.median(finite), most) if len(finite) else 0)


def _find_largest(values: np.ndarray) -> np.ndarray:
    return np.abs(values.astype(np.float64)).reshape(len(values), -1).max(1)
