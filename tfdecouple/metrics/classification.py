"""What a model knows of labels: those that it tells of images by Bayes' rule, and those that its samples show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError
from tfdecouple.metrics.base import Estimate, Metric, Result, say
from tfdecouple.metrics.linear_classifier import KINDS, LEAST, fit_classifier, standardize
from tfdecouple.metrics.probe import read_labelled, require_classes, require_enough
from tfdecouple.runtime.process import at_least

if TYPE_CHECKING:
    from tfdecouple.data import Source
    from tfdecouple.model import DecoupledModel

# Real images that the classifiers of samples are fitted to, and tried on, unless --images says how many.
_FITTED, _TRIED = 5000, 2000


class Classification(Metric):
    """Bayes' rule over the labels."""

    name = "classify"
    needs_classes = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --classify."""
        group.add_argument(
            "--classify",
            action="store_true",
            help="also how often the model tells the label of an image, by Bayes' rule; it must know labels",
        )

    def measure(self, evaluation: Any) -> Result:
        """Classifies the images."""
        from tfdecouple.runtime.progress import Counter
        from tfdecouple.visualization.confusion import confusion_picture

        opened = evaluation.opened
        with Counter("classifying", evaluation.count) as counter:
            report = classification_report(opened.model, evaluation.batches(), counter)
        return Result(report, summary(report), confusion_picture(report, opened.label_names))


class LabelSamples(Metric):
    """Whether samples of a label look like it."""

    name = "label_samples"
    on_split = False
    needs_classes = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --label-samples."""
        group.add_argument(
            "--label-samples",
            type=int,
            default=0,
            metavar="N",
            help="also whether N samples of each label are told by linear classifiers of pixels that know real images "
            "alone (default 0: none); the model must know labels",
        )

    def check(self) -> None:
        """Refuses a number of samples below 0."""
        at_least(self.options, "label_samples", 0)

    def measure(self, evaluation: Any) -> Result:
        """Draws samples, fits the classifiers and counts."""
        opened, source, asked = evaluation.opened, evaluation.source, self.options.images
        report = sample_report(
            opened.model,
            source,
            per_label=self.options.label_samples,
            train_images=min(max(asked, LEAST) if asked else _FITTED, source.sizes["train"]),
            test_images=min(asked or _TRIED, source.sizes["test"]),
            temperature=self.options.temperature,
            seed=self.options.seed,
            say=say,
        )
        return Result(report, sample_summary(report, opened.label_names))


def classification_report(
    model: DecoupledModel,
    batches: Iterable[Mapping[str, Any]],
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Classifies images and counts those whose label has the highest probability.

    Args:
        model: a model that knows labels, with weights.
        batches: of `tfdecouple.data.evaluation_batches`, of one size.
        on_batch: called with the number of images done.

    Returns:
        Plain values: `images`; `accuracy` with its `standard_error`; `chance`, what the most frequent label alone would
        have; `log_probability`, the mean of log p(y|x) of the right label y in nats; and `confusion` for the picture.

    Raises:
        UserError: for a model that knows no labels.
        DataError: where no image has a label.
    """
    import tensorflow as tf
    from sklearn.metrics import confusion_matrix

    from tfdecouple.runtime.precision import full_float32

    classify = tf.function(model.classify, autograph=False, reduce_retracing=True)
    found, labels = [np.zeros((0, model.config.classes))], [np.zeros(0, np.int64)]
    done = 0
    for batch in batches:
        image, label, weight = (np.asarray(batch[name]) for name in ("image", "label", "weight"))
        with full_float32():
            log_probabilities = classify(tf.constant(image)).numpy()
        known = (weight > 0) & (label >= 0)
        found.append(log_probabilities[known])
        labels.append(label[known])
        on_batch(done := done + int((weight > 0).sum()))
    every, right = np.concatenate(found).astype(np.float64), np.concatenate(labels)
    if not len(right):
        raise DataError("no image has a label; a classification is judged by labels, as sub-folders give")
    chosen = every.argmax(1)
    accuracy = Estimate.over((chosen == right).astype(np.float64))
    log_probability = Estimate.over(every[np.arange(len(right)), right])
    present = np.union1d(chosen, right)
    return {
        "images": len(right),
        "accuracy": accuracy.mean,
        "standard_error": accuracy.standard_error,
        "chance": float(np.bincount(right).max() / len(right)),
        "log_probability": log_probability.mean,
        "confusion": {
            "features": "Bayes' rule",
            "classifier": "p(y|x)",
            "accuracy": accuracy.mean,
            "labels": present.tolist(),
            "counts": confusion_matrix(right, chosen, labels=present).tolist(),
        },
    }


def summary(report: Mapping[str, Any]) -> list[str]:
    """Returns the lines that say what `classification_report` returned."""
    error = report["standard_error"]
    known = f" ± {100 * error:.1f}" if math.isfinite(error) else ""
    return [
        f"{100 * report['accuracy']:.1f}{known} % of {report['images']:,} images classified right by Bayes' rule; the "
        f"most frequent label has {100 * report['chance']:.1f} %",
        f"    {report['log_probability']:.3f} nats: mean log p(y|x) of the right label",
    ]


def sample_report(
    model: DecoupledModel,
    source: Source,
    *,
    per_label: int,
    train_images: int,
    test_images: int,
    temperature: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures whether samples of a label look like it: by classifiers of raw pixels that know real images alone.

    The classifiers are those of `linear_probe`, on standardised pixels; C is chosen on held-out training images.

    Args:
        model: a model that knows labels, with weights.
        source: images with the same labels.
        per_label: samples of each label.
        train_images: real images of "train" that the classifiers are fitted to, drawn, at least 10.
        test_images: real images of "test" that they are tried on, for comparison.
        temperature: of v.
        seed: of all draws.
        say: is told how far it is.

    Returns:
        Plain values: `samples` of each label, `temperature`, `chance`, `train_images`, `test_images`, and by
        `classifiers` the accuracy on samples, with its standard error and by label; on the real images of "train" that
        judged C, which samples as good as those would have; and on real images of "test".

    Raises:
        UserError: for a model that knows no labels.
        DataError: for images without labels or of a single class, fewer than asked for, or too few.
    """
    require_enough(train_images)
    pixels, right = {}, {}
    for split, count in (("train", train_images), ("test", test_images)):
        images = read_labelled(model, source, split, count, seed=seed, batch_size=256, say=say)
        pixels[split], right[split] = images.images, images.labels
    require_classes(source, right["train"])
    classes = model.config.classes
    right["samples"] = np.repeat(np.arange(classes), per_label)
    count = len(right["samples"])
    say(f"drawing {count:,} samples of {classes} labels")
    pixels["samples"] = np.asarray(model.sample(count, temperature, seed=seed, labels=right["samples"]))
    flat = {name: images.reshape(len(images), -1).astype(np.float32) for name, images in pixels.items()}
    flat = dict(zip(flat, standardize(*flat.values()), strict=True))
    found = {}
    for kind in KINDS:
        say(f"fitting {kind} to {train_images:,} images")
        fitted = fit_classifier(kind, flat["train"], right["train"], lambda strength: None)
        hits = {name: fitted.classifier.predict(flat[name]) == right[name] for name in ("samples", "test")}
        accuracy = Estimate.over(hits["samples"].astype(np.float64))
        found[kind] = {
            "accuracy": accuracy.mean,
            "standard_error": accuracy.standard_error,
            "by_label": hits["samples"].reshape(classes, per_label).mean(1).tolist(),
            "held_out_accuracy": fitted.held_out_accuracy,
            "real_accuracy": float(hits["test"].mean()),
            "C": fitted.strength,
        }
    return {
        "samples": per_label,
        "temperature": temperature,
        "chance": 1 / classes,
        "train_images": train_images,
        "test_images": test_images,
        "classifiers": found,
    }


def sample_summary(report: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Returns the lines that say what `sample_report` returned, with the names of the labels."""
    lines = [
        f"{report['samples']:,} samples of each of {len(names)} labels, told by linear classifiers of pixels that were "
        f"fitted to {report['train_images']:,} real images; chance is {100 * report['chance']:.1f} %"
    ]
    for kind, found in report["classifiers"].items():
        each = ", ".join(f"{name} {100 * share:.0f}" for name, share in zip(names, found["by_label"], strict=True))
        lines.append(
            f"    {kind}: {100 * found['accuracy']:.1f} % of samples ({each}); of real images "
            f"{100 * found['held_out_accuracy']:.1f} % of those held out of training ones, "
            f"{100 * found['real_accuracy']:.1f} % of {report['test_images']:,} test images"
        )
    return lines
