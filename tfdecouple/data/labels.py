"""Labels of images, checked: a number stands for a name of the source, and -1 for none."""

from __future__ import annotations

import numpy as np

from tfdecouple.data.source import Source
from tfdecouple.errors import DataError

NO_LABEL = -1


def checked_labels(source: Source, labels: np.ndarray) -> np.ndarray:
    """Returns labels, int32 `[n]`, each of which has a name in the source or is -1.

    Raises:
        DataError: where one is neither, or where two labels of the source have one name.
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
    """Returns labels as `checked_labels`, of images that must all have one.

    Args:
        source: of the images.
        split: which of its images they are.
        labels: `[n]`.
        what: what needs them, such as "a linear probe".

    Raises:
        DataError: where one has none.
    """
    labels = checked_labels(source, labels)
    if (labels == NO_LABEL).any():
        raise DataError(f"{source.title} has {split} images without a label; {what} needs labels, as sub-folders give")
    return labels
