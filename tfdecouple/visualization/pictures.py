"""The pictures that a training run saves at each evaluation: grids of validation images and of samples."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tfdecouple.model import DecoupledModel
from tfdecouple.registry import PICTURES
from tfdecouple.visualization import grids

# Largest count of images in a picture if they have at most 64 x 64 pixels; a picture of larger images has fewer.
USUAL = 40
# Largest width of an image in a picture, in pixels; wider images are shrunk.
_SIDE = 128


@dataclasses.dataclass(frozen=True)
class PictureInputs:
    """The model, and validation images, from which an evaluation in training draws its pictures.

    `images` are uint8 `[n, height, width, channels]`, and `labels` are int32 `[n]`, or None for a model without labels.
    `seed` is the seed of samples, and `most` is the approximate count of images in a picture.
    """

    model: DecoupledModel
    images: np.ndarray
    seed: int = 0
    most: int = USUAL
    labels: np.ndarray | None = None
    label_names: Sequence[str] = ()

    @functools.cached_property
    def reconstructed(self) -> tuple[np.ndarray, int]:
        """The decoded images, uint8, and the count of them that equal the originals; computed at the first use."""
        return grids.reconstruct_images(self.model, self.images, labels=self.labels)

    def select_image_pairs(self, count: int) -> tuple[np.ndarray, np.ndarray, grids.PairLabels]:
        """Makes `count` pairs of the validation images; returns (first images, second images, labels of both)."""
        first, second = slice(count), slice(len(self.images) // 2, len(self.images) // 2 + count)
        labels = [None if self.labels is None else self.labels[half] for half in (first, second)]
        return self.images[first], self.images[second], labels


def count_shown_images(image_shape: tuple[int, int, int]) -> int:
    """Returns how many images of `image_shape` fit in a picture: `USUAL` (40) up to 64 x 64 pixels, fewer if larger.

    >>> [count_shown_images((size, size, 3)) for size in (32, 64, 128, 256, 1024)]
    [40, 40, 10, 4, 4]
    """
    return min(USUAL, max(4, USUAL * 64**2 // math.prod(image_shape[:2])))


def _draw_reconstructions(inputs: PictureInputs) -> Image.Image:
    return grids.draw_reconstruction_grid(inputs.images, *inputs.reconstructed, side=_SIDE)


def _draw_samples(inputs: PictureInputs) -> Image.Image:
    rows = {str(temperature): {"temperature": temperature} for temperature in (0.5, 0.7, 0.8, 0.9, 1.0)}
    count = min(max(inputs.most // 4, 2), 10)
    return grids.draw_sample_grid(inputs.model, rows, "the temperature of v", count=count, seed=inputs.seed, side=_SIDE)


def _draw_classes(inputs: PictureInputs) -> Image.Image | None:
    if inputs.labels is None:
        return None
    most = max(inputs.most // 4, 2)
    rows = {name: {"temperature": 0.7, "labels": label} for label, name in enumerate(inputs.label_names[:most])}
    what = "a label; the temperature of v is 0.7"
    return grids.draw_sample_grid(inputs.model, rows, what, count=min(most, 10), seed=inputs.seed, side=_SIDE)


def _draw_interpolation(inputs: PictureInputs) -> Image.Image:
    places = (0, 0.2, 0.4, 0.6, 0.8, 1) if inputs.most >= 10 else (0, 0.5, 1)
    a, b, labels = inputs.select_image_pairs(1)
    tiles = grids.interpolate_pairs(inputs.model, a, b, places, labels=labels)
    return grids.draw_interpolation_grid(tiles, places, side=_SIDE)


def _draw_switch(inputs: PictureInputs) -> Image.Image | None:
    count = min(len(inputs.images) // 2, 20)
    if not (inputs.model.config.has_latent and count):
        return None
    a, b, labels = inputs.select_image_pairs(count)
    return grids.draw_switch_grid(a, b, *grids.switch_images(inputs.model, a, b, labels=labels), side=_SIDE)


def draw_pictures(inputs: PictureInputs) -> tuple[dict[str, Image.Image], int]:
    """Draws all pictures of an evaluation; returns {name: picture}, and how many images are reconstructed exactly.

    UserError is raised if the model yields pixels that are not finite.
    """
    drawn = {name: draw(inputs) for name, draw in PICTURES.items()}
    return {name: picture for name, picture in drawn.items() if picture is not None}, inputs.reconstructed[1]
