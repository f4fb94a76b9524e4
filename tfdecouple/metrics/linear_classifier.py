"""Linear classifiers on standardised features, whose strength of regularisation is chosen on held-out images."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

# Standardised features need a C that is the smaller the more of them there are; larger ones only cost time.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# Training images; fewer are too few to fit anything on and to choose C by.
LEAST = 10
# Every fifth training image judges C.
HELD_OUT = 5
MAX_ITERATIONS = 1000
# Above this many features their covariance matrix costs more than a randomised decomposition.
_EXACT_PCA = 4096


class Classifier(Protocol):
    """What a linear classifier can do, in scikit-learn's words."""

    n_iter_: Any

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns the label of each row of features, float32 `[n, features]`."""


def _linear_svm() -> Classifier:
    """Returns an SVM for each class against the rest, of squared hinge loss, fitted in the primal form."""
    from sklearn.svm import LinearSVC

    return LinearSVC(dual=False, max_iter=MAX_ITERATIONS)


def _logistic_regression() -> Classifier:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)


KINDS: dict[str, Callable[[], Any]] = {"linear SVM": _linear_svm, "logistic regression": _logistic_regression}


def standardize(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns features float32 `[n, features]` in units of the training images, each feature's own, with mean 0.

    A feature that does not vary over the training images has the unit 1. All arrays are changed in place.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(copy=False).fit(train)
    return tuple(scaler.transform(each) for each in (train, *others))


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
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

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
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

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
