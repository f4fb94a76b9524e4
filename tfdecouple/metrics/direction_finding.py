"""Directions in z that change one thing about an image: found on training images, judged on others.

By the difference of means, as in Glow (Kingma and Dhariwal, 2018, section 6), and by the normal of a regularised linear
classifier, which leaves alone what merely goes together with the label. The classifier takes z in the units that the
prior gives it: its regularisation then keeps it off dimensions that the encoder has given up, which hardly vary from
image to image, may yet tell labels apart, and change nothing when they are moved.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV
from threadpoolctl import threadpool_limits

from tfdecouple.metrics.linear_classifier import STRENGTHS, fit_classifier
from tfdecouple.metrics.outliers import auroc
from tfdecouple.runs.latent_directions import CLASSIFIER, MEANS, Direction

# Fewer images with or without it say nothing; the classifier holds a fifth of them out to choose its strength.
LEAST = 5


def direction_of_a_label(
    name: str, z: np.ndarray, has: np.ndarray, held_z: np.ndarray, held_has: np.ndarray, seed: int
) -> list[Direction]:
    """Finds the direction from images without something to images with it, by both methods.

    Where one kind is rarer, the classifier sees as many of the other, drawn: then its threshold and the choice of its
    strength are fair to both.

    Args:
        name: of the direction.
        z: of the training images, float32 `[n, d_z]`.
        has: whether each has it, bool `[n]`; at least `LEAST` do and do not.
        held_z: of the held-out images, float32 `[m, d_z]`.
        held_has: bool `[m]`.
        seed: of the draw.

    Returns:
        The difference of means and the normal of the classifier. Figures: `accuracy`, the mean of the shares that are
        told right of the held-out images with it and of those without it, so that 0.5 is chance; its binomial
        `standard_error`; `auroc`; how many images there were; and C, where there is one. Of held-out images of one kind
        alone there is no accuracy: None.
    """
    means = z[has].mean(0, dtype=np.float64), z[~has].mean(0, dtype=np.float64)
    difference = means[0] - means[1]
    counts = {
        "kind": "label",
        "images_with": int(has.sum()),
        "images_without": int((~has).sum()),
        "held_out_with": int(held_has.sum()),
        "held_out_without": int((~held_has).sum()),
    }
    threshold = difference @ (means[0] + means[1]) / 2
    by_means = counts | _accuracy(held_z @ difference - threshold, held_has)

    chosen = _balanced(has, seed)
    centre = z[chosen].mean(0, dtype=np.float64)
    fitted = fit_classifier("logistic regression", _centred(z[chosen], centre), has[chosen])
    classifier: Any = fitted.classifier
    weights = classifier.coef_[0].astype(np.float64)
    scores = _centred(held_z, centre) @ weights + classifier.intercept_[0]
    by_classifier = counts | _accuracy(scores, held_has) | {"C": fitted.strength, "converged": fitted.converged}
    return [
        Direction(name, MEANS, difference.astype(np.float32), by_means),
        Direction(name, CLASSIFIER, _along(weights, difference), by_classifier),
    ]


def direction_of_a_number(
    name: str, z: np.ndarray, values: np.ndarray, held_z: np.ndarray, held_values: np.ndarray
) -> list[Direction]:
    """Finds the direction along which a number of images grows, by both methods.

    Args:
        name: of the direction.
        z: of the training images, float32 `[n, d_z]`.
        values: of each, float64 `[n]`, not all the same.
        held_z: of the held-out images, float32 `[m, d_z]`.
        held_values: float64 `[m]`.

    Returns:
        The slope of the mean of z for a standard deviation of the number, and the normal of a ridge regression, whose
        strength is chosen by leaving out one image at a time. Figures: `r2` on the held-out images of the number as
        foretold by a line along the direction (for the regression, by itself), None where they are all of one number;
        how many images there were; and the strength.
    """
    mean, deviation = values.mean(), values.std()
    standard = (values - mean) / deviation
    slope = (z - z.mean(0, dtype=np.float64)).T @ standard / len(z)
    counts = {"kind": "number", "images": len(values), "held_out": len(held_values), "deviation": float(deviation)}
    along = z @ slope
    spread = along.var()
    factor = float(np.mean((along - along.mean()) * standard) / spread) if spread > 0 else 0.0
    by_slope = counts | {"r2": _r2(factor * (held_z @ slope - along.mean()), (held_values - mean) / deviation)}

    centre = z.mean(0, dtype=np.float64)
    with threadpool_limits(1):
        ridge = RidgeCV(alphas=[1 / strength for strength in STRENGTHS]).fit(_centred(z, centre), standard)
    # scikit-learn refuses to foretell nothing.
    foretold = ridge.predict(_centred(held_z, centre)) if len(held_z) else np.zeros(0)
    by_ridge = counts | {"r2": _r2(foretold, (held_values - mean) / deviation), "alpha": float(ridge.alpha_)}
    return [
        Direction(name, MEANS, slope.astype(np.float32), by_slope),
        Direction(name, CLASSIFIER, _along(np.asarray(ridge.coef_, np.float64), slope), by_ridge),
    ]


def _centred(z: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return (z - centre).astype(np.float32)


def _along(normal: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Returns a multiple of a normal that goes as far along it as the difference of means does."""
    square = normal @ normal
    return ((abs(normal @ difference) / square if square > 0 else 0.0) * normal).astype(np.float32)


def _balanced(has: np.ndarray, seed: int) -> np.ndarray:
    """Returns indices of as many with as without, in random order, so that any fifth of them has both."""
    rng = np.random.default_rng(seed)
    kinds = [rng.permutation(np.flatnonzero(has)), rng.permutation(np.flatnonzero(~has))]
    count = min(map(len, kinds))
    # In turn: of ten images the classifier's last fifth then has one of each.
    return np.stack([kind[:count] for kind in kinds], 1).ravel()


def _accuracy(scores: np.ndarray, has: np.ndarray) -> dict[str, float | None]:
    """Returns what held-out images say of scores that are above 0 for those with it."""
    if has.all() or not has.any():
        return {"accuracy": None, "standard_error": None, "auroc": None}
    shares = np.mean(scores[has] > 0), np.mean(scores[~has] <= 0)
    sizes = has.sum(), (~has).sum()
    variance = sum(share * (1 - share) / size for share, size in zip(shares, sizes, strict=True)) / 4
    return {
        "accuracy": float(np.mean(shares)),
        "standard_error": math.sqrt(variance),
        "auroc": float(auroc(scores[~has], scores[has])),
    }


def _r2(foretold: np.ndarray, values: np.ndarray) -> float | None:
    total = np.square(values - values.mean()).sum() if len(values) > 1 else 0.0
    return float(1 - np.square(values - foretold).sum() / total) if total > 0 else None
