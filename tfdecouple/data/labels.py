"""Checks of image labels (indices of label names, or -1 for none); numeric attributes of images from CSV files."""

import csv
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config import ModelConfig
from tfdecouple.data.sources import Source
from tfdecouple.errors import DataError, one_line

NO_LABEL = -1
# TensorFlow's error for an unknown label contains this text, by which `BadImages.find_image_error` finds the DataError
# to raise. The text has no characters that TensorFlow would escape.
_UNKNOWN = "tfdecouple found an unknown label"


def check_labels(source: Source, labels: np.ndarray) -> np.ndarray:
    """Returns `labels` as int32 `[n]`; raises DataError unless each is -1 or an index into `source.label_names`."""
    count, labels = len(source.label_names), np.asarray(labels, np.int32)
    wrong = (labels < NO_LABEL) | (labels >= count)
    if wrong.any():
        held = f"has {count} labels, 0 to {count - 1}" if count else "has no labels"
        raise DataError(f"an image of {source.title} has the label {labels[wrong][0]}, but the data set {held}")
    return labels


def require_label_count(source: Source, model: ModelConfig) -> None:
    """Raises DataError if `model.classes` is neither 0 (a model without labels) nor the data source's label count."""
    count = len(source.label_names)
    if model.has_labels and count != model.classes:
        remedy = f"set model.classes={count}"
        if not count:
            remedy = "use images with labels, such as in sub-folders, or leave out model.classes and model.prior"
        raise DataError(f"{source.title} has {count or 'no'} labels, and model.classes is {model.classes}; {remedy}")


def check_batch_labels(batches: tf.data.Dataset, source: Source, model: ModelConfig) -> tf.data.Dataset:
    """Returns the dataset `batches`, whose iteration inside `source.guard()` fails at a label that the model lacks.

    For a model without labels, `batches` is returned unchanged.
    """
    if not model.has_labels:
        return batches
    least = 0 if model.has_label_codes else NO_LABEL
    message = f"an image of {source.title} has a label that is not from {least} to {model.classes - 1}"
    if model.has_label_codes:
        message += "; with model.prior=classes each image needs a label, such as the name of its sub-folder"
    source.bad_images.store_image_error(DataError(message), _UNKNOWN)

    @tf.autograph.experimental.do_not_convert
    def check(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        label = batch["label"]
        is_valid = tf.reduce_all((label >= least) & (label < model.classes))
        with tf.control_dependencies([tf.debugging.Assert(is_valid, [_UNKNOWN])]):
            return {**batch, "label": tf.identity(label)}

    return batches.map(check)


def make_training_inputs(batches: tf.data.Dataset, source: Source, model: ModelConfig) -> tf.data.Dataset:
    """Converts batches from dicts to images, uint8, or to pairs (images, labels) for a model with labels."""
    if not model.has_labels:
        return batches.map(lambda batch: batch["image"])
    return check_batch_labels(batches, source, model).map(lambda batch: (batch["image"], batch["label"]))


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Numeric attributes of images, such as an age, a pose, or 1 and 0 for yes and no, from a CSV file.

    `names` are the names of the attributes. `rows` is {image key: float64 array with one value for each name}; NaN
    stands for an empty cell. An image key is a path below the data folder, or "split/index" (see
    `Source.find_image_key`). `path` is the path of the CSV file.
    """

    path: str
    names: tuple[str, ...]
    rows: dict[str, np.ndarray]

    def look_up_attributes(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the attributes of the images `keys`, float64 `[n, attributes]`; NaN where the CSV file has none."""
        return np.stack([self.rows.get(key, np.full(len(self.names), np.nan)) for key in keys])


def read_attributes(path: str) -> Attributes:
    """Reads a CSV file with numeric attributes of images; returns `Attributes`; DataError if the file is malformed.

    The first line of the file has the names of the columns. Each other line has the key of an image (its path below the
    data folder, or "split/index"), then the attributes of the image.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _parse_attribute_rows(path, csv.reader(file, strict=True, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"cannot read the attributes {path}: {reason}; give a CSV file in UTF-8") from error


def _parse_attribute_rows(path: str, lines: Any) -> Attributes:
    names = tuple(name.strip() for name in next(lines, []))[1:]
    if not names or not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path} must begin with a line of names, each different, such as: file,age,smiling")
    rows: dict[str, np.ndarray] = {}
    for name, *cells in filter(None, lines):
        try:
            numbers = np.array([float(cell.strip() or "nan") for cell in cells])
            if name.strip() in rows or len(cells) != len(names) or np.isinf(numbers).any():
                raise ValueError
        except ValueError:
            raise DataError(
                f"line {lines.line_num} of {path} is {one_line(','.join([name, *cells]), 80)!r}; it must be a further "
                f"file and {len(names)} cells, each a number or empty"
            ) from None
        rows[name.strip()] = numbers
    return Attributes(path, names, rows)
