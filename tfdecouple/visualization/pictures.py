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

# The number of images up to 64 x 64 in a picture, and the largest side of an image in a picture, in pixels.
USUAL = 40
_SIDE = 128


@dataclasses.dataclass(frozen=True)
class PictureInputs:
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
Draw = Callable[[PictureInputs], Image.Image | None]
# The functions by the name of the picture, which ends the file's name and stands in TensorBoard.
PICTURES: dict[str, Draw] = {}


def register_picture(name: str) -> Callable[[Draw], Draw]:
    """Returns a decorator that registers a function of `PictureInputs` as a picture of each evaluation."""

    def register(draw: Draw) -> Draw:
        PICTURES[name] = draw
        return draw

    return register


@register_picture("reconstructions")
def _draw_reconstructions(inputs: PictureInputs) -> Image.Image:
    return draw_reconstruction_grid(inputs.images, *inputs.reconstructed, side=_SIDE)


@register_picture("samples")
def _draw_samples(inputs: PictureInputs) -> Image.Image:
    return draw_sample_grid(inputs.model, count=min(max(inputs.most // 4, 2), 10), seed=inputs.seed, side=_SIDE)


@register_picture("classes")
def _draw_classes(inputs: PictureInputs) -> Image.Image | None:
    if inputs.labels is None:
        return None
    most = max(inputs.most // 4, 2)
    labels, columns = range(min(len(inputs.label_names), most)), min(most, 10)
    return draw_class_grid(inputs.model, labels, inputs.label_names, columns=columns, seed=inputs.seed, side=_SIDE)


@register_picture("interpolation")
def _draw_interpolation(inputs: PictureInputs) -> Image.Image:
    places = (0, 0.2, 0.4, 0.6, 0.8, 1) if inputs.most >= 10 else (0, 0.5, 1)
    a, b, labels = inputs.pairs(1)
    return draw_interpolation_grid(interpolate_pairs(inputs.model, a, b, places, labels=labels), places, side=_SIDE)


@register_picture("switch")
def _draw_switch(inputs: PictureInputs) -> Image.Image | None:
    count = min(len(inputs.images) // 2, 20)
    if not (inputs.model.config.has_latent and count):
        return None
    a, b, labels = inputs.pairs(count)
    return draw_switch_grid(inputs.model, a, b, side=_SIDE, labels=labels)


def save_pictures(
    inputs: PictureInputs, folder: pathlib.Path, prefix: str, on_picture: Callable[[str], None] = lambda name: None
) -> int:
    """Writes every picture of `PICTURES` as PREFIX + name + ".png", or none if one fails.

    Args:
        inputs: the model and the images; a switch takes at least 2 images.
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
        pictures[name] = draw(inputs)
    for name, image in pictures.items():
        if image is not None:
            image.save(folder / f"{prefix}{name}.png")
    return inputs.reconstructed[1]
