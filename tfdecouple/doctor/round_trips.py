"""Checks of `doctor` that images come back from their codes to the last pixel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfdecouple.config.shapes import RGB_CHANNELS, Shape
from tfdecouple.doctor import small_model
from tfdecouple.doctor.result import Result, Task
from tfdecouple.errors import ExactnessWarning

_RED, _GREEN, _BLUE, _CYAN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255)
_MAGENTA, _YELLOW = (255, 0, 255), (255, 255, 0)


def count_changed_subpixels(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many subpixels encoding and decoding change in each image, int `[n]`, and the size of its v.

    The size is the root mean square, float `[n]`, which is near 1 for images like the training images.
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

    kinds: dict[str, Any] = {"black, white": [0, 255], "checkerboard, black and white": board(0, 255)}
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


def try_round_trips(task: Task) -> Iterator[Result]:
    """Yields a result for each device: whether the small model recovers all images from their codes."""
    import tensorflow as tf

    from tfdecouple.runs.opened_run import load_model

    count = 64 if task.request.quick else small_model.PHOTOGRAPHS
    photographs = small_model.load_images(count)
    kinds = {"photographs": photographs, **make_extreme_images(photographs.shape[1:], count)}
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        with tf.device(device):
            # All images are one batch, because TensorFlow would trace the model once for each batch size.
            changed, _ = count_changed_subpixels(load_model(small_model.FOLDER), np.concatenate(list(kinds.values())))
        parts = np.split(changed, np.cumsum([len(images) for images in kinds.values()])[:-1])
        counts = {
            kind: [len(part), int((part > 0).sum()), int(part.sum())] for kind, part in zip(kinds, parts, strict=True)
        }
        lost = [f"{number} of {images} {kind}" for kind, (images, number, _) in counts.items() if number]
        message = f"all {len(changed)} images of {len(kinds)} kinds come back identical"
        advice = (
            f"{device} does not compute in full float32 or not the same way twice: look for variables that lower the "
            "precision, and decode nothing there until then"
        )
        where = f"Keras, {device}"
        message = f"lost: {', '.join(lost)}" if lost else message
        yield Result(where, not lost, message, advice, {"where": where, "kinds": counts})
