"""Pictures of what a model does: grids of images with a caption that says what they show."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfdecouple.model import DecoupledModel

# Small images are enlarged by whole factors until a grid is about this wide, in pixels.
_WIDTH = 800
_GAP = 2
_BACKGROUND = (255, 255, 255)


def grid(images: np.ndarray, caption: str = "", group: tuple[int, int] = (0, 0)) -> Image.Image:
    """Arranges images in rows and columns.

    Args:
        images: uint8 `[rows, columns, height, width, 3]`.
        caption: a line or more below the grid.
        group: a wider gap after every so many rows, and after every so many columns; 0 for none.

    Returns:
        The picture, every pixel of an image enlarged by the same whole factor.
    """
    rows, columns, height, width, _ = images.shape
    factor = max(1, _WIDTH // (columns * (width + _GAP)))

    def offset(index: int, side: int, together: int) -> int:
        return _GAP + index * (side * factor + _GAP) + (index // together * 3 * _GAP if together else 0)

    def place(row: int, column: int) -> tuple[int, int]:
        return offset(column, width, group[1]), offset(row, height, group[0])

    font = ImageFont.load_default(size=14)
    left, top = place(rows - 1, columns - 1)
    picture_width, bottom = left + width * factor + _GAP, top + height * factor + _GAP
    lines = _wrap(caption, font, picture_width - 2 * _GAP)
    picture = Image.new("RGB", (picture_width, bottom + 18 * len(lines) + (6 if lines else 0)), _BACKGROUND)
    for row in range(rows):
        for column in range(columns):
            tile = Image.fromarray(images[row, column])
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            picture.paste(tile, place(row, column))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((_GAP, bottom + 18 * number), line, fill=(0, 0, 0), font=font)
    return picture


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def sample_grid(model: DecoupledModel, *, columns: int = 10, seed: int = 0) -> Image.Image:
    """Samples at five temperatures, one band of rows each with the same z and the same direction of v."""
    temperatures = (0.5, 0.7, 0.8, 0.9, 1.0)
    bands = [np.asarray(model.sample(columns, temperature, seed=seed)) for temperature in temperatures]
    tiles = np.stack(bands)
    caption = "Samples. Rows: temperature of v " + ", ".join(map(str, temperatures)) + "; a column shares its draws."
    return grid(tiles, caption)


def reconstruct(model: DecoupledModel, images: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns decode(encode(images)), and how many of the images came back to the last pixel.

    Args:
        model: the model.
        images: uint8 `[n, height, width, 3]`.
    """
    back = np.asarray(model.decode(*model.encode(images)))
    return back, int((back == images).reshape(len(images), -1).all(1).sum())


def reconstruction_grid(model: DecoupledModel, images: np.ndarray) -> tuple[Image.Image, int]:
    """Images above their reconstructions decode(encode(image)).

    Args:
        model: the model.
        images: uint8 `[n, height, width, 3]`.

    Returns:
        The picture, and how many of the images came back to the last pixel.
    """
    back, exact = reconstruct(model, images)
    columns = min(len(images), 10)
    rows = len(images) // columns
    pairs = np.stack([images[: rows * columns], back[: rows * columns]])
    tiles = pairs.reshape(2, rows, columns, *images.shape[1:]).swapaxes(0, 1).reshape(-1, columns, *images.shape[1:])
    caption = f"Image above, decode(encode(image)) below: {exact} of {len(images)} identical to the last pixel."
    return grid(tiles, caption, group=(2, 0)), exact


def switch_grid(model: DecoupledModel, a: np.ndarray, b: np.ndarray, columns: int = 5) -> Image.Image:
    """Tiles of 2 x 2 as in the paper's Figure 1: above a and (z of b, v of a), below b and (z of a, v of b).

    Args:
        model: a model with z.
        a: uint8 `[n, height, width, 3]`.
        b: the same shape.
        columns: tiles in a row.
    """
    ab, ba = (np.asarray(images) for images in model.switch(a, b))
    columns = min(columns, len(a))
    rows = len(a) // columns
    shape = a.shape[1:]
    tiles = np.stack([np.stack([a, ba], 1), np.stack([b, ab], 1)], 1)[: rows * columns]
    tiles = tiles.reshape(rows, columns, 2, 2, *shape).transpose(0, 2, 1, 3, 4, 5, 6)
    caption = "Switch. Each tile: left two images, right the same v with the z of the other (paper Figure 1)."
    return grid(tiles.reshape(2 * rows, 2 * columns, *shape), caption, group=(2, 2))


def interpolation_grid(
    model: DecoupledModel, a: np.ndarray, b: np.ndarray, places: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1)
) -> Image.Image:
    """Two-dimensional interpolation between two images (paper Figure 5): alpha, for z, down and beta, for v, across.

    Args:
        model: the model.
        a: uint8 `[height, width, 3]`, the upper left corner.
        b: the lower right corner.
        places: of alpha and of beta.
    """
    tiles = np.asarray(model.interpolate(a[None], b[None], places, places))[0]
    caption = (
        "Interpolation. Down: z from one image to the other; across: v. Upper left and lower right: the two images."
    )
    return grid(tiles, caption)


def save_pictures(model: DecoupledModel, images: np.ndarray, folder: pathlib.Path, prefix: str, seed: int = 0) -> int:
    """Writes the grids of samples, reconstructions, switches and interpolation.

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
    picture, exact = reconstruction_grid(model, images)
    pictures = {"reconstructions": picture, "samples": sample_grid(model, seed=seed)}
    half = len(images) // 2
    pictures["interpolation"] = interpolation_grid(model, images[0], images[half])
    if model.config.has_latent and half:
        count = min(half, 20)
        pictures["switch"] = switch_grid(model, images[:count], images[half : half + count])
    for name, picture in pictures.items():
        picture.save(folder / f"{prefix}{name}.png")
    return exact
