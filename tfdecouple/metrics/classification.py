"""Two metrics of models with labels: accuracy of the model as a classifier, and of classifiers on its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError
from tfdecouple.metrics.base import Estimate, Metric, Result, print_progress
from tfdecouple.metrics.linear_classifier import (
    KINDS,
    LEAST,
    fit_classifier,
    read_labelled,
    require_classes,
    require_images,
    standardize_features,
)
from tfdecouple.metrics.probe import count_confusion
from tfdecouple.runtime.option_types import add_number

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel

# Default numbers of real images that the classifiers of samples are fitted to and tested on.
_FITTED, _TRIED = 5000, 2000


class Classification(Metric):
    """The metric of how often the model itself classifies an image right, by Bayes' rule."""

    name = "classify"
    needs_classes = True
    needs_plots = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the option --classify to `group`, an argument group of the parser of `evaluate`."""
        group.add_argument(
            "--classify",
            action="store_true",
            help="also how often the model classifies an image right, by Bayes' rule; the model must have labels",
        )

    def compute(self, evaluation: Any) -> Result:
        """Returns the accuracy of the model's classification, and a picture of the confusion matrix."""
        from tfdecouple.runtime.progress import Counter
        from tfdecouple.visualization.plots import plot_confusion, render_figure

        opened = evaluation.opened
        with Counter("classifying", evaluation.count) as counter:
            report = classify_images(opened.model, evaluation.batches(), counter)
        accuracy = Estimate(100 * report["accuracy"], 100 * report["standard_error"])
        lines = [
            f"{accuracy.to_text(1)} % of {report['images']:,} images classified right by Bayes' rule; the "
            f"most frequent label has {100 * report['chance']:.1f} %",
            f"    {report['log_probability']:.3f} nats: mean log p(y|x) of the right label",
        ]
        return Result(report, lines, render_figure(plot_confusion(report["confusion"], opened.label_names)))


class LabelSamples(Metric):
    """The metric of how often linear classifiers, fitted to real images, find the label that a sample was drawn for.

    The classifiers are of the same kinds as in `LinearProbe`, on standardised raw pixels.
    """

    name = "label_samples"
    on_split = False
    needs_classes = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the option --label-samples to `group`, an argument group of the parser of `evaluate`."""
        text = "also how often linear classifiers of pixels, fitted to real images, find the label of N samples of each"
        add_number(group, "--label-samples", 0, f"{text} label; the model must have labels")

    def compute(self, evaluation: Any) -> Result:
        """Returns the accuracies on samples, on held-out training images, and on test images for comparison.

        Raises:
            DataError: if the images have no labels, are all of one class, or are too few.
        """
        options, source, model = self.options, evaluation.source, evaluation.opened.model
        per_label, count, classes = options.label_samples, options.images, model.config.classes
        train_images = min(max(count, LEAST) if count else _FITTED, source.sizes["train"])
        require_images(train_images)
        train, train_labels = read_labelled(model, source, "train", train_images, seed=options.seed, batch_size=256)
        test_images = min(count or _TRIED, source.sizes["test"])
        test, test_labels = read_labelled(model, source, "test", test_images, seed=options.seed, batch_size=256)
        require_classes(source, train_labels)
        sample_labels = np.repeat(np.arange(classes), per_label)
        print_progress(f"drawing {len(sample_labels):,} samples of {classes} labels")
        drawing = {"seed": options.seed, "labels": sample_labels}
        samples = np.asarray(model.sample(len(sample_labels), options.temperature, **drawing))
        train, test, samples = standardize_features(
            *(images.reshape(len(images), -1).astype(np.float32) for images in (train, test, samples))
        )
        classifiers, names = {}, evaluation.opened.label_names
        lines = [
            f"{per_label:,} samples of each of {classes} labels, classified by linear classifiers of pixels that were "
            f"fitted to {train_images:,} real images; chance is {100 / classes:.1f} %"
        ]
        for kind in KINDS:
            print_progress(f"fitting {kind} to {train_images:,} images")
            fitted = fit_classifier(kind, train, train_labels)
            hits = fitted.classifier.predict(samples) == sample_labels
            accuracy = Estimate.from_values(hits)
            by_label = hits.reshape(classes, per_label).mean(1).tolist()
            real_accuracy = float(np.mean(fitted.classifier.predict(test) == test_labels))
            classifiers[kind] = {
                "accuracy": accuracy.mean,
                "standard_error": accuracy.standard_error,
                "by_label": by_label,
                "held_out_accuracy": fitted.held_out_accuracy,
                "real_accuracy": real_accuracy,
                "C": fitted.strength,
            }
            each = ", ".join(f"{name} {100 * share:.0f}" for name, share in zip(names, by_label, strict=True))
            lines.append(
                f"    {kind}: {100 * accuracy.mean:.1f} % of samples ({each}); of real images "
                f"{100 * fitted.held_out_accuracy:.1f} % of those held out of training ones, "
                f"{100 * real_accuracy:.1f} % of {test_images:,} test images"
            )
        values = {
            "samples": per_label,
            "temperature": options.temperature,
            "chance": 1 / classes,
            "train_images": train_images,
            "test_images": test_images,
            "classifiers": classifiers,
        }
        return Result(values, lines)


def classify_images(
    model: DecoupledModel,
    batches: Iterable[Mapping[str, Any]],
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Returns how often the label y of highest probability p(y|x) is the right label of the image x.

    Args:
        model: a model with labels and weights.
        batches: batches of one size, as `tfdecouple.data.evaluation_batches` yields them.
        on_batch: a callback that receives the number of finished images.

    Returns:
        Plain values: `images`; `accuracy` with its `standard_error`; `chance`, the share of the most frequent label;
        `log_probability`, the mean of log p(y|x) of the right label y in nats; and `confusion`, the confusion matrix.

    Raises:
        UserError: if the model has no labels.
        DataError: if no image has a label.
    """
    import tensorflow as tf

    from tfdecouple.runtime.precision import full_float32

    classify = tf.function(model.classify, autograph=False, reduce_retracing=True)
    log_probabilities, labels, done = [np.zeros((0, model.config.classes))], [np.zeros(0, np.int64)], 0
    for batch in batches:
        image, label, weight = (np.asarray(batch[name]) for name in ("image", "label", "weight"))
        with full_float32():
            found = classify(tf.constant(image)).numpy()
        labelled = (weight > 0) & (label >= 0)
        log_probabilities.append(found[labelled])
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
