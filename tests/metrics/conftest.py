"""A fixture for the tests of metrics: a source of random images."""

import numpy as np
import pytest
from helpers.models import random_images

from tfdecouple.data.splits import MemorySplit, Source


@pytest.fixture(scope="module")
def source():
    def split(images):
        labels = np.full(len(images), -1, np.int32)
        return MemorySplit(len(images), "all", lambda: (images, labels))

    train = random_images(60, seed=1) // 2
    return Source(
        name="noise",
        title="noise",
        label_names=(),
        image_shape=(8, 8, 3),
        splits={"train": split(train), "test": split(random_images(50, seed=2))},
    )
