"""How well a score tells two kinds of images apart, and how well that is known from so many of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# Of the bootstrap: so many resamples, and the share of them that an interval holds.
RESAMPLES, INTERVAL = 1000, 0.95
# Of the known images, the share that must pass.
PASSING = 0.95


@dataclasses.dataclass(frozen=True)
class Detection:
    """How well a score tells outliers.

    Attributes:
        auroc: probability that an outlier has a higher score than a known image, ties counted by half; 0.5 is chance,
            and below it the score ranks outliers as the more usual ones.
        auroc_interval: of 95 %, from the bootstrap over both kinds of images.
        false_positives: share of outliers that pass as known, at the threshold which 95 % of the known images pass.
        false_positives_interval: of 95 %, likewise.
    """

    auroc: float
    auroc_interval: tuple[float, float]
    false_positives: float
    false_positives_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as plain JSON."""
        return dataclasses.asdict(self)


def auroc(known: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the area under the ROC curve of scores, `[n]` and `[m]`, that are higher for outliers.

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    ranked = _Ranked(known, outliers)
    return ranked.auroc(*ranked.counts())


def detection(known: np.ndarray, outliers: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Detection:
    """Measures how well scores tell outliers from known images.

    Args:
        known: scores of known images, `[n]`.
        outliers: of outliers, `[m]`; higher scores are to mean outliers.
        seed: of the bootstrap.
        resamples: of the bootstrap, each of n and m images drawn with replacement.
    """
    ranked, rng = _Ranked(known, outliers), np.random.default_rng(seed)
    counts = ranked.counts()
    drawn = [ranked.counts(rng) for _ in range(resamples)]
    ends = [50 * (1 - INTERVAL), 50 * (1 + INTERVAL)]
    low_area, high_area = np.percentile([ranked.auroc(*each) for each in drawn], ends)
    low_share, high_share = np.percentile([ranked.false_positives(*each) for each in drawn], ends)
    return Detection(
        ranked.auroc(*counts),
        (float(low_area), float(high_area)),
        ranked.false_positives(*counts),
        (float(low_share), float(high_share)),
    )


class _Ranked:
    """Scores of both kinds by their rank among all, so that a resample needs no sorting."""

    def __init__(self, known: np.ndarray, outliers: np.ndarray):
        every = np.concatenate([np.asarray(known, np.float64), np.asarray(outliers, np.float64)])
        # Infinities rank as they should; NaN as the most unusual of all, which a sum that is not finite is.
        values, ranks = np.unique(np.where(np.isnan(every), np.inf, every), return_inverse=True)
        self._size = len(values)
        self._known, self._outliers = ranks[: len(known)], ranks[len(known) :]

    def counts(self, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many known images and how many outliers have each rank, of all or of a resample."""
        kinds = (self._known, self._outliers)
        if rng is not None:
            kinds = tuple(kind[rng.integers(0, len(kind), len(kind))] for kind in kinds)  # type: ignore[assignment]
        known, outliers = (np.bincount(kind, minlength=self._size) for kind in kinds)
        return known, outliers

    @staticmethod
    def auroc(known: np.ndarray, outliers: np.ndarray) -> float:
        """Returns the area from the counts by rank."""
        below = np.cumsum(known) - known
        return float(outliers @ (below + known / 2) / (known.sum() * outliers.sum()))

    @staticmethod
    def false_positives(known: np.ndarray, outliers: np.ndarray) -> float:
        """Returns the share of outliers that pass where `PASSING` of the known images do."""
        passing = np.cumsum(known)
        # Of whole numbers: 95 of 100 images are enough, whatever 0.95 * 100 rounds to.
        last = int(np.searchsorted(passing, np.ceil(passing[-1] * PASSING - 1e-9)))
        return float(outliers[: last + 1].sum() / outliers.sum())
