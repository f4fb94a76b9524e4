"""An opened data set."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from tfdecouple.config.shapes import Shape
from tfdecouple.data.splits import Split
from tfdecouple.errors import DataError

_LOGGER = logging.getLogger(__name__)


class BadImages:
    """Keeps account of images that cannot be read, under the rule `data.on_bad_image`."""

    def __init__(self, rule: str) -> None:
        self._failures: dict[str, DataError] = {}
        self._skips = rule == "skip"
        self._skipped: set[str] = set()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of different images that were skipped."""
        return len(self._skipped)

    def is_skipped(self, path: str) -> bool:
        """Whether the image was skipped before."""
        return path in self._skipped

    def fail(self, message: str) -> DataError:
        """Returns the error that says `message`, and remembers it for `failure_in`."""
        with self._lock:
            return self._failures.setdefault(message, DataError(message))

    def expect(self, token: str, message: str) -> None:
        """Remembers for `failure_in` what a text means that quotes `token`."""
        with self._lock:
            self._failures[token] = DataError(message)

    def failure_in(self, text: str) -> DataError | None:
        """Returns the remembered error that `text` quotes; None where it quotes none."""
        with self._lock:
            return next((error for message, error in self._failures.items() if message in text), None)

    def meet(self, path: str, error: DataError) -> None:
        """Counts an unreadable image where the rule is to skip it; else remembers `error` and raises it.

        Raises:
            DataError: `error`, where the rule is to stop.
        """
        with self._lock:
            if not self._skips:
                raise self._failures.setdefault(str(error), error)
            if path not in self._skipped:
                self._skipped.add(path)
                _LOGGER.warning("skipped: %s", error)


class Source:
    """An opened data set with its three splits, which never share an image.

    Attributes:
        name: what `data.source` named, such as "cifar10".
        title: for people, such as "embedded photographs".
        label_names: one name per label; empty where there are no labels.
        image_shape: height, width and channels of the images.
        splits: the splits "train", "validation" and "test".
        notes: what whoever trains on it should know, a line each.
    """

    def __init__(
        self,
        *,
        name: str,
        title: str,
        label_names: tuple[str, ...],
        image_shape: Shape,
        splits: Mapping[str, Split],
        bad_images: BadImages | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.title = title
        self.label_names = label_names
        self.image_shape = image_shape
        self.splits = dict(splits)
        self.notes = tuple(notes)
        self._bad_images = bad_images or BadImages("stop")

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: split.size for name, split in self.splits.items()}

    @property
    def descriptions(self) -> dict[str, str]:
        """For people: which images of the data set each split has, such as "train[-1000:]"."""
        return {name: split.description for name, split in self.splits.items()}

    @property
    def skipped(self) -> int:
        """How many unreadable images were skipped so far (`data.on_bad_image=skip`)."""
        return self._bad_images.count

    def split(self, name: str) -> Split:
        """Returns a split by its name, ready to be read.

        Raises:
            DataError: where there is no such split, or its images cannot be loaded.
        """
        if name not in self.splits:
            raise DataError(f"there is no split {name!r}; use one of {', '.join(self.splits)}")
        self.splits[name].prepare()
        return self.splits[name]

    def key(self, split: str, index: int) -> str:
        """Returns the name of an image, which no other image of the source has.

        That is its path below the folder, or "split/index" where the images of the data set have no names.
        """
        keys = self.splits[split].keys
        return f"{split}/{index}" if keys is None else keys[index]

    def keys(self) -> Iterator[str]:
        """Yields the names of all images, split by split; see `key`."""
        for split, size in self.sizes.items():
            yield from (self.key(split, index) for index in range(size))

    def examples(self, split: str) -> tf.data.Dataset:
        """Returns a split's images as they are: not shuffled, not augmented, in the same order each time.

        Args:
            split: "train", "validation" or "test".

        Returns:
            A finite dataset of dicts: "image" uint8 [height, width, channels], "label" int32 [] (-1 for none) and
            "index" int64 [], counting from 0. An image that is skipped as unreadable leaves its index out.

        Raises:
            DataError: where there is no such split, or its images cannot be loaded.
        """
        return self.split(split).examples()

    def expect_failure(self, token: str, message: str) -> None:
        """Lets `guard` raise a DataError of this message where an assertion in a pipeline has failed with the token.

        Args:
            token: letters and spaces alone: TensorFlow escapes others.
            message: one line.
        """
        self._bad_images.expect(token, message)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns TensorFlow's error about an unreadable image into the DataError that names it.

        tf.data hides the exceptions of its functions in its own error and a traceback as text. Folders that fit in
        memory are read when they are opened and need no guard; loops over larger ones run inside it.

        Raises:
            DataError: where an image could not be read and `data.on_bad_image` is "stop".
        """
        try:
            yield
        except tf.errors.OpError as error:
            # Files are read ahead, so what is known to be bad need not be what this error is about.
            failure = self._bad_images.failure_in(error.message)
            if failure is None:
                raise
            raise failure from None
