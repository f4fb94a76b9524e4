import numpy as np
import pytest

from tfdecouple.data.splits import MemorySplit, Source


@pytest.fixture(scope="session")
def make_source():
    """A function that makes a source of 8 x 8 images from the images, and perhaps labels, of each split."""

    def split(images, labels=None):
        labels = np.full(len(images), -1) if labels is None else labels
        return MemorySplit(len(images), "all", lambda: (images, np.asarray(labels, np.int32)))

    def make(train, test, validation=None):
        splits = {"train": split(*train), "test": split(*test)}
        if validation is not None:
            splits["validation"] = split(*validation)
        names = {"name": "colours", "title": "coloured images", "label_names": ("red", "green", "blue")}
        return Source(**names, image_shape=(8, 8, 3), splits=splits)

    return make
