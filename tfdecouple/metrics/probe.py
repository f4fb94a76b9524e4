"""How much linear classifiers find out about an image's class from its codes (paper section 3.2, Table 4)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError, UserError
from tfdecouple.metrics.base import Metric, Result, say
from tfdecouple.metrics.drawn_images import drawn_indices, encode_images, subset_batches
from tfdecouple.metrics.linear_classifier import (
    KINDS,
    LEAST,
    STRENGTHS,
    Fitted,
    components_of,
    fit_classifier,
    fit_pca,
    held_out_count,
    standardize,
)
from tfdecouple.runtime.process import at_least
from tfdecouple.runtime.progress import TimeLeft

if TYPE_CHECKING:
    from tfdecouple.data import Source
    from tfdecouple.model import DecoupledModel

# What is taken unless told otherwise, of training and of test images: so many, and of so many colour values, at most.
# The time of a fit goes with these.
IMAGES, VALUES = 10_000, 2**26


class LinearProbe(Metric):
    """What linear classifiers know of the label."""

    name = "probe"
    on_split = False

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --probe and --probe-images."""
        group.add_argument(
            "--probe",
            action="store_true",
            help="also linear classifiers of z, v and pixels on test images; needs labels",
        )
        group.add_argument(
            "--probe-images",
            type=int,
            default=0,
            metavar="N",
            help="training images for them, drawn (default 0: as --images, else at most 10000, fewer where they are "
            "large)",
        )

    def check(self) -> None:
        """Refuses a number of images below 0."""
        at_least(self.options, "probe_images", 0)

    def measure(self, evaluation: Any) -> Result:
        """Fits the classifiers and counts the test images that they tell."""
        from tfdecouple.visualization.confusion import confusion_picture

        options, source = self.options, evaluation.source
        sizes, asked = source.sizes, options.images
        fitting = min(IMAGES, VALUES // math.prod(evaluation.opened.config.model.image_shape))
        of_train = max(asked, LEAST) if asked else fitting
        report = linear_probe(
            evaluation.opened.model,
            source,
            train_images=options.probe_images or min(sizes["train"], of_train),
            test_images=min(asked or fitting, sizes["test"]),
            seed=options.seed,
            batch_size=evaluation.batch_size,
            say=say,
        )
        return Result(report, table(report), confusion_picture(report, source.label_names))


@dataclasses.dataclass
class Labelled:
    """The images of one split, in random order.

    Attributes:
        images: uint8 `[n, height, width, channels]`.
        labels: int32 `[n]`.
    """

    images: np.ndarray
    labels: np.ndarray


def linear_probe(
    model: DecoupledModel,
    source: Source,
    *,
    train_images: int,
    test_images: int,
    seed: int,
    batch_size: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measures how well a linear SVM and logistic regression classify images by their codes (paper Table 4).

    Features are the raw pixels, z (the posterior mean) and v, of images that are not augmented. So that z is not judged
    by having fewer dimensions, pixels and v are also reduced to d_z dimensions by PCA. All features are standardised.
    Scaling, PCA, C and the classifiers depend on the training images alone; C is chosen on a fixed fifth of them. A
    model without z has only pixels and v, without PCA.

    The SVM is scikit-learn's `LinearSVC` (one against the rest, squared hinge loss); the paper's code uses
    `SVC(kernel="linear", C=1)`, whose time grows with the square of the number of images.

    Memory: float32 features of one kind at a time for pixels, of z and v together otherwise: 4 * (train_images +
    test_images) * height * width * channels bytes, 0.7 GB for 60,000 images of 32 x 32 RGB, beside the images, a
    quarter of that; `LinearSVC` copies the training features to 24 bytes a value while it is fitted. Time: on 8,000 x
    3,072 pixels one fit of the SVM took 33 s (C 1e-5) and 75 s (C 1e-4) of one core of a busy machine.
    While it lasts, lines say how long it will take, by the sizes of what was fitted and what is to come.

    Args:
        model: the model, with weights.
        source: an opened data set with labels and images of the model's size.
        train_images: how many images of "train" to draw, at least 10.
        test_images: how many images of "test" to draw.
        seed: of the draw.
        batch_size: images that are encoded at once.
        say: called with lines of progress.

    Returns:
        Plain values for JSON:

        * `results`: for each kind of features a dict of `features`, `dimensions` and `classifiers`, which holds by
          name `accuracy` (share of the test images), `standard_error` (binomial), `C`, `held_out_accuracy`, `tried`
          (pairs of C and held-out accuracy), `converged` and `seconds`;
        * `confusion`: of the classifier that was best for z (v without z) on the held-out images: `features`,
          `classifier`, `accuracy`, `labels` and `counts`, rows the true classes and columns the predicted;
        * `chance`: the share of the most frequent class in the test images;
        * `train_images`, `test_images`, `held_out_images`, `classes`, `seed`.

    Raises:
        DataError: for images without labels or of a single class, more images than there are, or too few.
        UserError: where z is a function of the label.
        NotInitializedError: for a model without weights.
        InversionError: where a code is not finite.
    """
    model.require_initialized()
    require_enough(train_images)
    if model.config.has_class_codes:
        raise UserError(
            "z of this model is a function of the label (model.prior is 'classes'), so a probe would be told what it "
            "is to find; --classify measures what z knows of the label"
        )
    say(f"reading {train_images:,} training and {test_images:,} test images of {source.title}")
    train = read_labelled(model, source, "train", train_images, seed=seed, batch_size=batch_size, say=say)
    test = read_labelled(model, source, "test", test_images, seed=seed, batch_size=batch_size, say=say)
    require_classes(source, train.labels)

    fits = _Fits(_dimensions(model, len(train.labels)), say)
    rows: list[dict[str, Any]] = []
    predictions: dict[tuple[str, str], np.ndarray] = {}

    def classify(name: str, of_train: np.ndarray, of_test: np.ndarray) -> None:
        """Adds a row for features that are standardised already."""
        row: dict[str, Any] = {"features": name, "dimensions": of_train.shape[1], "classifiers": {}}
        for kind in KINDS:
            begin = time.monotonic()
            fits.begin(name, kind, of_train.shape[1])
            fitted = fit_classifier(kind, of_train, train.labels, fits.tried)
            fits.end()
            predictions[name, kind] = fitted.classifier.predict(of_test)
            result = _result(fitted, predictions[name, kind] == test.labels, time.monotonic() - begin)
            row["classifiers"][kind] = result
            say(f"{name} ({row['dimensions']:,}), {kind}: {_percent(result)}, C {fitted.strength:g}")
        rows.append(row)

    def classify_image_like(name: str, of_train: np.ndarray, of_test: np.ndarray) -> None:
        of_train, of_test = standardize(of_train, of_test)
        classify(name, of_train, of_test)
        if model.config.has_latent:
            pca = fit_pca(of_train, model.config.latent_dim, seed)
            classify(f"{name}, PCA", *standardize(_reduced(pca, of_train), _reduced(pca, of_test)))

    classify_image_like("pixels", _pixels(train.images), _pixels(test.images))
    say("encoding")
    with fits.paused():
        (z, v), (z_test, v_test) = (encode_images(model, each.images, batch_size, say) for each in (train, test))
    if z is not None and z_test is not None:
        classify("z", *standardize(z, z_test))
    # No copies: what is standardised in place is no longer needed otherwise.
    classify_image_like("v", v.reshape(len(v), -1), v_test.reshape(len(v_test), -1))

    confused = "z" if z is not None else "v"
    return {
        "results": rows,
        "confusion": confusion_of(rows, confused, predictions, test.labels),
        "chance": float(np.unique(test.labels, return_counts=True)[1].max() / len(test.labels)),
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "held_out_images": held_out_count(len(train.labels)),
        "classes": len(np.unique(train.labels)),
        "seed": seed,
    }


class _Fits:
    """Says how far the fits are.

    Args:
        dimensions: of all features that will be classified.
        say: see `linear_probe`.
    """

    def __init__(self, dimensions: list[int], say: Callable[[str], None]):
        # Each classifier is fitted to all values of C at most, and then once more; the time of a fit is taken for
        # proportional to its dimensions.
        self._total = sum(dimensions) * len(KINDS) * (len(STRENGTHS) + 1)
        self._left = TimeLeft(self._total)
        self._say = say
        self._what, self._size = "", 0
        self._done = self._before = 0

    def begin(self, name: str, kind: str, dimensions: int) -> None:
        """Begins with a classifier."""
        self._what, self._size = f"{name}, {kind}", dimensions

    def tried(self, strength: float) -> None:
        """Counts a fit."""
        self._done += self._size
        if self._done < self._total and self._left.is_due(self._done):
            self._say(f"  {self._what}: C {strength:g} is tried, about {self._left.text(self._done)}")

    def end(self) -> None:
        """Ends with a classifier: what was not tried is done as well."""
        self._done = self._before = self._before + self._size * (len(STRENGTHS) + 1)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out of the reckoning the time that something else takes."""
        begun = time.monotonic()
        yield
        self._left.shift(time.monotonic() - begun)


def _dimensions(model: DecoupledModel, train_images: int) -> list[int]:
    """Returns the numbers of dimensions of all features, in any order."""
    size, latent = math.prod(model.config.image_shape), model.config.latent_dim
    of_codes = [latent, *2 * [components_of(latent, train_images, size)]] if model.config.has_latent else []
    return [size, size, *of_codes]


def read_labelled(
    model: DecoupledModel,
    source: Source,
    split: str,
    count: int,
    *,
    seed: int,
    batch_size: int,
    say: Callable[[str], None],
) -> Labelled:
    """Reads images as the model sees them, in random order, so that their last fifth is a random choice of them.

    Args:
        model: as it sees them.
        source: an opened data set with labels and images of the model's size.
        split: "train", "validation" or "test".
        count: how many images to draw.
        seed: of the draw.
        batch_size: images that are read at once.
        say: called with lines of progress.

    Raises:
        DataError: for images without labels, or fewer than asked for.
    """
    from tfdecouple.data.labels import require_labels

    indices = drawn_indices(source, split, count, seed)
    images, labels = np.empty((count, *model.config.image_shape), np.uint8), np.empty(count, np.int32)
    order = np.argsort(indices)
    done = 0
    for batch in subset_batches(source, split, indices, batch_size=batch_size, say=say):
        rows = order[done : done + len(batch["label"])]
        images[rows], labels[rows] = model.quantize_images(batch["image"]), batch["label"]
        done += len(rows)
    return Labelled(images, require_labels(source, split, labels, "a linear classifier"))


def require_enough(train_images: int) -> None:
    """Refuses fewer training images than a linear classifier can be fitted to.

    Raises:
        DataError: with the number.
    """
    if train_images < LEAST:
        raise DataError(f"the number of training images is {train_images}; a linear classifier needs at least {LEAST}")


def require_classes(source: Source, labels: np.ndarray) -> None:
    """Refuses training images of which those to fit on, all but the ones that judge C, are of a single class.

    Raises:
        DataError: with their number.
    """
    fitted = labels[: -held_out_count(len(labels))]
    if len(np.unique(fitted)) < 2:
        raise DataError(
            f"the {len(fitted)} training images of {source.title} to fit on are all of one class; "
            "a linear classifier needs two or more, so take more images or other data"
        )


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)


def _reduced(pca: Any, features: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pca.transform(features), np.float32)


def _result(fitted: Fitted, right: np.ndarray, seconds: float) -> dict[str, Any]:
    accuracy = float(np.mean(right))
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(right)),
        "C": fitted.strength,
        "held_out_accuracy": fitted.held_out_accuracy,
        "tried": [list(pair) for pair in fitted.tried],
        "converged": fitted.converged,
        "seconds": round(seconds, 1),
    }


def confusion_of(
    rows: list[dict[str, Any]], features: str, predictions: dict[tuple[str, str], np.ndarray], labels: np.ndarray
) -> dict[str, Any]:
    """Counts, by the best classifier of these features, how often images of each label were taken for each."""
    from sklearn.metrics import confusion_matrix

    classifiers = next(row["classifiers"] for row in rows if row["features"] == features)
    # By the held-out images: the test images must not choose what is shown of them.
    kind = max(classifiers, key=lambda name: classifiers[name]["held_out_accuracy"])
    predicted = predictions[features, kind]
    values = np.union1d(labels, predicted)
    return {
        "features": features,
        "classifier": kind,
        "accuracy": classifiers[kind]["accuracy"],
        "labels": values.tolist(),
        "counts": confusion_matrix(labels, predicted, labels=values).tolist(),
    }


def _percent(result: dict[str, Any]) -> str:
    return f"{100 * result['accuracy']:.2f} % +- {100 * result['standard_error']:.2f}"


def table(report: dict[str, Any]) -> list[str]:
    """Returns the lines of a table of what `linear_probe` returned."""
    results = [result for row in report["results"] for result in row["classifiers"].values()]
    lines = [
        f"Test accuracy of linear classifiers, {report['classes']} classes (paper Table 4): "
        f"{report['train_images']:,} training, {report['test_images']:,} test images.",
        f"{'features':14}{'dimensions':>10}" + "".join(f"{kind:>24}" for kind in KINDS),
    ]
    for row in report["results"]:
        cells = "".join(f"{_percent(row['classifiers'][kind]):>24}" for kind in KINDS)
        lines.append(f"{row['features']:14}{row['dimensions']:>10,}{cells}")
    lines.append(f"{'largest class':24}{100 * report['chance']:>{24 * len(KINDS)}.2f} %")
    lines.append(
        f"+-: binomial standard error. C was chosen on {report['held_out_images']:,} of the training images; "
        "z is the posterior mean."
    )
    if not all(result["converged"] for result in results):
        lines.append("Some fits ended by their number of iterations: `converged` says which.")
    if any(result["C"] == STRENGTHS[-1] for result in results):
        lines.append(f"Some fits took the largest C, {STRENGTHS[-1]:g}: a larger one could do better.")
    return lines
