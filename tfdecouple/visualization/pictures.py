"""The pictures of each evaluation of a training, by name. Commands draw the same grids of other images."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from tfdecouple.model import DecoupledModel
from tfdecouple.visualization.grids import (
    draw_class_grid,
    draw_interpolation_grid,
    draw_reconstruction_grid,
    draw_sample_grid,
    draw_switch_grid,
    interpolate_pairs,
    reconstruct_images,
)

# A picture shows so many images of up to 64 x 64 pixels, and larger images at no more than so many pixels a side.
USUAL = 40
_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Shown:
    """The model and the images that the pictures of an evaluation show.

    Attributes:
        model: the model.
        images: uint8 `[n, height, width, channels]`, at least 1, that the model was not trained on.
        seed: the seed of samples.
        most: about how many images a picture shows.
        labels: the labels of the images, int32 `[n]`; None for a model without labels.
        label_names: the names of all labels of the model.
    """

    model: DecoupledModel
    images: np.ndarray
    seed: int = 0
    most: int = USUAL
    labels: np.ndarray | None = None
    label_names: Sequence[str] = ()

    @functools.cached_property
    def reconstructed(self) -> tuple[np.ndarray, int]:
        """The images decoded from their codes, and how many of them are equal to the last pixel."""
        return reconstruct_images(self.model, self.images, labels=self.labels)

    def pairs(self, count: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
        """Returns pairs of one image from each half, and the labels of the two; None for a model without labels."""
        first, second = slice(count), slice(len(self.images) // 2, len(self.images) // 2 + count)
        labels = None if self.labels is None else (self.labels[first], self.labels[second])
        return self.images[first], self.images[second], labels


def count_shown(image_shape: tuple[int, int, int]) -> int:
    """Returns how many images of a shape a picture shows at most: the usual number up to 64 x 64, fewer if larger.

    >>> [count_shown((size, size, 3)) for size in (32, 64, 128, 256, 1024)]
    [40, 40, 10, 4, 4]
    """
    return min(USUAL, max(4, USUAL * 64**2 // math.prod(image_shape[:2])))


# A function that draws a picture with its caption, or returns None where it does not suit the model or the images.
Draw = Callable[[Shown], Image.Image | None]
# The functions by the name of the picture, which ends the file's name and stands in TensorBoard.
PICTURES: dict[str, Draw] = {}


def picture(name: str) -> Callable[[Draw], Draw]:
    """Returns a decorator that registers a function of `Shown` as a picture of each evaluation."""

    def register(draw: Draw) -> Draw:
        PICTURES[name] = draw
        return draw

    return register


@picture("reconstructions")
def _draw_reconstructions(shown: Shown) -> Image.Image:
    return draw_reconstruction_grid(shown.images, *shown.reconstructed, side=_SIDE)


@picture("samples")
def _draw_samples(shown: Shown) -> Image.Image:
    return draw_sample_grid(shown.model, count=min(max(shown.most // 4, 2), 10), seed=shown.seed, side=_SIDE)


@picture("classes")
def _draw_classes(shown: Shown) -> Image.Image | None:
    if shown.labels is None:
        return None
    most = max(shown.most // 4, 2)
    labels, columns = range(min(len(shown.label_names), most)), min(most, 10)
    return draw_class_grid(shown.model, labels, shown.label_names, columns=columns, seed=shown.seed, side=_SIDE)


@picture("interpolation")
def _draw_interpolation(shown: Shown) -> Image.Image:
    places = (0, 0.2, 0.4, 0.6, 0.8, 1) if shown.most >= 10 else (0, 0.5, 1)
    a, b, labels = shown.pairs(1)
    return draw_interpolation_grid(interpolate_pairs(shown.model, a, b, places, labels=labels), places, side=_SIDE)


@picture("switch")
def _draw_switch(shown: Shown) -> Image.Image | None:
    count = min(len(shown.images) // 2, 20)
    if not (shown.model.config.has_latent and count):
        return None
    a, b, labels = shown.pairs(count)
    return draw_switch_grid(shown.model, a, b, side=_SIDE, labels=labels)


def save_pictures(
    shown: Shown, folder: pathlib.Path, prefix: str, on_picture: Callable[[str], None] = lambda name: None
) -> int:
    """Writes every picture of `PICTURES` as PREFIX + name + ".png", or none if one fails.

    Args:
        shown: the model and the images; a switch takes at least 2 images.
        folder: the folder, which is made if it does not exist.
        prefix: the first part of the files' names.
        on_picture: called with the name of each picture before it is drawn.

    Returns:
        How many of the images are reconstructed to the last pixel.

    Raises:
        UserError: where the model yields pixels that are not finite.
        OSError: where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, draw in PICTURES.items():
        on_picture(name)
        pictures[name] = draw(shown)
    for name, image in pictures.items():
        if image is not None:
            image.save(folder / f"{prefix}{name}.png")
    return shown.reconstructed[1]
