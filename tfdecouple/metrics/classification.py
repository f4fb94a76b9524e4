"""Two metrics of accuracy: of linear classifiers on z, v and pixels, and of a model with labels, by Bayes' rule."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError
from tfdecouple.metrics.metric import Estimate, Metric, Result, format_table
from tfdecouple.metrics.drawn_images import encode_drawn_images
from tfdecouple.metrics.linear_classifier import (
    CLASSIFIERS,
    HELD_OUT,
    STRENGTHS,
    fit_classifier,
    fit_pca,
    flatten_images,
    read_labelled_images,
    standardize_features,
)
from tfdecouple.runtime.option_types import add_number
from tfdecouple.runtime.progress import Counter

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel

# By default classifiers get at most 10,000 images, and at most 2**26 colour values in all, because both lengthen a fit.
IMAGES, VALUES = 10_000, 2**26
# Smallest number of training images of the classifiers. A fifth of the images is held out to choose the regularisation.
LEAST = 10


class LinearProbe(Metric):
    """The metric of the test accuracy of linear classifiers on pixels, z (the posterior mean) and v (paper Table 4).

    For a fair comparison with z, pixels and v are also reduced to d_z dimensions by PCA. A model without z is tested on
    pixels and v only, without PCA. All features are standardised. Scalers, PCA and classifiers are fitted to training
    images alone, without augmentation.

    The SVM is scikit-learn's `LinearSVC` (one against the rest, squared hinge loss). The paper's code uses
    `SVC(kernel="linear", C=1)`, whose time grows with the square of the number of images.

    The features of 60,000 images of 32 x 32 RGB take 0.7 GB (4 bytes a value). `LinearSVC` makes a copy of the features
    of the training images, with 24 bytes a value.
    """

    name = "probe"
    help = "also the test accuracy of linear classifiers of z, v and pixels; needs labels"
    split = "test"
    needs_posterior = True
    needs_plots = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        super().add_options(group)
        text = "training images of --probe; 0 for as many as --images, or at most 10000, fewer where they are large"
        add_number(group, "--probe-images", 0, text)

    def compute(self, evaluation: Any) -> Result:
        from tfdecouple.visualization.plots import plot_confusion, render_figure

        options, source, model = self.options, evaluation.source, evaluation.opened.model
        default = min(IMAGES, VALUES // math.prod(model.config.image_shape))
        train_images = max(options.images, LEAST) if options.images else default
        train_images = min(options.probe_images or train_images, source.sizes["train"])
        test_images = min(options.images or default, source.sizes["test"])
        if train_images < LEAST:
            raise DataError(f"the number of training images is {train_images}; a probe needs at least {LEAST}")
        reading = {"seed": options.seed, "batch_size": evaluation.batch_size}
        train, labels = read_labelled_images(model, source, "train", train_images, **reading)
        test, test_labels = read_labelled_images(model, source, "test", test_images, **reading)
        fitted_labels = labels[: -(len(labels) // HELD_OUT)]
        if len(np.unique(fitted_labels)) < 2:
            raise DataError(
                f"the {len(fitted_labels)} training images of {source.title} to fit on are all of one class; a probe "
                "needs two or more, so take more images or other data"
            )
        rows: dict[str, dict[str, Any]] = {}
        predictions: dict[tuple[str, str], np.ndarray] = {}

        def classify(name: str, features: np.ndarray, test_features: np.ndarray) -> None:
            classifiers = {}
            for kind in CLASSIFIERS:
                with Counter(f"{name}, {kind}", len(STRENGTHS) + 1, unit="fits") as counter:
                    fitted = fit_classifier(kind, features, labels, counter)
                predictions[name, kind] = predicted = fitted.classifier.predict(test_features)
                accuracy = Estimate.from_values(predicted == test_labels)
                classifiers[kind] = {
                    "accuracy": accuracy.mean,
                    "standard_error": accuracy.standard_error,
                    "C": fitted.strength,
                    "held_out_accuracy": fitted.held_out_accuracy,
                    "tried": fitted.tried,
                    "converged": fitted.converged,
                }
                line = f"{name} ({features.shape[1]:,}), {kind}: {_format_accuracy(classifiers[kind])}"
                # Progress goes to standard error, so that standard output has only the results.
                print(line, file=sys.stderr, flush=True)
            rows[name] = {"features": name, "dimensions": features.shape[1], "classifiers": classifiers}

        def classify_with_pca(name: str, *both: np.ndarray) -> None:
            flat = standardize_features(*flatten_images(*both))
            classify(name, *flat)
            if model.config.has_latent:
                pca = fit_pca(flat[0], model.config.latent_dim, options.seed)
                reduced = (np.ascontiguousarray(pca.transform(array), np.float32) for array in flat)
                classify(f"{name}, PCA", *standardize_features(*reduced))

        classify_with_pca("pixels", train, test)
        (z, v), (test_z, test_v) = (
            encode_drawn_images(model, images, evaluation.batch_size) for images in (train, test)
        )
        if z is not None and test_z is not None:
            classify("z", *standardize_features(z, test_z))
        classify_with_pca("v", v, test_v)

        name = "z" if z is not None else "v"
        classifiers = rows[name]["classifiers"]
        # The picture shows the classifier with the best held-out accuracy: test images must not influence the choice.
        kind = max(classifiers, key=lambda kind: classifiers[kind]["held_out_accuracy"])
        report = {
            "results": list(rows.values()),
            "confusion": count_confusion(name, kind, test_labels, predictions[name, kind]),
            "chance": float(np.unique(test_labels, return_counts=True)[1].max() / len(test_labels)),
            "train_images": len(labels),
            "test_images": len(test_labels),
            "held_out_images": len(labels) // HELD_OUT,
            "classes": len(np.unique(labels)),
            "seed": options.seed,
        }
        picture = render_figure(plot_confusion(report["confusion"], source.label_names))
        return Result(report, _format_linear_classifiers(report), picture)


def _format_accuracy(result: dict[str, Any]) -> str:
    return f"{100 * result['accuracy']:.2f} % +- {100 * result['standard_error']:.2f}"


def _format_linear_classifiers(report: dict[str, Any]) -> list[str]:
    """Returns the lines of a table of test accuracies, a row for each set of features, a column for each classifier."""
    lines = [
        f"Test accuracy of linear classifiers, {report['classes']} classes (paper Table 4): "
        f"{report['train_images']:,} training, {report['test_images']:,} test images.",
    ]
    rows = [["features", "dimensions", *CLASSIFIERS]]
    for row in report["results"]:
        accuracies = [_format_accuracy(row["classifiers"][kind]) for kind in CLASSIFIERS]
        rows.append([row["features"], f"{row['dimensions']:,}", *accuracies])
    lines += format_table(rows, indent=0)
    lines.append(f"The largest class has {100 * report['chance']:.2f} % of the test images.")
    lines.append(
        f"+-: standard error. C was chosen on {report['held_out_images']:,} of the training images; z is the posterior "
        "mean."
    )
    if not all(result["converged"] for row in report["results"] for result in row["classifiers"].values()):
        lines.append("Some fits ended by their number of iterations: `converged` says which.")
    return lines


class Classification(Metric):
    """The metric of the accuracy with which a model with labels classifies images, by Bayes' rule from p(x|y)."""

    name = "classify"
    help = "also how often the model classifies an image right, by Bayes' rule; the model must have labels"
    needs_classes = True
    needs_plots = True

    def compute(self, evaluation: Any) -> Result:
        from tfdecouple.visualization.plots import plot_confusion, render_figure

        opened = evaluation.opened
        with Counter("classifying", evaluation.count) as counter:
            report = classify_images(opened.model, evaluation.make_image_batches(), counter)
        accuracy = Estimate(100 * report["accuracy"], 100 * report["standard_error"])
        lines = [
            f"{accuracy.to_text(1)} % of {report['images']:,} images classified right by Bayes' rule; the "
            f"most frequent label has {100 * report['chance']:.1f} %",
            f"    {report['log_probability']:.3f} nats: mean log p(y|x) of the right label",
        ]
        return Result(report, lines, render_figure(plot_confusion(report["confusion"], opened.label_names)))


def classify_images(
    model: DecoupledModel,
    batches: Iterable[Mapping[str, Any]],
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Classifies each image x as the label y with the highest p(y|x); returns a dict of the accuracy and more metrics.

    The dict has plain Python values: `images`, the count of labelled images; `accuracy` and its `standard_error`;
    `chance`, the share of the most frequent label; `log_probability`, the mean of log p(y|x) of the true label y in
    nats; and `confusion`, the result of `count_confusion`. `batches` are dicts from `make_evaluation_batches`, and
    `on_batch` is a callback that receives the count of images classified so far.

    Raises:
        DataError: if no image has a label.
    """
    import tensorflow as tf

    from tfdecouple.numerics.tf32 import full_float32

    classify = tf.function(model.classify, autograph=False, reduce_retracing=True)
    log_probabilities, labels, done = [], [], 0
    for batch in batches:
        image, label, weight = (np.asarray(batch[name]) for name in ("image", "label", "weight"))
        with full_float32():
            log_probability = classify(tf.constant(image)).numpy()
        labelled = (weight > 0) & (label >= 0)
        log_probabilities.append(log_probability[labelled])
        labels.append(label[labelled])
        on_batch(done := done + int((weight > 0).sum()))
    log_p, right = np.concatenate(log_probabilities).astype(np.float64), np.concatenate(labels)
    if not len(right):
        raise DataError("no image has a label; a classification is judged by labels, as sub-folders give")
    predicted = log_p.argmax(1)
    accuracy = Estimate.from_values(predicted == right)
    return {
        "images": len(right),
        "accuracy": accuracy.mean,
        "standard_error": accuracy.standard_error,
        "chance": float(np.bincount(right).max() / len(right)),
        "log_probability": float(log_p[np.arange(len(right)), right].mean()),
        "confusion": count_confusion("Bayes' rule", "p(y|x)", right, predicted),
    }


def count_confusion(features: str, classifier: str, labels: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Returns a dict with the confusion matrix of a classifier, from true `labels` and `predicted` labels, int `[n]`.

    The keys are `features` and `classifier`, the names that were passed; `accuracy`; `labels`, a sorted list of all
    true and predicted labels; and `counts`, the matrix, with a row for each true and a column for each predicted label.
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
