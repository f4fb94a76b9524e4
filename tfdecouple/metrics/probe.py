"""A metric of how well linear classifiers find an image's class from z, v or pixels (paper section 3.2, Table 4)."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from tfdecouple.errors import UserError
from tfdecouple.metrics.base import Estimate, Metric, Result, print_progress
from tfdecouple.metrics.drawn_images import encode_images
from tfdecouple.metrics.linear_classifier import (
    KINDS,
    LEAST,
    STRENGTHS,
    count_held_out,
    fit_classifier,
    fit_pca,
    read_labelled,
    require_classes,
    require_images,
    standardize_features,
)
from tfdecouple.runtime.option_types import add_number
from tfdecouple.runtime.progress import Counter

# Default limits of the number of images and of their colour values; the time of a fit grows with both.
IMAGES, VALUES = 10_000, 2**26


class LinearProbe(Metric):
    """The metric of test accuracy of a linear SVM and of logistic regression on pixels, z (the posterior mean) and v.

    For a fair comparison with z, pixels and v are also reduced to d_z dimensions by PCA. All features are standardised.
    Standardisation, PCA, C and the classifiers depend on the training images alone, which are not augmented. A model
    without z is tested on pixels and v only, without PCA.

    The SVM is scikit-learn's `LinearSVC` (one against the rest, squared hinge loss); the paper's code uses
    `SVC(kernel="linear", C=1)`, whose time grows with the square of the number of images.

    Memory: besides the images, features take 4 * (training images + test images) * height * width * channels bytes,
    0.7 GB for 60,000 images of 32 x 32 RGB, and `LinearSVC` copies the training features to 24 bytes a value.
    """

    name = "probe"
    on_split = False
    needs_plots = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the options --probe and --probe-images to `group`, an argument group of the parser of `evaluate`."""
        group.add_argument(
            "--probe",
            action="store_true",
            help="also the test accuracy of linear classifiers of z, v and pixels; needs labels",
        )
        text = "training images of --probe; 0 for as many as --images, or at most 10000, fewer where they are large"
        add_number(group, "--probe-images", 0, text)

    def compute(self, evaluation: Any) -> Result:
        """Returns the test accuracies, and a picture of the confusion matrix for z (for v in a model without z).

        Raises:
            DataError: if the images have no labels, are all of one class, or are too few.
            UserError: if z is a function of the label.
            InversionError: if a code is not finite.
        """
        from tfdecouple.visualization.plots import plot_confusion, render_figure

        options, source, model = self.options, evaluation.source, evaluation.opened.model
        default = min(IMAGES, VALUES // math.prod(model.config.image_shape))
        train_images = max(options.images, LEAST) if options.images else default
        train_images = min(options.probe_images or train_images, source.sizes["train"])
        test_images = min(options.images or default, source.sizes["test"])
        require_images(train_images)
        if model.config.has_class_codes:
            raise UserError(
                "z of this model is a function of the label (model.prior is 'classes'), so a probe would be told what "
                "it is to find; --classify measures what z knows of the label"
            )
        reading = {"seed": options.seed, "batch_size": evaluation.batch_size}
        train, labels = read_labelled(model, source, "train", train_images, **reading)
        test, test_labels = read_labelled(model, source, "test", test_images, **reading)
        require_classes(source, labels)
        rows: dict[str, dict[str, Any]] = {}
        predictions: dict[tuple[str, str], np.ndarray] = {}

        def classify(name: str, features: np.ndarray, test_features: np.ndarray) -> None:
            classifiers = {}
            for kind in KINDS:
                start = time.monotonic()
                with Counter(f"{name}, {kind}", len(STRENGTHS) + 1, unit="fits") as counter:
                    fitted = fit_classifier(kind, features, labels, counter)
                predictions[name, kind] = predicted = fitted.classifier.predict(test_features)
                accuracy = Estimate.from_share(np.mean(predicted == test_labels), len(test_labels))
                classifiers[kind] = {
                    "accuracy": accuracy.mean,
                    "standard_error": accuracy.standard_error,
                    "C": fitted.strength,
                    "held_out_accuracy": fitted.held_out_accuracy,
                    "tried": [list(pair) for pair in fitted.tried],
                    "converged": fitted.converged,
                    "seconds": round(time.monotonic() - start, 1),
                }
                print_progress(f"{name} ({features.shape[1]:,}), {kind}: {_percent(classifiers[kind])}")
            rows[name] = {"features": name, "dimensions": features.shape[1], "classifiers": classifiers}

        def classify_with_pca(name: str, *both: np.ndarray) -> None:
            flat = standardize_features(*(each.reshape(len(each), -1).astype(np.float32, copy=False) for each in both))
            classify(name, *flat)
            if model.config.has_latent:
                pca = fit_pca(flat[0], model.config.latent_dim, options.seed)
                reduced = (np.ascontiguousarray(pca.transform(each), np.float32) for each in flat)
                classify(f"{name}, PCA", *standardize_features(*reduced))

        classify_with_pca("pixels", train, test)
        (z, v), (test_z, test_v) = (encode_images(model, images, evaluation.batch_size) for images in (train, test))
        if z is not None and test_z is not None:
            classify("z", *standardize_features(z, test_z))
        classify_with_pca("v", v, test_v)

        name = "z" if z is not None else "v"
        classifiers = rows[name]["classifiers"]
        # The picture shows the classifier that is best on held-out images, because test images must not choose it.
        kind = max(classifiers, key=lambda kind: classifiers[kind]["held_out_accuracy"])
        report = {
            "results": list(rows.values()),
            "confusion": count_confusion(name, kind, test_labels, predictions[name, kind]),
            "chance": float(np.unique(test_labels, return_counts=True)[1].max() / len(test_labels)),
            "train_images": len(labels),
            "test_images": len(test_labels),
            "held_out_images": count_held_out(len(labels)),
            "classes": len(np.unique(labels)),
            "seed": options.seed,
        }
        picture = render_figure(plot_confusion(report["confusion"], source.label_names))
        return Result(report, _lines(report), picture)


def count_confusion(features: str, classifier: str, labels: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Returns the confusion matrix of a classifier as plain values, with the names of its features and its kind.

    The keys are `features`, `classifier`, `accuracy`, `labels` (the labels that occur), and `counts`, with a row for
    each true class and a column for each predicted class.
    """
    from sklearn.metrics import confusion_matrix

    values = np.union1d(labels, predicted)
    return {
        "features": features,
        "classifier": classifier,
        "accuracy": float(np.mean(labels == predicted)),
        "labels": values.tolist(),
        "counts": confusion_matrix(labels, predicted, labels=values).tolist(),
    }


def _percent(result: dict[str, Any]) -> str:
    return f"{100 * result['accuracy']:.2f} % +- {100 * result['standard_error']:.2f}"


def _lines(report: dict[str, Any]) -> list[str]:
    """Returns the lines of a table of the test accuracies."""
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
