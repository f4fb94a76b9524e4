"""Checks of labels: the numbers of the names that a source has, and -1 for none."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import ModelConfig
from tfdecouple.data.splits import Source
from tfdecouple.errors import DataError

NO_LABEL = -1
# The text of the assertion on labels, by which `BadImages` finds the message; TensorFlow escapes all but letters and
# spaces.
_UNKNOWN = "tfdecouple found an unknown label"


def check_labels(source: Source, labels: np.ndarray) -> np.ndarray:
    """Returns the labels as int32 `[n]`, after a check that each has a name in the source or is -1.

    Raises:
        DataError: for another label, or where two labels of the source have the same name.
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
    """Returns the labels `[n]` of images of a split, checked as by `check_labels`.

    Raises:
        DataError: where an image has none; `what` names the user of the labels, such as "a linear probe".
    """
    labels = check_labels(source, labels)
    if (labels == NO_LABEL).any():
        raise DataError(f"{source.title} has {split} images without a label; {what} needs labels, as sub-folders give")
    return labels


def require_classes(source: Source, model: ModelConfig) -> None:
    """Raises DataError where a source has other than `model.classes` labels, or two labels with the same name."""
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
    """Returns batches whose iteration fails at a label that the model cannot take, with a DataError in `Source.guard`.

    Args:
        batches: dicts with "label" `[batch]`.
        source: the data set of the images.
        model: options of the model; without labels in it the batches are returned as they are.
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
    """Returns the inputs of a training step: images, or pairs of images and labels for a model that knows labels."""
    if not model.has_classes:
        return batches.map(lambda batch: batch["image"])
    return check_batch_labels(batches, source, model).map(lambda batch: (batch["image"], batch["label"]))
