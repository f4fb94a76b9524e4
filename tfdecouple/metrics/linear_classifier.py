"""Linear classifiers whose regularisation is chosen on held-out images, and the labelled images for them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError
from tfdecouple.metrics.drawn_images import draw_indices, read_images

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

    from tfdecouple.data import Source
    from tfdecouple.model import DecoupledModel

# The more standardised features there are, the smaller C must be; larger values than these only cost time.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# The least number of training images: with fewer, hardly any are held out to choose C.
LEAST = 10
# Every fifth training image is held out to choose C.
HELD_OUT = 5
MAX_ITERATIONS = 1000
# With more features than this, their covariance matrix costs more than a randomised decomposition.
_EXACT_PCA = 4096


def _linear_svm() -> Any:
    """Returns one SVM per class, against all other classes, of squared hinge loss, fitted in the primal form."""
    from sklearn.svm import LinearSVC

    return LinearSVC(dual=False, max_iter=MAX_ITERATIONS)


def _logistic_regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)


KINDS: dict[str, Callable[[], Any]] = {"linear SVM": _linear_svm, "logistic regression": _logistic_regression}


def standardize_features(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns features float32 `[n, features]` with mean 0 and standard deviation 1 over the training images.

    A feature that does not vary over the training images becomes 0. All arrays are changed in place.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(copy=False).fit(train)
    return tuple(scaler.transform(features) for features in (train, *others))


def fit_pca(features: np.ndarray, count: int, seed: int) -> PCA:
    """Returns the principal components of training features.

    There are at most `count`. n images around their mean span n - 1 dimensions, and one component more would be
    rounding that standardisation makes large.

    Args:
        features: standardised, float32 `[n, features]`, of at least two images.
        count: the largest number of components.
        seed: the seed of the randomised decomposition, which is used for more than 4,096 features.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    solver = "covariance_eigh" if features.shape[1] <= _EXACT_PCA else "randomized"
    pca = PCA(min(count, len(features) - 1, features.shape[1]), svd_solver=solver, random_state=seed)
    # One thread is enough for the reason given in `fit_classifier`.
    with threadpool_limits(1):
        return pca.fit(features)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A classifier that was fitted to all training images with the best C.

    Attributes:
        classifier: the classifier of scikit-learn.
        strength: C.
        held_out_accuracy: the accuracy on the held-out images of a classifier with this C, fitted to the others.
        tried: pairs of C and held-out accuracy, for each C that was tried.
        converged: whether the last fit ended before its number of iterations did.
    """

    classifier: Any
    strength: float
    held_out_accuracy: float
    tried: tuple[tuple[float, float], ...]
    converged: bool


def count_held_out(images: int) -> int:
    """Returns how many of the training images, whose number is `images`, are held out to choose C."""
    return max(images // HELD_OUT, 1)


def fit_classifier(
    kind: str, features: np.ndarray, labels: np.ndarray, on_fit: Callable[[int], None] = lambda fits: None
) -> Fitted:
    """Returns a classifier whose C is chosen on the last fifth of the training images, fitted to all of them.

    C rises by factors of ten. Once the held-out accuracy is more than its standard error below the best one, larger C,
    which take longest, are not tried.

    Args:
        kind: a key of `KINDS`.
        features: standardised, float32 `[n, features]`, in random order.
        labels: whole numbers `[n]`; the first four fifths must hold two kinds.
        on_fit: called with the number of fits after each fit; there are at most `len(STRENGTHS) + 1`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    held_out = count_held_out(len(labels))
    classifier, tried, best = KINDS[kind](), [], -1.0
    # A second core makes thin matrix products at most twice as fast, and on two cores with other work, threads that
    # wait for each other took 15 times as long. With one thread the results do not depend on the cores either.
    with threadpool_limits(1), warnings.catch_warnings():
        # The attribute `converged` reports it instead.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            classifier.C = strength
            classifier.fit(features[:-held_out], labels[:-held_out])
            accuracy = float(np.mean(classifier.predict(features[-held_out:]) == labels[-held_out:]))
            tried.append((strength, accuracy))
            on_fit(len(tried))
            best = max(best, accuracy)
            if accuracy < best - math.sqrt(best * (1 - best) / held_out):
                break
        strength = next(strength for strength, accuracy in tried if accuracy == best)
        # A new classifier, because the warm start of the last fit is far from the solution.
        classifier = KINDS[kind]()
        classifier.C = strength
        classifier.fit(features, labels)
    converged = bool(np.max(classifier.n_iter_) < MAX_ITERATIONS)
    return Fitted(classifier, strength, best, tuple(tried), converged)


def read_labelled(
    model: DecoupledModel, source: Source, split: str, count: int, *, seed: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns drawn images as the model sees them, and their labels, in random order: any fifth is a random choice.

    Args:
        model: the model, whose number of bits the images get.
        source: an opened data set with labels and images of the model's size.
        split: "train", "validation" or "test".
        count: how many images to draw.
        seed: the seed of the draw.
        batch_size: images that are read at once.

    Returns:
        The images, uint8 `[count, height, width, channels]`, and the labels, int32 `[count]`.

    Raises:
        DataError: for images without labels, or more images than there are.
    """
    from tfdecouple.data.labels import require_labels

    images, labels = read_images(model, source, split, draw_indices(source, split, count, seed), batch_size)
    return images, require_labels(source, split, labels, "a linear classifier")


def require_images(train_images: int) -> None:
    """Refuses fewer training images than a classifier can be fitted to.

    Raises:
        DataError: with the number.
    """
    if train_images < LEAST:
        raise DataError(f"the number of training images is {train_images}; a linear classifier needs at least {LEAST}")


def require_classes(source: Source, labels: np.ndarray) -> None:
    """Refuses training images of a single class, apart from the held-out images.

    Raises:
        DataError: with the number of images.
    """
    fitted = labels[: -count_held_out(len(labels))]
    if len(np.unique(fitted)) < 2:
        raise DataError(
            f"the {len(fitted)} training images of {source.title} to fit on are all of one class; "
            "a linear classifier needs two or more, so take more images or other data"
        )
