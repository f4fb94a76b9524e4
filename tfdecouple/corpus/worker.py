"""What a worker of a cluster does: read image files, and encode them with an exported encoder.

No step needs Apache Beam to run but for reporting, so that these are ordinary functions and picklable objects.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfdecouple.corpus.fields import NO_LABEL, Field, key_bytes
from tfdecouple.data.folder import SPLIT_FOLDERS, SUFFIXES
from tfdecouple.data.image_file import read_image
from tfdecouple.errors import DataError, one_line
from tfdecouple.image_shapes import Shape

UNREADABLE = "unreadable"


@dataclasses.dataclass(frozen=True)
class Images:
    """The rule by which files below a folder are images with keys and labels: that of `folder:PATH`.

    Attributes:
        root: the folder, with a "/" at its end.
        has_splits: whether its first sub-folders are splits: "train" and what belongs beside it.
    """

    root: str
    has_splits: bool

    def key(self, path: str) -> str:
        """Returns a file's path below the folder."""
        return path.removeprefix(self.root)

    def __contains__(self, path: str) -> bool:
        names = self.key(path).split("/")
        image = names[-1].lower().endswith(SUFFIXES) and not any(name.startswith(".") for name in names)
        return image and (not self.has_splits or (len(names) > 1 and names[0] in SPLIT_FOLDERS))

    def label_name(self, path: str) -> str:
        """Returns the sub-folder that labels a file, "" where it lies in none."""
        folders = self.key(path).split("/")[:-1]
        return next(iter(folders[self.has_splits :]), "")


def numbered(names: Sequence[bytes]) -> dict[bytes, int]:
    """Returns the labels by their names, in the order of these as text; an empty one is that of none."""
    return {name: number for number, name in enumerate(sorted(set(names) - {b""}, key=os.fsdecode))}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads image files.

    Attributes:
        images: which files.
        image_shape: height, width and channels of the images.
        centre_crop: see `read_image`.
    """

    images: Images
    image_shape: Shape
    centre_crop: int

    def read(self, name: bytes, labels: dict[bytes, int]) -> Iterator[Any]:
        """Yields key, label and pixels, uint8 [height, width, channels], of a file; or why it cannot be read."""
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.metrics import Metrics
        from apache_beam.pvalue import TaggedOutput

        path = os.fsdecode(name)
        key = key_bytes(self.images.key(path))
        try:
            if "://" not in path and not os.path.isfile(path):
                # A pipe would be waited for without an end.
                raise DataError("it is no regular file")
            with FileSystems.open(path) as file:
                content = file.read()
            pixels = read_image(path, self.image_shape, self.centre_crop, io.BytesIO(content))
        except DataError as error:
            Metrics.counter("tfdecouple", UNREADABLE).inc()
            yield TaggedOutput(UNREADABLE, f"{key.decode()}: {one_line(error.__cause__ or error)}")
        else:
            yield key, labels.get(os.fsencode(self.images.label_name(path)), NO_LABEL), pixels


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes batches of images with an ONNX file.

    Attributes:
        model: path of the file.
        fields: which of its outputs.
        threads: of ONNX Runtime; 1 where there is a worker for each core.
    """

    model: str
    fields: tuple[Field, ...]
    threads: int

    def encode(self, batch: Sequence[tuple[bytes, int, np.ndarray]]) -> tuple[list[bytes], list[int], dict]:
        """Returns the keys, the labels and the arrays by field of what `Reader` yielded."""
        from apache_beam.metrics import Metrics

        keys, labels, pixels = (list(column) for column in zip(*batch, strict=True))
        names = tuple(field.name for field in self.fields)
        arrays = open_session(self.model, self.threads, names).run(names, {"images": np.stack(pixels)})
        Metrics.counter("tfdecouple", "images").inc(len(keys))
        return keys, labels, dict(zip(names, arrays, strict=True))


@functools.lru_cache(maxsize=1)
def open_session(model: str, threads: int, names: tuple[str, ...] = ()) -> Any:
    """Returns the session of an ONNX file: one for a process, whichever thread asks.

    Args:
        model: path of the file.
        threads: of ONNX Runtime.
        names: of the outputs that are wanted; () for all. What only others need is cut off: without v the flow does not
            run, which ONNX Runtime would not leave out by itself.

    Raises:
        DataError: where it cannot be opened.
    """
    import onnx.utils
    import onnxruntime
    from apache_beam.io.filesystems import FileSystems

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    content: str | bytes = model
    try:
        if "://" in model:
            # Elsewhere than on a disk, a model is one file: weights beside it could not be found.
            with FileSystems.open(model) as file:
                content = file.read()
        if names and "v" not in names:
            whole = onnx.load(model) if isinstance(content, str) else onnx.load_model_from_string(content)
            content = onnx.utils.Extractor(whole).extract_model(["images"], list(names)).SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime has an exception for each of its codes, and storage has its own.
    except Exception as error:
        raise DataError(f"cannot open the encoder {model}: {one_line(error)}") from error
