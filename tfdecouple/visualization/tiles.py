"""Images in rows and columns of one picture, with a caption that says what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfdecouple.config.shapes import RGB_CHANNELS

# Most grids are about this wide, in pixels.
WIDTH = 800
_GAP = 2
# Height of a line of text.
LINE = 18
_BACKGROUND = (255, 255, 255)
_INK = (0, 0, 0)


def grid(
    images: np.ndarray,
    caption: str = "",
    group: tuple[int, int] = (0, 0),
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    about: int = WIDTH,
    side: int = 0,
) -> Image.Image:
    """Arranges images in rows and columns.

    Args:
        images: uint8 `[rows, columns, height, width, channels]`. Of more than three channels the first three are
            shown as RGB, of two the first alone.
        caption: what stands below the grid, wrapped to its width; every line begins a new one.
        group: a wider gap after every so many rows, and after every so many columns; 0 for none.
        row_labels: what stands to the left of each row; empty for nothing.
        column_labels: what stands above each column; empty for nothing.
        about: small images are enlarged by whole factors until the grid is about this wide, in pixels.
        side: larger images are shrunk by whole factors until they are no wider than this, in pixels; 0 for never.

    Returns:
        The picture, every pixel of an image enlarged by the same whole factor, or the mean of some.
    """
    images = _in_colour(images)
    if side and (shrink := math.ceil(images.shape[3] / side)) > 1:
        images, about = _shrunk(images, shrink), 0
    rows, columns, height, width, _ = images.shape
    factor = max(1, about // (columns * (width + _GAP)))
    font = ImageFont.load_default(size=14)
    margin = max((math.ceil(font.getlength(label)) + 6 for label in row_labels), default=0)
    header = LINE if column_labels else 0

    def offset(index: int, side: int, together: int) -> int:
        return _GAP + index * (side * factor + _GAP) + (index // together * 3 * _GAP if together else 0)

    def corner(row: int, column: int) -> tuple[int, int]:
        return margin + offset(column, width, group[1]), header + offset(row, height, group[0])

    left, top = corner(rows - 1, columns - 1)
    picture_width, bottom = left + width * factor + _GAP, top + height * factor + _GAP
    lines = [line for text in caption.splitlines() for line in _wrap(text, font, picture_width - 2 * _GAP)]
    picture = Image.new("RGB", (picture_width, bottom + LINE * len(lines) + (6 if lines else 0)), _BACKGROUND)
    for row in range(rows):
        for column in range(columns):
            tile = Image.fromarray(images[row, column])
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            picture.paste(tile, corner(row, column))
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(row_labels):
        middle = corner(row, 0)[1] + height * factor // 2
        draw.text((margin - 4, middle), label, fill=_INK, font=font, anchor="rm")
    for column, label in enumerate(column_labels):
        centre = corner(0, column)[0] + width * factor // 2
        draw.text((centre, header // 2 + 1), label, fill=_INK, font=font, anchor="mm")
    for number, line in enumerate(lines):
        draw.text((_GAP, bottom + LINE * number), line, fill=_INK, font=font)
    return picture


def _in_colour(images: np.ndarray) -> np.ndarray:
    """Returns images of any number of channels in three, as they are shown."""
    if images.shape[-1] >= RGB_CHANNELS:
        return images[..., :RGB_CHANNELS]
    return np.repeat(images[..., :1], RGB_CHANNELS, -1)


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """Returns images of which every pixel is the mean of a square of `factor` pixels."""
    small = [np.asarray(Image.fromarray(image).reduce(factor)) for image in images.reshape(-1, *images.shape[2:])]
    return np.stack(small).reshape(*images.shape[:2], *small[0].shape)


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def in_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images in rows; white ones fill up the last.

    Args:
        images: uint8 `[n, ...]`, at least one.
        columns: images in a row.

    Returns:
        uint8 `[rows, columns, ...]`.
    """
    missing = -len(images) % columns
    white = np.full((missing, *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, white]).reshape(-1, columns, *images.shape[1:])
