"""Whether images come back from their codes, pixel for pixel: real ones, and kinds that no camera takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfdecouple.doctor import small_model
from tfdecouple.doctor.result import Result, Task
from tfdecouple.errors import ExactnessWarning
from tfdecouple.image_shapes import COLOURS, Shape

_RED, _GREEN, _BLUE, _BLACK, _WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), 0, 255
_CYAN, _MAGENTA, _YELLOW = (0, 255, 255), (255, 0, 255), (255, 255, 0)


def come_back(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes and decodes images, uint8 `[n, height, width, channels]`.

    Returns:
        The number of values in which each image differs afterwards, int `[n]`; and the root mean square of v of each,
        float `[n]`, near 1 for images like those of the training.
    """
    with warnings.catch_warnings():
        # The count of lost images says more than the warning.
        warnings.simplefilter("ignore", ExactnessWarning)
        z, v = model.encode(images)
    differing = (np.asarray(model.decode(z, v)) != images).reshape(len(images), -1).sum(1)
    return differing, np.sqrt(np.square(np.asarray(v)).mean((1, 2, 3)))


def extreme_images(image_shape: Shape, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns images that no camera takes, uint8 `[n, height, width, channels]`, by kind; colours for RGB alone."""
    height, width, channels = image_shape
    rng = np.random.default_rng(seed)
    odd = np.indices((height, width)).sum(0)[..., None] % 2

    def board(a: Any, b: Any) -> list[np.ndarray]:
        return [np.where(odd == 0, a, b), np.where(odd == 0, b, a)]

    kinds: dict[str, Any] = {"black, white": [_BLACK, _WHITE], "checkerboard, black and white": board(_BLACK, _WHITE)}
    if channels == COLOURS:
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


def images_by_kind(task: Task) -> dict[str, np.ndarray]:
    """Returns the images that are tried, of the size of the small model, by kind."""
    count = 64 if task.request.quick else small_model.PHOTOGRAPHS
    shape = small_model.load_images(1).shape[1:]
    return {"photographs": small_model.load_images(count), **extreme_images(shape, count)}


def run(task: Task) -> Iterator[Result]:
    """Yields for each device whether all images come back."""
    import tensorflow as tf

    from tfdecouple.runs import load_model

    kinds = images_by_kind(task)
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        with tf.device(device):
            model = load_model(small_model.FOLDER)
            # One batch: the model is traced for each size of a batch.
            differing, _ = come_back(model, np.concatenate(list(kinds.values())))
        split = np.split(differing, np.cumsum([len(images) for images in kinds.values()])[:-1])
        counts = {kind: [len(of), int((of > 0).sum()), int(of.sum())] for kind, of in zip(kinds, split, strict=True)}
        yield judge({"where": f"Keras, {device}", "kinds": counts})


def judge(found: dict[str, Any]) -> Result:
    """Returns whether all images came back at `where`; `kinds` has [images, lost, subpixels] of each kind."""
    where, kinds = found["where"], found["kinds"]
    lost = [f"{counts[1]} of {counts[0]} {kind}" for kind, counts in kinds.items() if counts[1]]
    if not lost:
        images = sum(counts[0] for counts in kinds.values())
        return Result(where, True, f"all {images} images of {len(kinds)} kinds come back identical", figures=found)
    advice = (
        f"{where} does not compute in full float32 or not the same way twice: look for variables that lower the "
        "precision, see docs/runtimes.md for what a runtime must be told, and decode nothing there until then"
    )
    return Result(where, False, f"lost: {', '.join(lost)}", advice, found)
