"""Feature extractors: files of networks that turn images into the vectors that the Frechet distance compares."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tfdecouple.errors import ExtractorError, UntrustedError, one_line
from tfdecouple.image_shapes import COLOURS, Shape, whole
from tfdecouple.metrics import inception
from tfdecouple.runtime.precision import full_float32
from tfdecouple.storage.files import sha256_of


class Extractor:
    """An opened feature extractor; `open_extractor` makes one.

    Attributes:
        file_name: of the file, without its folder.
        sha256: of the file's bytes, hexadecimal. Weights that an ONNX file keeps in a second file are not covered.
        is_fid: whether it is the Inception network of FID, by its checksum.

    Args:
        path: of the file.
        run: computes features of uint8 `[n, height, width, 3]`.
        sha256: as the attribute.
        is_fid: as the attribute.
    """

    def __init__(self, path: pathlib.Path, run: Callable[[np.ndarray], Any], sha256: str, is_fid: bool = False):
        self.file_name = path.name
        self.sha256 = sha256
        self.is_fid = is_fid
        self._run = run

    @full_float32()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the features of images.

        Args:
            images: uint8 `[n, height, width, 3]`, or of one channel, which is repeated.

        Returns:
            float `[n, features]`.

        Raises:
            ExtractorError: where the extractor fails, or gives features of another rank or that are not finite.
        """
        if images.shape[-1] == 1:
            images = np.repeat(images, COLOURS, -1)
        try:
            features = np.asarray(self._run(images))
        # Whatever a runtime raises; images that are too small for a network are the usual cause.
        except Exception as error:
            raise ExtractorError(
                f"the extractor {self.file_name} fails on images of shape {images.shape}: {one_line(error)}"
            ) from error
        if features.ndim != 2 or len(features) != len(images):
            raise ExtractorError(
                f"the extractor {self.file_name} gave features of shape {features.shape} for {len(images)} images; "
                "they must be [images, features]"
            )
        if not np.isfinite(features).all():
            raise ExtractorError(f"the extractor {self.file_name} gave features that are not finite; use another")
        return features


def open_extractor(path: pathlib.Path, image_shape: int | Shape, trust: bool = False) -> Extractor:
    """Opens a feature extractor: the Inception network of FID, a file named `.keras`, or else an ONNX file.

    The network of FID is known by its checksum alone (see `inception`), whatever the file's name. Another file must
    have one input, uint8 images `[n, height, width, 3]`, and one output `[n, features]`. Images go in as they are: an
    extractor that needs another size resizes them itself, so that its file says how.

    Args:
        path: of the file. Code in a Keras file (Lambda layers) is not run as far as Keras knows.
        image_shape: height, width and channels of the images; a number for squares of RGB.
        trust: whether to open a Keras file, which may run code all the same.

    Raises:
        UntrustedError: for a Keras file without `trust`.
        ExtractorError: where the file is missing, unreadable or of another input or output, or where it is the network
            of FID and torch, which reads it, is missing.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ExtractorError(f"there is no extractor file {path}; name an ONNX (.onnx) or Keras (.keras) file")
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise ExtractorError(f"{path} cannot be read: {error.strerror or error}") from error
    height, width, channels = whole(image_shape)
    if channels not in (1, COLOURS):
        raise ExtractorError(
            f"the images have {channels} channels, and the extractor {path.name} takes {COLOURS}; only grey images and "
            "those of three channels can be compared by it"
        )
    if sha256 == inception.SHA256:
        return Extractor(path, inception.open_inception(path), sha256, is_fid=True)
    if path.suffix in (".pt", ".pth"):
        raise ExtractorError(
            f"{path} has the sha256 {sha256}; of PyTorch files only the Inception network of FID is read, "
            f"{inception.FILE_NAME} with the sha256 {inception.SHA256}"
        )
    if path.suffix == ".keras" and not trust:
        raise UntrustedError(
            f"{path} is a Keras file, which can run code where Keras does not notice; give --trust where you know "
            "where it comes from, or name an ONNX file"
        )
    return Extractor(path, (_open_keras if path.suffix == ".keras" else _open_onnx)(path, (height, width)), sha256)


def _open_onnx(path: pathlib.Path, sides: tuple[int, int]) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its own messages would come between ours; errors are raised anyway.
    options.log_severity_level = 4
    # ONNX Runtime rounds products to TF32 on its own account.
    wanted = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    available = onnxruntime.get_available_providers()
    providers = [(name, options) for name, options in wanted.items() if name in available]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    # Its exceptions have no common class of their own.
    except Exception as error:
        raise ExtractorError(
            f"{path} cannot be opened as ONNX: {one_line(error)}; name an ONNX (.onnx) or Keras (.keras) file"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    _require_one(path, len(inputs), len(outputs))
    dtype = inputs[0].type.removeprefix("tensor(").removesuffix(")")
    _check(path, dtype, list(inputs[0].shape), list(outputs[0].shape), sides)
    name = inputs[0].name
    return lambda images: session.run(None, {name: images})[0]


def _open_keras(path: pathlib.Path, sides: tuple[int, int]) -> Callable[[np.ndarray], Any]:
    import keras

    try:
        model = keras.saving.load_model(path, compile=False)
    # Zip, JSON, unknown classes, unsafe code: Keras raises what it likes.
    except Exception as error:
        raise ExtractorError(f"{path} cannot be opened as a Keras model: {one_line(error)}") from error
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    _require_one(path, len(inputs), len(outputs))
    _check(
        path,
        keras.backend.standardize_dtype(inputs[0].dtype),
        list(inputs[0].shape),
        list(outputs[0].shape),
        sides,
    )
    return model.predict_on_batch


def _require_one(path: pathlib.Path, inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (1, 1):
        raise ExtractorError(
            f"the extractor {path.name} has {inputs} inputs and {outputs} outputs; it needs one of each, "
            "uint8 images [n, height, width, 3] and features [n, features]"
        )


def _check(path: pathlib.Path, dtype: str, input_shape: list, output_shape: list, sides: tuple[int, int]) -> None:
    """Compares what a file declares, whose sizes are whole numbers where they are fixed, with what is needed."""
    if dtype != "uint8":
        raise ExtractorError(
            f"the extractor {path.name} takes {dtype} images; it must take uint8 with values 0..255 "
            "and scale them itself"
        )
    needed = (None, *sides, COLOURS)
    fits = len(input_shape) == 4 and all(
        not isinstance(size, int) or size == wanted for size, wanted in zip(input_shape, needed, strict=True)
    )
    if not fits:
        raise ExtractorError(
            f"the extractor {path.name} takes images of shape {_shown(input_shape)}; these are "
            f"[n, {sides[0]}, {sides[1]}, {COLOURS}] with any n, so it must take them and resize them itself"
        )
    if len(output_shape) != 2:
        raise ExtractorError(
            f"the extractor {path.name} gives features of shape {_shown(output_shape)}; they must be [n, features]"
        )


def _shown(shape: list) -> str:
    return "[" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + "]"
