"""Two data sources: images that are computed, and the images of a file."""

import numpy as np

from tfdecouple import DataError
from tfdecouple.data.sources import SourceKind


def make_source(name, parts, image_shape):
    from tfdecouple.data.sources import Source
    from tfdecouple.data.splits import MemorySplit

    splits = {
        split: MemorySplit(len(images), split, lambda images=images: (images, np.full(len(images), -1, np.int32)))
        for split, images in parts.items()
    }
    return Source(name=name, title=name, label_names=(), image_shape=image_shape, splits=splits)


class Stripes(SourceKind):
    def open(self, image_shape, download):
        rows = np.random.default_rng(0).integers(0, 256, (3, 64, image_shape[0], 1, 1), np.uint8)
        images = np.broadcast_to(rows, (3, 64, *image_shape))
        return make_source("stripes", dict(zip(("train", "validation", "test"), images, strict=True)), image_shape)


class Arrays(SourceKind):
    """Images of a NumPy file, uint8 `[n, height, width, channels]`; half of them are for training."""

    takes_path = True

    def open(self, image_shape, download):
        images = np.load(self.locate_images()[1], allow_pickle=False)
        if images.shape[1:] != image_shape or len(images) < 4:
            raise DataError(f"{self.config.source} has the shape {images.shape}; it must be [n, *{image_shape}]")
        return make_source(
            "array", {"train": images[0::2], "validation": images[1::4], "test": images[3::4]}, image_shape
        )
