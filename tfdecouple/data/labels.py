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
    """Returns the labels as int32 `[n]`; raises DataError unless each has a name in the source or is -1."""
    count, labels = len(source.label_names), np.asarray(labels, np.int32)
    wrong = (labels < NO_LABEL) | (labels >= count)
    if wrong.any():
        held = f"has {count} labels, 0 to {count - 1}" if count else "has no labels"
        raise DataError(f"an image of {source.title} has the label {labels[wrong][0]}, but the data set {held}")
    return labels


def require_labels(source: Source, split: str, labels: np.ndarray, what: str) -> np.ndarray:
    """Returns the labels of images of a split, int32 `[n]`; raises DataError unless every image has one.

    The argument `what` is the subject of the message, such as "a linear probe".
    """
    labels = check_labels(source, labels)
    if (labels == NO_LABEL).any():
        raise DataError(f"{source.title} has {split} images without a label; {what} needs labels, as sub-folders give")
    return labels


def require_classes(source: Source, model: ModelConfig) -> None:
    """Raises DataError if a model with labels is for another number of labels than the source has."""
    count = len(source.label_names)
    if model.has_classes and count != model.classes:
        remedy = f"set model.classes={count}"
        if not count:
            remedy = "take images with labels, as sub-folders give, or leave out model.classes and model.prior"
        raise DataError(f"{source.title} has {count or 'no'} labels, and model.classes is {model.classes}; {remedy}")


def check_batch_labels(batches: tf.data.Dataset, source: Source, model: ModelConfig) -> tf.data.Dataset:
    """Returns batches whose iteration, inside `Source.guard`, raises DataError at a label that the model cannot take.

    Batches for a model without labels are returned unchanged.
    """
    if not model.has_classes:
        return batches
    least = 0 if model.has_class_codes else NO_LABEL
    message = f"an image of {source.title} has a label that is none of {least} to {model.classes - 1}"
    if model.has_class_codes:
        message += "; where model.prior is 'classes' each image needs one, as sub-folders give"
    source.bad_images.keep_error(DataError(message), _UNKNOWN)

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
