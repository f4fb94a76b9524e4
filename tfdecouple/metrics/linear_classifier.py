"""Functions that fit linear classifiers, choose their regularisation on held-out images, and read labelled images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfdecouple.metrics.drawn_images import draw_image_indices, read_drawn_images

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

    from tfdecouple.data import Source
    from tfdecouple.model import DecoupledModel

# Candidate values of C, the inverse strength of the regularisation.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# One in five training images is held out to choose C, the inverse strength of the regularisation.
HELD_OUT = 5
MAX_ITERATIONS = 1000
# Largest number of features for an exact PCA. For more, the covariance matrix takes longer than a randomised PCA.
_EXACT_PCA = 4096


def _make_linear_svm() -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(dual=False, max_iter=MAX_ITERATIONS)


def _make_logistic_regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "linear SVM": _make_linear_svm,
    "logistic regression": _make_logistic_regression,
}


def standardize_features(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scales arrays in place so that `train` has mean 0 and deviation 1; a constant feature of `train` becomes 0."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(copy=False).fit(train)
    return tuple(scaler.transform(features) for features in (train, *others))


def flatten_images(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns each array of images, `[n, ...]`, as an array of features, float32 `[n, features]`."""
    return tuple(array.reshape(len(array), -1).astype(np.float32, copy=False) for array in arrays)


def fit_pca(features: np.ndarray, count: int, seed: int) -> PCA:
    """Returns a PCA of standardised training features, float32 `[n, features]`, with at most `count` components.

    The PCA has at most n - 1 components, because n images around their mean span n - 1 dimensions. A further component
    would be rounding error, which standardisation would enlarge. For more than 4,096 features the PCA is randomised
    with `seed`.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    solver = "covariance_eigh" if features.shape[1] <= _EXACT_PCA else "randomized"
    pca = PCA(min(count, len(features) - 1, features.shape[1]), svd_solver=solver, random_state=seed)
    # On cores that other programs use, too, one thread is fastest, because several threads wait for each other.
    with threadpool_limits(1):
        return pca.fit(features)


class FittedClassifier(NamedTuple):
    """A classifier of scikit-learn, fitted to all training images with the best C, the inverse regularisation strength.

    Attributes:
        classifier: the fitted classifier.
        strength: the best value of C.
        held_out_accuracy: the accuracy, on held-out images, of a classifier with this C that was fitted without them.
        tried: pairs [C, held-out accuracy], one for each value of C that was tried.
        converged: whether the final fit converged.
    """

    classifier: Any
    strength: float
    held_out_accuracy: float
    tried: list[list[float]]
    converged: bool


def fit_classifier(
    kind: str, features: np.ndarray, labels: np.ndarray, on_fit: Callable[[int], None] = lambda fits: None
) -> FittedClassifier:
    """Chooses C on the last fifth of the training images; returns a classifier with this C, fitted to all the images.

    The tried values of C, the inverse strength of the regularisation, rise by factors of ten. The search stops when the
    accuracy on the last fifth is more than its standard error below the best one, because a larger C takes longer.

    Args:
        kind: a key of `CLASSIFIERS`.
        features: standardised features of five or more training images, float32 `[n, features]`, in random order.
        labels: the labels of the images, int `[n]`; the first four fifths must have two different labels.
        on_fit: a callback that receives the count of fits so far.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    held_out = len(labels) // HELD_OUT
    classifier, tried, best = CLASSIFIERS[kind](), [], -1.0
    # With one thread, results do not depend on the number of cores. More threads are at most twice as fast here, and 15
    # times as slow on cores with other work, because threads wait for each other.
    with threadpool_limits(1), warnings.catch_warnings():
        # The attribute `converged` of the result says the same as this warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            classifier.set_params(C=strength).fit(features[:-held_out], labels[:-held_out])
            accuracy = float(np.mean(classifier.predict(features[-held_out:]) == labels[-held_out:]))
            tried.append([strength, accuracy])
            on_fit(len(tried))
            best = max(best, accuracy)
            if accuracy < best - math.sqrt(best * (1 - best) / held_out):
                break
        strength = next(strength for strength, accuracy in tried if accuracy == best)
        # A new classifier is fitted, because a warm start from the last value of C would be far from the solution.
        classifier = CLASSIFIERS[kind]().set_params(C=strength).fit(features, labels)
    return FittedClassifier(classifier, strength, best, tried, bool(np.max(classifier.n_iter_) < MAX_ITERATIONS))


def read_labelled_images(
    model: DecoupledModel, source: Source, split: str, count: int, *, seed: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `count` random images, uint8 `[n, ...]`, and labels, int32 `[n]`; DataError without a label."""
    from tfdecouple.data.labels import require_labels

    images, labels = read_drawn_images(model, source, split, draw_image_indices(source, split, count, seed), batch_size)
    return images, require_labels(source, split, labels, "a linear classifier")
