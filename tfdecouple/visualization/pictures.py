"""The pictures that training writes at each evaluation, by name; commands draw the same grids of other images."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from tfdecouple.model import DecoupledModel
from tfdecouple.visualization.grids import (
    beside,
    class_grid,
    interpolation_grid,
    reconstruct,
    sample_grid,
    switch_grid,
)


class Shown:
    """What the pictures of an evaluation show.

    Attributes:
        model: the model.
        images: uint8 `[n, height, width, channels]`, at least 1, that the model was not trained on.
        half: half their number, rounded down: pictures of two images take one of each half.
        seed: of what is drawn at random.
        most: how many images a picture is to show, about.
        side: tiles are no larger, in pixels.
        labels: of the images, int32 `[n]`; None for a model that knows none.
        label_names: of all labels that the model knows.
    """

    def __init__(
        self,
        model: DecoupledModel,
        images: np.ndarray,
        seed: int,
        most: int,
        labels: np.ndarray | None = None,
        label_names: Sequence[str] = (),
    ):
        self.model, self.images, self.half, self.seed = model, images, len(images) // 2, seed
        self.labels, self.label_names = labels, label_names
        self.most, self.side = most, _SIDE

    @functools.cached_property
    def reconstructed(self) -> tuple[np.ndarray, int]:
        """The images back from their codes, and how many are the same to the last pixel."""
        return reconstruct(self.model, self.images, labels=self.labels)

    def pair(self, first: slice, second: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the labels of two groups of the images; None for a model that knows none."""
        return None if self.labels is None else (self.labels[first], self.labels[second])


# A picture of as many images as usual shows this many; of larger ones it shows them no larger than so many pixels.
USUAL = 40
_SIDE = 128


def shown_of_size(image_shape: tuple[int, int, int]) -> int:
    """Returns how many images of a shape are shown at most: the usual number up to 64 x 64, fewer of larger ones.

    >>> [shown_of_size((size, size, 3)) for size in (32, 64, 128, 256, 1024)]
    [40, 40, 10, 4, 4]
    """
    return min(USUAL, max(4, USUAL * 64**2 // math.prod(image_shape[:2])))


# Draws a picture with its caption; None where the model or the images are not such as it needs.
Draw = Callable[[Shown], Image.Image | None]

# By the name that ends the file's and that TensorBoard shows.
PICTURES: dict[str, Draw] = {}
# Those of models that know labels.
_OF_LABELS: set[str] = set()


def picture(name: str, of_labels: bool = False) -> Callable[[Draw], Draw]:
    """Registers a function that draws a picture of every evaluation, of models that know labels or of all, by name."""

    def register(draw: Draw) -> Draw:
        PICTURES[name] = draw
        if of_labels:
            _OF_LABELS.add(name)
        return draw

    return register


@picture("reconstructions")
def _reconstructions(shown: Shown) -> Image.Image:
    return beside(shown.images, *shown.reconstructed, side=shown.side)


@picture("samples")
def _samples(shown: Shown) -> Image.Image:
    return sample_grid(shown.model, count=min(max(shown.most // 4, 2), 10), seed=shown.seed, side=shown.side)


@picture("classes", of_labels=True)
def _classes(shown: Shown) -> Image.Image:
    labels = range(min(len(shown.label_names), max(shown.most // 4, 2)))
    columns = min(max(shown.most // 4, 2), 10)
    return class_grid(shown.model, labels, shown.label_names, columns=columns, seed=shown.seed, side=shown.side)


@picture("interpolation")
def _interpolation(shown: Shown) -> Image.Image:
    places = (0, 0.2, 0.4, 0.6, 0.8, 1) if shown.most >= 10 else (0, 0.5, 1)
    half = shown.half
    labels = shown.pair(slice(1), slice(half, half + 1))
    return interpolation_grid(shown.model, shown.images[0], shown.images[half], places, side=shown.side, labels=labels)


@picture("switch")
def _switch(shown: Shown) -> Image.Image | None:
    count = min(shown.half, 20)
    if not (shown.model.config.has_latent and count):
        return None
    first, second = slice(count), slice(shown.half, shown.half + count)
    a, b, labels = shown.images[first], shown.images[second], shown.pair(first, second)
    return switch_grid(shown.model, a, b, side=shown.side, labels=labels)


def save_pictures(
    model: DecoupledModel,
    images: np.ndarray,
    folder: pathlib.Path,
    prefix: str,
    seed: int = 0,
    most: int = USUAL,
    tell: Callable[[str], None] = lambda name: None,
    labels: np.ndarray | None = None,
    label_names: Sequence[str] = (),
) -> int:
    """Writes every picture of `PICTURES`; none where one cannot be drawn.

    Args:
        model: the model.
        images: uint8 `[n, height, width, channels]`, images that it was not trained on, at least 1; a switch takes 2.
        folder: where to; made if absent.
        prefix: begins the files' names.
        seed: of the samples.
        most: how many images a picture is to show, about.
        tell: is told the name of each picture before it is drawn.
        labels: of the images, int32 `[n]`; None for a model that knows none.
        label_names: of all labels that the model knows.

    Returns:
        How many of the images came back from their codes to the last pixel.

    Raises:
        UserError: where a model yields pixels that are not finite.
        OSError: where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = Shown(model, images, seed, most, labels, label_names)
    drawn = {}
    for name, draw in PICTURES.items():
        if name in _OF_LABELS and labels is None:
            continue
        tell(name)
        drawn[name] = draw(shown)
    for name, image in drawn.items():
        if image is not None:
            image.save(folder / f"{prefix}{name}.png")
    return shown.reconstructed[1]
