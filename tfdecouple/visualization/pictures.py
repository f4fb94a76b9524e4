"""The pictures that training writes at each evaluation, by name; commands draw the same grids of other images."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tfdecouple.model import DecoupledModel
from tfdecouple.visualization.grids import beside, interpolation_grid, reconstruct, sample_grid, switch_grid


class Shown:
    """What the pictures of an evaluation show.

    Attributes:
        model: the model.
        images: uint8 `[n, height, width, 3]`, at least 1, that the model was not trained on.
        half: half their number, rounded down: pictures of two images take one of each half.
        seed: of what is drawn at random.
    """

    def __init__(self, model: DecoupledModel, images: np.ndarray, seed: int):
        self.model, self.images, self.half, self.seed = model, images, len(images) // 2, seed

    @functools.cached_property
    def reconstructed(self) -> tuple[np.ndarray, int]:
        """The images back from their codes, and how many are the same to the last pixel."""
        return reconstruct(self.model, self.images)


# Draws a picture with its caption; None where the model or the images are not such as it needs.
Draw = Callable[[Shown], Image.Image | None]

# By the name that ends the file's and that TensorBoard shows.
PICTURES: dict[str, Draw] = {}


def picture(name: str) -> Callable[[Draw], Draw]:
    """Registers a function that draws a picture of every evaluation, under a name."""

    def register(draw: Draw) -> Draw:
        PICTURES[name] = draw
        return draw

    return register


@picture("reconstructions")
def _reconstructions(shown: Shown) -> Image.Image:
    return beside(shown.images, *shown.reconstructed)


@picture("samples")
def _samples(shown: Shown) -> Image.Image:
    return sample_grid(shown.model, seed=shown.seed)


@picture("interpolation")
def _interpolation(shown: Shown) -> Image.Image:
    return interpolation_grid(shown.model, shown.images[0], shown.images[shown.half])


@picture("switch")
def _switch(shown: Shown) -> Image.Image | None:
    count = min(shown.half, 20)
    if not (shown.model.config.has_latent and count):
        return None
    return switch_grid(shown.model, shown.images[:count], shown.images[shown.half : shown.half + count])


def save_pictures(model: DecoupledModel, images: np.ndarray, folder: pathlib.Path, prefix: str, seed: int = 0) -> int:
    """Writes every picture of `PICTURES`; none where one cannot be drawn.

    Args:
        model: the model.
        images: uint8 `[n, height, width, 3]`, images that it was not trained on, at least 1; a switch takes 2.
        folder: where to; made if absent.
        prefix: begins the files' names.
        seed: of the samples.

    Returns:
        How many of the images came back from their codes to the last pixel.

    Raises:
        UserError: where a model yields pixels that are not finite.
        OSError: where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = Shown(model, images, seed)
    drawn = {name: draw(shown) for name, draw in PICTURES.items()}
    for name, image in drawn.items():
        if image is not None:
            image.save(folder / f"{prefix}{name}.png")
    return shown.reconstructed[1]
