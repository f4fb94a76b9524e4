"""Whether images come back from their codes, pixel for pixel: real ones, and kinds that no camera takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.doctor import trained
from tfdecouple.doctor.finding import Finding
from tfdecouple.errors import ExactnessWarning
from tfdecouple.image_shapes import COLOURS, Shape

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

# Colours of boards and of plain images.
_RED, _GREEN, _BLUE, _BLACK, _WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), 0, 255
_CYAN, _MAGENTA, _YELLOW = (0, 255, 255), (255, 0, 255), (255, 255, 0)


def come_back(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes and decodes images, uint8 `[n, height, width, channels]`.

    Returns:
        In how many values each image differs afterwards, int `[n]`; and the root mean square of v of each, float `[n]`,
        near 1 for images like those of the training.
    """
    with warnings.catch_warnings():
        # What does not come back is counted here, which says more than the warning.
        warnings.simplefilter("ignore", ExactnessWarning)
        z, v = model.encode(images)
    differing = (np.asarray(model.decode(z, v)) != images).reshape(len(images), -1).sum(1)
    return differing, np.sqrt(np.square(np.asarray(v)).mean((1, 2, 3)))


def extreme_images(image_shape: Shape, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns images that no camera takes, uint8 `[n, height, width, channels]`, by kind; colours are of RGB alone."""
    height, width, channels = image_shape
    rng = np.random.default_rng(seed)
    odd = np.indices((height, width)).sum(0)[..., None] % 2

    def board(*pairs: Any) -> np.ndarray:
        both = [np.where(odd == 0, a, b) for pair in pairs for a, b in (pair, pair[::-1])]
        return np.stack([np.broadcast_to(image, image_shape) for image in both]).astype(np.uint8)

    def plain(*colours: Any) -> np.ndarray:
        return np.stack([np.broadcast_to(np.uint8(colour), image_shape) for colour in colours])

    kinds = {"black, white": plain(_BLACK, _WHITE)}
    if channels == COLOURS:
        kinds["plain red, green, blue"] = plain(_RED, _GREEN, _BLUE)
    kinds["checkerboard, black and white"] = board((_BLACK, _WHITE))
    if channels == COLOURS:
        kinds |= {
            "checkerboard, red and blue": board((_RED, _BLUE)),
            "checkerboard, green and magenta": board((_GREEN, _MAGENTA)),
            "checkerboard, cyan and yellow": board((_CYAN, _YELLOW)),
        }
    kinds["noise"] = rng.integers(0, 256, (count, *image_shape), dtype=np.uint8)
    kinds["noise of 0 and 255"] = (255 * rng.integers(0, 2, (count, *image_shape))).astype(np.uint8)
    if channels > 1:
        grey = 255 * rng.integers(0, 2, (count, height, width, 1))
        kinds["grey noise of 0 and 255"] = np.repeat(grey, channels, -1).astype(np.uint8)
    return kinds


def every_kind(count: int) -> dict[str, np.ndarray]:
    """Returns so many photographs, and of each kind of noise so many, of the size of the small model, by kind."""
    return {"photographs": trained.load_images(count), **extreme_images(trained.CONFIG.model.image_shape, count)}


def count_of(examination: Examination) -> int:
    """Returns how many images of a kind are tried."""
    return 64 if examination.request.quick else trained.BROUGHT


def measure(device: str, count: int) -> Iterator[dict[str, Any]]:
    """Yields how many images come back on a device."""
    import tensorflow as tf

    from tfdecouple.runs import load_model

    yield {"doing": f"encode and decode on {device}"}
    with tf.device(device):
        model = load_model(trained.FOLDER)
        every = every_kind(count)
        # All in one batch: of each other size the model would be traced again.
        differing, _ = come_back(model, np.concatenate(list(every.values())))
    of_each = np.split(differing, np.cumsum([len(images) for images in every.values()])[:-1])
    kinds = {kind: [len(of), int((of > 0).sum()), int(of.sum())] for kind, of in zip(every, of_each, strict=True)}
    yield {"where": f"Keras, {device}", "kinds": kinds}


def judge(found: dict[str, Any]) -> Finding:
    """Says whether all images came back somewhere: `where`, and of each of `kinds` [images, lost, subpixels]."""
    where, kinds = found["where"], found["kinds"]
    images = sum(counts[0] for counts in kinds.values())
    lost = {kind: counts[1] for kind, counts in kinds.items() if counts[1]}
    if not lost:
        return Finding(where, True, f"all {images} images of {len(kinds)} kinds come back identical", figures=found)
    listed = ", ".join(f"{count} of {kinds[kind][0]} {kind}" for kind, count in lost.items())
    advice = (
        f"{where} does not compute in full float32 or not the same way twice: look for variables that lower the "
        "precision, see docs/runtimes.md for what a runtime must be told, and decode nothing there until then"
    )
    return Finding(where, False, f"lost: {listed}", advice, found)


def check(examination: Examination) -> Iterator[Finding]:
    """Sends images through the small model on every device."""
    for device in dict.fromkeys(["CPU:0", *examination.devices]):
        arguments = {"device": device, "count": count_of(examination)}
        yield from examination.findings("tfdecouple.doctor.exactness:measure", judge, f"Keras, {device}", arguments)
