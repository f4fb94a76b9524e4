"""Checks of labels, which are indices into the label names of a source, or -1 for an image without a label."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import ModelConfig
from tfdecouple.data.splits import Source
from tfdecouple.errors import DataError

NO_LABEL = -1
# Text of the assertion on labels, by which `BadImages` finds the message; it has no characters that TensorFlow escapes.
_UNKNOWN = "tfdecouple found an unknown label"


def check_labels(source: Source, labels: np.ndarray) -> np.ndarray:
    """Returns the labels as int32 `[n]`, after a check that each has a name in the source or is -1.

    Raises:
        DataError: where a label has no name, or two labels of the source have the same name.
    """
    names, labels = source.label_names, np.asarray(labels, np.int32)
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"two labels of {source.title} have the name {twice!r}; each needs one of its own")
    wrong = (labels < NO_LABEL) | (labels >= len(names))
    if wrong.any():
        held = f"has {len(names)} labels, 0 to {len(names) - 1}" if names else "has no labels"
        raise DataError(f"an image of {source.title} has the label {labels[wrong][0]}, but the data set {held}")
    return labels


def require_labels(source: Source, split: str, labels: np.ndarray, what: str) -> np.ndarray:
    """Returns the labels of images of a split, int32 `[n]`, after a check that every image has one.

    Raises:
        DataError: where an image has no label, or `check_labels` fails; `what` is the subject of the message, such as
            "a linear probe".
    """
    labels = check_labels(source, labels)
    if (labels == NO_LABEL).any():
        raise DataError(f"{source.title} has {split} images without a label; {what} needs labels, as sub-folders give")
    return labels


def require_classes(source: Source, model: ModelConfig) -> None:
    """Raises DataError if a source does not have `model.classes` labels, or two labels have the same name."""
    count = len(source.label_names)
    if not model.has_classes or count == model.classes:
        check_labels(source, np.zeros(0, np.int32))
        return
    if not count:
        raise DataError(
            f"{source.title} has no labels, and model.classes is {model.classes}; take images with labels, as "
            "sub-folders give, or leave out model.classes and model.prior"
        )
    raise DataError(
        f"{source.title} has {count} labels and model.classes is {model.classes}; set model.classes={count}"
    )


def check_batch_labels(batches: tf.data.Dataset, source: Source, model: ModelConfig) -> tf.data.Dataset:
    """Returns batches whose iteration, inside `Source.guard`, raises DataError at a label that the model cannot take.

    Args:
        batches: dataset of dicts with "label" int32 `[batch]`.
        source: the data set of the images.
        model: options of the model; for a model without labels the batches are returned unchanged.
    """
    if not model.has_classes:
        return batches
    least = 0 if model.has_class_codes else NO_LABEL
    message = f"an image of {source.title} has a label that is none of 0 to {model.classes - 1}"
    if model.has_class_codes:
        message += "; where model.prior is 'classes' each image needs one, as sub-folders give"
    else:
        message += f", nor {NO_LABEL} for none"
    source.bad_images.keep_error(message, _UNKNOWN)

    def checked(batch: dict[str, Any]) -> dict[str, Any]:
        label = batch["label"]
        known = tf.reduce_all((label >= least) & (label < model.classes))
        with tf.control_dependencies([tf.debugging.Assert(known, [_UNKNOWN])]):
            return {**batch, "label": tf.identity(label)}

    return batches.map(checked)


def make_step_inputs(batches: tf.data.Dataset, source: Source, model: ModelConfig) -> tf.data.Dataset:
    """Returns a dataset of inputs of training steps: images, or pairs of images and labels for a model with labels."""
    if not model.has_classes:
        return batches.map(lambda batch: batch["image"])
    return check_batch_labels(batches, source, model).map(lambda batch: (batch["image"], batch["label"]))
