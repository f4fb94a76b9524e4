"""Linear classifiers on standardised features, whose strength of regularisation is chosen on held-out images."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import scipy.optimize
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

# Standardised features need a C that is the smaller the more of them there are; larger ones only cost time.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# Training images; fewer are too few to fit anything on and to choose C by.
LEAST = 10
# Every fifth training image judges C.
HELD_OUT = 5
MAX_ITERATIONS = 1000
_ROWS = 1024
# Above this many features their covariance matrix costs more than a randomised decomposition.
_EXACT_PCA = 4096


class Classifier(Protocol):
    """What a linear classifier can do, in scikit-learn's words."""

    n_iter_: Any

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns the label of each row of features, float32 `[n, features]`."""


class LinearSvm:
    """A one-against-the-rest linear SVM with squared hinge loss: scikit-learn's `LinearSVC`, in float32.

    It minimises for each class |w|^2 / 2 + C sum_i max(0, 1 - t_i (w x_i + b))^2, b being part of w, which is
    `LinearSVC`'s objective. LIBLINEAR itself copies the features to 24 bytes a value on one core (4 GB for 50,000
    images of 3,072 values); here all classes share two float32 matrix products an iteration, and nothing is copied.

    Attributes:
        coef_: float64 `[classes, features]`.
        intercept_: float64 `[classes]`.
        classes_: the labels, `[classes]`.
        n_iter_: iterations of L-BFGS in the last fit.

    Args:
        C: weight of the losses against |w|^2 / 2; may be changed between fits.
        tol: the largest entry of the gradient of the mean loss at which a fit ends.
    """

    def __init__(self, C: float = 1.0, tol: float = 1e-4):  # noqa: N803 - scikit-learn's name
        self.C = C
        self.tol = tol
        self._weights: np.ndarray | None = None

    def fit(self, features: np.ndarray, labels: np.ndarray) -> LinearSvm:
        """Fits; a second fit begins at the solution of the first.

        Args:
            features: float32 `[n, features]`.
            labels: whole numbers `[n]`, of at least two kinds.
        """
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        count, width = features.shape
        targets = np.full((len(self.classes_), count), -1, np.float32)
        targets[numbers, np.arange(count)] = 1
        shape = (len(self.classes_), width + 1)
        if self._weights is None or self._weights.shape != shape:
            self._weights = np.zeros(shape)
        decay = 1 / (self.C * count)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = flat.reshape(shape)
            single = weights.astype(np.float32)
            slack = np.maximum(1 - targets * (single[:, :-1] @ features.T + single[:, -1:]), 0)
            # Sums in float64, since L-BFGS' line search compares nearly equal ones.
            value = np.square(slack, dtype=np.float64).sum() / count + decay / 2 * np.square(weights).sum()
            slope = targets * slack * np.float32(-2 / count)
            gradient = decay * weights
            gradient[:, :-1] += slope @ features
            gradient[:, -1] += slope.sum(1, dtype=np.float64)
            return value, gradient.ravel()

        found = scipy.optimize.minimize(
            objective,
            self._weights.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_ITERATIONS, "gtol": self.tol, "ftol": 64 * np.finfo(float).eps, "maxls": 50},
        )
        self._weights = found.x.reshape(shape)
        self.n_iter_ = found.nit
        self.coef_, self.intercept_ = self._weights[:, :-1], self._weights[:, -1]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns the label of each row, `[n]`, for features float32 `[n, features]`."""
        scores = features @ self.coef_.T.astype(np.float32) + self.intercept_
        return self.classes_[scores.argmax(1)]


KINDS: dict[str, Callable[[], Any]] = {
    "linear SVM": LinearSvm,
    "logistic regression": lambda: LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True),
}


@dataclasses.dataclass(frozen=True)
class Standardizer:
    """Subtracts the mean and divides by the standard deviation, of training images, each feature's own.

    Attributes:
        mean: float32 `[features]`.
        scale: float32 `[features]`; 1 for a feature that does not vary.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Standardizer:
        """Measures float32 `[n, features]`, in float64 a few rows at a time."""
        mean = features.mean(0, dtype=np.float64)
        squares = np.zeros_like(mean)
        for start in range(0, len(features), _ROWS):
            squares += np.square(features[start : start + _ROWS] - mean).sum(0)
        deviation = np.sqrt(squares / len(features))
        # A constant's deviation is its rounding error.
        varies = deviation > 1e-6 * np.abs(mean)
        return cls(mean.astype(np.float32), np.where(varies, deviation, 1).astype(np.float32))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Standardises float32 `[n, features]` in place and returns it."""
        features -= self.mean
        features /= self.scale
        return features


def components_of(wanted: int, images: int, features: int) -> int:
    """Returns how many principal components there are to take, of so many as are wanted.

    n images around their mean span n - 1 dimensions; one more would be rounding, standardised.

    >>> components_of(64, 10_000, 3072), components_of(64, 50, 3072), components_of(256, 1000, 192)
    (64, 49, 192)
    """
    return min(wanted, images - 1, features)


def fit_pca(features: np.ndarray, wanted: int, seed: int) -> PCA:
    """Returns the principal components of training features, for comparison at equal numbers of dimensions.

    Args:
        features: standardised, float32 `[n, features]`, of two images or more.
        wanted: how many, where there are so many: see `components_of`.
        seed: of the randomised decomposition, which more than 4,096 features get.
    """
    exact = features.shape[1] <= _EXACT_PCA
    components = components_of(wanted, *features.shape)
    pca = PCA(components, svd_solver="covariance_eigh" if exact else "randomized", random_state=seed)
    # See fit_classifier.
    with threadpool_limits(1):
        return pca.fit(features)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A classifier fitted on all training images with the C that was best on those held out.

    Attributes:
        classifier: the classifier.
        strength: C.
        held_out_accuracy: with this C, of the classifier fitted on the other training images.
        tried: (C, held-out accuracy) of each C that was tried.
        converged: whether the last fit ended before its number of iterations did.
    """

    classifier: Classifier
    strength: float
    held_out_accuracy: float
    tried: tuple[tuple[float, float], ...]
    converged: bool


def held_out_count(images: int) -> int:
    """Returns how many training images judge C."""
    return max(images // HELD_OUT, 1)


def fit_classifier(
    kind: str, features: np.ndarray, labels: np.ndarray, on_fit: Callable[[float], None] = lambda strength: None
) -> Fitted:
    """Chooses C on the last fifth of the training images and fits on all of them.

    C rises by factors of ten; once the held-out accuracy has fallen by more than its standard error below the best,
    larger ones, which take longest, are not tried.

    Args:
        kind: a key of `KINDS`.
        features: standardised, float32 `[n, features]`, in random order.
        labels: whole numbers `[n]`; the first four fifths must hold two kinds.
        on_fit: called with each C once it is tried.
    """
    held_out = held_out_count(len(labels))
    classifier, tried = KINDS[kind](), []
    best = -1.0
    # On one core: thin matrix products gain at most a factor of two from a second one, and on two cores that others use
    # as well, threads that wait for each other took 15 times as long. Results do not depend on the cores either.
    with threadpool_limits(1), warnings.catch_warnings():
        # Told by `converged`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            classifier.C = strength
            classifier.fit(features[:-held_out], labels[:-held_out])
            accuracy = float(np.mean(classifier.predict(features[-held_out:]) == labels[-held_out:]))
            tried.append((strength, accuracy))
            on_fit(strength)
            best = max(best, accuracy)
            if accuracy < best - math.sqrt(best * (1 - best) / held_out):
                break
        strength = next(strength for strength, accuracy in tried if accuracy == best)
        # From the start: what was fitted last is far from it.
        classifier = KINDS[kind]()
        classifier.C = strength
        classifier.fit(features, labels)
    converged = bool(np.max(classifier.n_iter_) < MAX_ITERATIONS)
    return Fitted(classifier, strength, best, tuple(tried), converged)
