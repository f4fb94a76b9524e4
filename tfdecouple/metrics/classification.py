"""The metric of models with labels: accuracy of the model as a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError
from tfdecouple.metrics.base import Estimate, Metric, Result
from tfdecouple.metrics.probe import count_confusion

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel


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
