"""Functions that arrange images in rows and columns of one picture, with a caption and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfdecouple.config.shapes import RGB_CHANNELS

# Approximate width of most grids, in pixels.
WIDTH = 800
# Height of a line of text, in pixels.
LINE = 18
_GAP = 2
_BACKGROUND = (255, 255, 255)
_INK = (0, 0, 0)


def draw_grid(
    images: np.ndarray,
    caption: str = "",
    group: tuple[int, int] = (0, 0),
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    width: int = WIDTH,
    side: int = 0,
) -> Image.Image:
    """Returns a picture of images in rows and columns.

    Args:
        images: the images, uint8 `[rows, columns, height, width, channels]`. The first three channels are shown as RGB;
            with fewer than three channels, the first is shown as grey.
        caption: the text below the grid, wrapped to its width; line breaks in the text are kept.
        group: the numbers of rows and of columns after which there is a wider gap; 0 for no wider gap.
        row_labels: the texts to the left of the rows; empty for none.
        column_labels: the texts above the columns; empty for none.
        width: the approximate width of the grid in pixels, to which small images are enlarged by a whole factor.
        side: the largest width of an image in pixels; wider ones are shrunk by a whole factor; 0 for no limit.

    Returns:
        The picture. An enlarged pixel becomes a square; a shrunk square becomes one pixel, its mean.
    """
    images = (
        images[..., :RGB_CHANNELS] if images.shape[-1] >= RGB_CHANNELS else np.repeat(images[..., :1], RGB_CHANNELS, -1)
    )
    if side and (shrink := math.ceil(images.shape[3] / side)) > 1:
        small = [np.asarray(Image.fromarray(image).reduce(shrink)) for image in images.reshape(-1, *images.shape[2:])]
        images, width = np.stack(small).reshape(*images.shape[:2], *small[0].shape), 0
    rows, columns, tile_height, tile_width, _ = images.shape
    factor = max(1, width // (columns * (tile_width + _GAP)))
    tile_height, tile_width = tile_height * factor, tile_width * factor
    font = ImageFont.load_default(size=14)
    margin = max((math.ceil(font.getlength(label)) + 6 for label in row_labels), default=0)
    header = LINE if column_labels else 0

    def find_corner(row: int, column: int) -> tuple[int, int]:
        """Returns the positions of the left and upper edges of the image in a row and column, in pixels."""
        wide = [place // every if every else 0 for place, every in zip((row, column), group, strict=True)]
        left = margin + _GAP + column * (tile_width + _GAP) + wide[1] * 3 * _GAP
        return left, header + _GAP + row * (tile_height + _GAP) + wide[0] * 3 * _GAP

    left, top = find_corner(rows - 1, columns - 1)
    right, bottom = left + tile_width + _GAP, top + tile_height + _GAP
    lines = [line for text in caption.splitlines() for line in _wrap(text, font, right - 2 * _GAP)]
    picture = Image.new("RGB", (right, bottom + LINE * len(lines) + (6 if lines else 0)), _BACKGROUND)
    for row in range(rows):
        for column in range(columns):
            tile = Image.fromarray(images[row, column])
            tile = tile.resize((tile_width, tile_height), Image.Resampling.NEAREST)
            picture.paste(tile, find_corner(row, column))
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(row_labels):
        middle = find_corner(row, 0)[1] + tile_height // 2
        draw.text((margin - 4, middle), label, fill=_INK, font=font, anchor="rm")
    for column, label in enumerate(column_labels):
        middle = find_corner(0, column)[0] + tile_width // 2
        draw.text((middle, header // 2 + 1), label, fill=_INK, font=font, anchor="mm")
    for number, line in enumerate(lines):
        draw.text((_GAP, bottom + LINE * number), line, fill=_INK, font=font)
    return picture


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Returns the lines of a text, wrapped to `width` pixels; only a single word can be wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def arrange_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns images in rows, uint8 `[rows, columns, ...]`; white images fill the last row.

    Args:
        images: the images, uint8 `[n, ...]`, at least one.
        columns: the number of images in a row.
    """
    white = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, white]).reshape(-1, columns, *images.shape[1:])
