"""A split of image files that are read when they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.data.image_file import read_image
from tfdecouple.data.source import BadImages
from tfdecouple.data.split import Split, Tensors
from tfdecouple.errors import DataError
from tfdecouple.image_shapes import Shape

# An image, its label and whether the file was readable.
Read = tuple[np.ndarray, np.int32, np.bool_]


class FileSplit(Split):
    """A split of image files too many for the memory."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        description: str,
        *,
        image_shape: Shape,
        centre_crop: int,
        bad_images: BadImages,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Makes the split; opens no file.

        Args:
            paths: of the images.
            labels: one for each path; -1 for none.
            description: for people.
            image_shape: height, width and channels of the decoded images.
            centre_crop: see `read_image`.
            bad_images: is told of files that cannot be read.
            keys: see `Split`.
        """
        super().__init__(len(paths), description, keys)
        self._paths = list(paths)
        self._labels = np.asarray(labels, np.int32)
        self._image_shape = image_shape
        self._centre_crop = centre_crop
        self._bad_images = bad_images

    def decode(self, record: tf.Tensor) -> Tensors:
        """See `Split.decode`; the record is an index, int64 [].

        In place of a skipped image comes the next one: were it left out, the batches after it would move, and a run
        that continues could not know how far without reading all images before.
        """
        return self._called(self._read_or_next, record)[:2]

    def examples(self, start: int = 0, stop: int | None = None) -> tf.data.Dataset:
        """See `Split.examples`; skipped images are left out."""

        def example(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            image, label, readable = self._called(self._read_or_zeros, index)
            return {"image": image, "label": label, "index": index}, readable

        records = self.records().take(self.size if stop is None else stop).skip(start)
        read = records.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return read.filter(lambda _, readable: readable).map(lambda example, _: example)

    def _called(self, function: Callable[[int], Read], index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image, label, readable = tf.numpy_function(function, [index], [tf.uint8, tf.int32, tf.bool])
        return tf.ensure_shape(image, self._image_shape), tf.ensure_shape(label, []), readable

    def _read(self, index: int) -> np.ndarray | None:
        path = self._paths[index]
        if self._bad_images.is_skipped(path):
            return None
        try:
            return read_image(path, self._image_shape, self._centre_crop)
        except DataError as error:
            self._bad_images.meet(path, error)
            return None

    def _read_or_zeros(self, index: int) -> Read:
        image = self._read(index)
        if image is None:
            zeros = np.zeros(self._image_shape, np.uint8)
            return zeros, self._labels[index], np.bool_(False)
        return image, self._labels[index], np.bool_(True)

    def _read_or_next(self, index: int) -> Read:
        for other in (*range(index, self.size), *range(index)):
            image = self._read(other)
            if image is not None:
                return image, self._labels[other], np.bool_(True)
        raise self._bad_images.fail(f"none of the {self.size} images can be read, the first is {self._paths[0]}")
