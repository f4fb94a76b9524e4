"""Checks of `doctor` that images come back from their codes to the last pixel, in Keras and in exported files."""

from __future__ import annotations

import importlib
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfdecouple.config.shapes import RGB_CHANNELS, Shape
from tfdecouple.doctor import small_model
from tfdecouple.doctor.result import Result, Task
from tfdecouple.errors import ExactnessWarning
from tfdecouple.runtime.requirements import MissingPackageError, require

_RED, _GREEN, _BLUE, _BLACK, _WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), 0, 255
_CYAN, _MAGENTA, _YELLOW = (0, 255, 255), (255, 0, 255), (255, 255, 0)


def count_changed_subpixels(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much encoding and decoding change each of `images`, uint8 `[n, height, width, channels]`.

    Returns:
        The number of subpixels that change in each image, int `[n]`, and the root mean square of each image's v, float
        `[n]`, which is near 1 for images like the training images.
    """
    with warnings.catch_warnings():
        # The warning is ignored, because the returned number of changed subpixels says more.
        warnings.simplefilter("ignore", ExactnessWarning)
        z, v = model.encode(images)
    changed = (np.asarray(model.decode(z, v)) != images).reshape(len(images), -1).sum(1)
    return changed, np.sqrt(np.square(np.asarray(v)).mean((1, 2, 3)))


def make_extreme_images(image_shape: Shape, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns artificial extreme images by kind, uint8 `[n, height, width, channels]`; only RGB has coloured kinds."""
    height, width, channels = image_shape
    rng = np.random.default_rng(seed)
    odd = np.indices((height, width)).sum(0)[..., None] % 2

    def board(a: Any, b: Any) -> list[np.ndarray]:
        return [np.where(odd == 0, a, b), np.where(odd == 0, b, a)]

    kinds: dict[str, Any] = {"black, white": [_BLACK, _WHITE], "checkerboard, black and white": board(_BLACK, _WHITE)}
    if channels == RGB_CHANNELS:
        kinds |= {
            "plain red, green, blue": [_RED, _GREEN, _BLUE],
            "checkerboard, red and blue": board(_RED, _BLUE),
            "checkerboard, green and magenta": board(_GREEN, _MAGENTA),
            "checkerboard, cyan and yellow": board(_CYAN, _YELLOW),
        }
    kinds["noise"] = rng.integers(0, 256, (count, *image_shape), dtype=np.uint8)
    kinds["noise of 0 and 255"] = 255 * rng.integers(0, 2, (count, *image_shape))
    if channels > 1:
        kinds["grey noise of 0 and 255"] = 255 * rng.integers(0, 2, (count, height, width, 1))
    return {
        kind: np.stack([np.broadcast_to(image, image_shape) for image in images]).astype(np.uint8)
        for kind, images in kinds.items()
    }


def load_images_by_kind(task: Task) -> dict[str, np.ndarray]:
    """Returns photographs and extreme images of the small model's size, by kind, for round trips."""
    count = 64 if task.request.quick else small_model.PHOTOGRAPHS
    shape = small_model.load_images(1).shape[1:]
    return {"photographs": small_model.load_images(count), **make_extreme_images(shape, count)}


def try_round_trips(task: Task) -> Iterator[Result]:
    """Yields a result for each device: whether the small model recovers all images from their codes."""
    import tensorflow as tf

    from tfdecouple.runs.opened_run import load_model

    kinds = load_images_by_kind(task)
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        with tf.device(device):
            # All images are one batch, because TensorFlow would trace the model once for each batch size.
            changed, _ = count_changed_subpixels(load_model(small_model.FOLDER), np.concatenate(list(kinds.values())))
        parts = np.split(changed, np.cumsum([len(images) for images in kinds.values()])[:-1])
        counts = {
            kind: [len(part), int((part > 0).sum()), int(part.sum())] for kind, part in zip(kinds, parts, strict=True)
        }
        yield check_round_trip({"where": f"Keras, {device}", "kinds": counts})


def check_round_trip(trip: dict[str, Any]) -> Result:
    """Returns the result of a round trip, whose `kinds` has [images, lost images, lost subpixels] for each kind."""
    where, kinds = trip["where"], trip["kinds"]
    lost = [f"{counts[1]} of {counts[0]} {kind}" for kind, counts in kinds.items() if counts[1]]
    images = sum(counts[0] for counts in kinds.values())
    message = f"lost: {', '.join(lost)}" if lost else f"all {images} images of {len(kinds)} kinds come back identical"
    advice = (
        f"{where} does not compute in full float32 or not the same way twice: look for variables that lower the "
        "precision, see docs/runtimes.md for the options of each runtime, and decode nothing there until then"
    )
    return Result(where, not lost, message, advice, trip)


def try_exports(task: Task) -> Iterator[Result]:
    """Yields results of an export of the small model: whether its files recover all images, in each runtime."""
    try:
        require("tf2onnx", "onnx", "onnxruntime", "tensorflow_serving", what="an export")
        scratch = tempfile.TemporaryDirectory()
    except MissingPackageError as error:
        yield Result("the export", None, f"not tried: {error}")
        return
    except OSError as error:
        message = f"no folder for temporary files can be written ({error.strerror or error})"
        yield Result("the export", False, message, "set TMPDIR to a folder that can be written")
        return
    # The package `export` is imported by its name, because it depends on this library and not the reverse.
    runtimes = importlib.import_module("export.verification.runtimes")
    with scratch as name:
        folder, kinds = pathlib.Path(name), load_images_by_kind(task)
        providers = runtimes.make_files(str(small_model.FOLDER), folder)
        message = f"SavedModel and ONNX files; ONNX Runtime has {', '.join(providers)}"
        yield Result("the export", True, message, figures={"providers": providers})
        for device in dict.fromkeys(["CPU:0", *task.devices]):
            yield check_export(runtimes.round_trip_saved_model(folder, device, kinds))
        for provider in providers:
            yield check_export(runtimes.round_trip_onnx(folder, provider, kinds))


def check_export(trip: dict[str, Any]) -> Result:
    """Returns the result of a runtime's round trip; a provider without its device or libraries is no failure."""
    if reason := trip.get("unavailable"):
        return Result(trip["where"], None, f"installed, but not usable here: {reason}", figures=trip)
    return check_round_trip(trip)
