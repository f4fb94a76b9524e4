"""Functions that draw grids of images: any images, or a model's samples, reconstructions, switches and edits.

Images are uint8 `[n, height, width, channels]`. Three arguments mean the same in all functions. `note` is a text that
ends the caption. `side` is the largest width of an image in the grid, in pixels; 0 for no limit. `labels` are the
labels of the images, `[n]`, or two arrays for pairs of images, or None for a model without labels.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.model import DecoupledModel
from tfdecouple.model.any_size import run_in_parts
from tfdecouple.model.codes import interpolate_codes
from tfdecouple.storage.files import Facts
from tfdecouple.system.progress import Counter

# Approximate width of most grids, in pixels.
WIDTH = 800
# Height of a line of text, in pixels.
LINE = 18
_GAP = 2
# Count of images that the model computes at once, which affects the memory in use, but no picture.
_CHUNK = 64

PairLabels = Sequence[np.ndarray | None]


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
    """Draws images in rows and columns; returns a Pillow image.

    The first three channels are drawn as RGB; if there are fewer, the first channel is drawn as grey. An integer factor
    enlarges or shrinks the images: a pixel becomes a square, or a square of pixels becomes one of their mean colour.

    Args:
        images: the images, uint8 `[rows, columns, height, width, channels]`.
        caption: the text below the grid, wrapped to the grid's width; line breaks in the text are kept.
        group: (count of rows, count of columns) between wider gaps; 0 for no wider gaps.
        row_labels: the texts to the left of the rows.
        column_labels: the texts above the columns.
        width: the approximate width of the grid in pixels, to which small images are enlarged by an integer factor.
        side: the largest width of an image in pixels; wider images are shrunk by an integer factor; 0 for no limit.
    """
    channels = slice(RGB_CHANNELS) if images.shape[-1] >= RGB_CHANNELS else [0] * RGB_CHANNELS
    images = images[..., channels]
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
        gaps = [index // size if size else 0 for index, size in zip((row, column), group, strict=True)]
        left = margin + _GAP + column * (tile_width + _GAP) + gaps[1] * 3 * _GAP
        return left, header + _GAP + row * (tile_height + _GAP) + gaps[0] * 3 * _GAP

    left, top = find_corner(rows - 1, columns - 1)
    right, bottom = left + tile_width + _GAP, top + tile_height + _GAP
    lines = [line for text in caption.splitlines() for line in _wrap_caption(text, font, right - 2 * _GAP)]
    picture = Image.new("RGB", (right, bottom + LINE * len(lines) + (6 if lines else 0)), "white")
    for row in range(rows):
        for column in range(columns):
            tile = Image.fromarray(images[row, column])
            tile = tile.resize((tile_width, tile_height), Image.Resampling.NEAREST)
            picture.paste(tile, find_corner(row, column))
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(row_labels):
        middle = find_corner(row, 0)[1] + tile_height // 2
        draw.text((margin - 4, middle), label, fill="black", font=font, anchor="rm")
    for column, label in enumerate(column_labels):
        middle = find_corner(0, column)[0] + tile_width // 2
        draw.text((middle, header // 2 + 1), label, fill="black", font=font, anchor="mm")
    for number, line in enumerate(lines):
        draw.text((_GAP, bottom + LINE * number), line, fill="black", font=font)
    return picture


def _wrap_caption(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def arrange_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images, uint8 `[n, ...]`, in rows, `[rows, columns, ...]`; white images fill up the last row."""
    white = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, white]).reshape(-1, columns, *images.shape[1:])


def draw_sample_grid(
    model: DecoupledModel,
    rows: Mapping[str, Facts],
    what: str,
    *,
    count: int = 10,
    seed: int = 0,
    note: str = "",
    side: int = 0,
) -> Image.Image:
    """Returns a picture of `count` samples for each entry of `rows`, {label of the row: arguments of `model.sample`}.

    Samples of different rows share their noise. The caption calls the labels of the rows `what`.
    """
    bands = []
    with Counter("sampling", count * len(rows)) as counter:
        for arguments in rows.values():
            bands.append(arrange_rows(np.asarray(model.sample(count, seed=seed, **arguments)), min(count, 10)))
            counter(len(bands) * count)
    height = len(bands[0])
    caption = f"Samples, labelled with {what}; samples at the same position share their noise. {note}"
    labels = [label if row == 0 else "" for label in rows for row in range(height)]
    group = (height if height > 1 else 0, 0)
    return draw_grid(np.concatenate(bands), caption, group, row_labels=labels, side=side)


def reconstruct_images(
    model: DecoupledModel, images: np.ndarray, labels: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Encodes and decodes images; returns the decoded images, uint8, and the count of them that equal the originals."""
    parts = []
    with Counter("reconstructing", len(images)) as counter:
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            parts.append(model.decode(*model.encode(images[part], None if labels is None else labels[part])))
            counter(min(start + _CHUNK, len(images)))
    decoded = np.concatenate(parts)
    return decoded, int((decoded == images).reshape(len(images), -1).all(1).sum())


def draw_reconstruction_grid(
    images: np.ndarray, decoded: np.ndarray, exact: int, note: str = "", side: int = 0
) -> Image.Image:
    """Draws `images` above their reconstructions `decoded`; the caption says that `exact` of these are equal."""
    columns = min(len(images), 10)
    rows = [arrange_rows(batch, columns) for batch in (images, decoded)]
    tiles = np.stack(rows, 1).reshape(-1, columns, *images.shape[1:])
    caption = f"Image above, decode(encode(image)) below: {exact} of {len(images)} identical to the last pixel. {note}"
    return draw_grid(tiles, caption, group=(2, 0), side=side)


def switch_images(
    model: DecoupledModel,
    a: np.ndarray,
    b: np.ndarray,
    strength: float = 1.0,
    labels: PairLabels = (None, None),
    match: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns decode(z, v of a) and decode(z, v of b), uint8, where z goes by `strength` to that of the other image.

    With `strength` 0, z is the image's own; with 1, it is the other's. `match` says whether z goes through `match_z`.
    """

    def switch(a: np.ndarray, b: np.ndarray, *known: np.ndarray | None) -> list[tf.Tensor]:
        codes, switched = [model.encode(a, known[0]), model.encode(b, known[1])], []
        for (own_z, v), (other_z, _) in (codes, codes[::-1]):
            z = interpolate_codes(own_z, other_z, [strength])[:, 0]
            switched.append(model.decode(model.match_z(z, v) if match else z, v))
        return switched

    ba, ab = run_in_parts(switch, _CHUNK, a, b, *labels)
    return np.asarray(ba), np.asarray(ab)


def draw_switch_grid(
    a: np.ndarray, b: np.ndarray, ba: np.ndarray, ab: np.ndarray, what: str = "Switch", note: str = "", side: int = 0
) -> Image.Image:
    """Draws pairs of images, and what a model decodes after switching the z of a pair (paper Figure 1).

    A tile has two rows: an image of `a` beside `ba` (z of b, v of a), and an image of `b` beside `ab` (z of a, v of b).
    """
    columns = min(5, len(a))
    tiles = arrange_rows(np.stack([np.stack([a, ba], 1), np.stack([b, ab], 1)], 1), columns)
    rows, shape = len(tiles), a.shape[1:]
    tiles = tiles.transpose(0, 2, 1, 3, 4, 5, 6).reshape(2 * rows, 2 * columns, *shape)
    caption = f"{what}. Each tile: left two images, right the same v with the z of the other (paper Figure 1). {note}"
    return draw_grid(tiles, caption, group=(2, 2), side=side)


def interpolate_pairs(
    model: DecoupledModel,
    a: np.ndarray,
    b: np.ndarray,
    places: Sequence[float],
    paths: Sequence[str] = ("lerp",),
    labels: PairLabels = (None, None),
) -> np.ndarray:
    """Interpolates between the images `a[i]` and `b[i]` in z and in v, and decodes the results.

    The result is uint8 `[n, paths, rows, places, height, width, channels]`. `places` are positions from 0 (`a[i]`) to 1
    (`b[i]`). z changes from row to row, and v from column to column; a model without z has one row. `paths` says how v
    is interpolated: "lerp" (along a line) or "slerp" (along an arc).
    """
    z_places, tiles = places if model.config.has_latent else places[:1], []
    with Counter("interpolating", len(a), unit="pairs") as counter:
        for index in range(len(a)):
            pair = slice(index, index + 1)
            known = [None if of_images is None else of_images[pair] for of_images in labels]
            tiles.append([model.interpolate(a[pair], b[pair], z_places, places, known, path)[0] for path in paths])
            counter(len(tiles))
    return np.array(tiles)


def draw_interpolation_grid(
    tiles: np.ndarray, places: Sequence[float], paths: Sequence[str] = ("lerp",), note: str = "", side: int = 0
) -> Image.Image:
    """Draws `tiles`, the result of `interpolate_pairs`, with `paths` side by side (paper Figure 5)."""
    count, _, rows, columns = tiles.shape[:4]
    numbers = [f"{place:.2g}" for place in places]
    row_labels = [f"z {number}" for number in numbers] * count if rows > 1 else []
    caption = "Interpolation. Down: z from one image to the other; across: v."
    if rows == 1 < columns:
        caption = "Interpolation of v alone, from one image (0) to the other (1)."
    if tuple(paths) != ("lerp",):
        caption += f" Path of v: {', '.join(paths)}."
    return draw_grid(
        np.moveaxis(tiles, 1, 2).reshape(count * rows, len(paths) * columns, *tiles.shape[4:]),
        f"{caption} {note}",
        group=(rows if count > 1 else 0, columns if len(paths) > 1 else 0),
        row_labels=row_labels,
        column_labels=[f"v {number}" for number in numbers] * len(paths),
        width=WIDTH * len(paths),
        side=side,
    )


def edit_images(
    model: DecoupledModel, images: np.ndarray, directions: Sequence[np.ndarray], amounts: Sequence[float]
) -> np.ndarray:
    """Moves z of images along each of the `directions`, vectors float32 `[d_z]`, by each of the `amounts`.

    The result is uint8 `[n, directions, amounts, height, width, channels]`. Each image is encoded once.
    """

    def edit(part: np.ndarray) -> np.ndarray:
        z, v = model.encode(part)[:2]
        assert z is not None
        rows = [[np.float32(amount) * vector for amount in amounts] for vector in directions]
        return np.moveaxis(np.array([[model.decode(z + change, v) for change in row] for row in rows]), 2, 0)

    return np.asarray(run_in_parts(edit, _CHUNK, images))


def draw_edit_grid(
    edited: np.ndarray, directions: Sequence[str], amounts: Sequence[float], name: str, note: str = ""
) -> Image.Image:
    """Draws the result of `edit_images`, a row for each image and direction, and a column for each amount.

    If there are several `directions`, by different methods, their names label the rows. The caption calls them `name`.
    """
    return draw_grid(
        edited.reshape(-1, *edited.shape[2:]),
        f"Along {name}: a multiple of the direction is added to z, v stays the same; 0 is the image itself. {note}",
        group=(len(directions) if len(directions) > 1 else 0, 0),
        row_labels=list(directions) * len(edited) if len(directions) > 1 else (),
        column_labels=[f"{amount:g}" for amount in amounts],
    )


def draw_neighbour_grid(queries: np.ndarray, neighbours: Mapping[str, np.ndarray], caption: str = "") -> Image.Image:
    """Returns a picture of `queries`, each beside its k nearest images by each distance (such as "pixels")."""
    k = next(iter(neighbours.values())).shape[1]
    blocks = [np.concatenate([queries[:, None], images], 1) for images in neighbours.values()]
    labels = [label for name in neighbours for label in ("sample", f"{name}: 1", *map(str, range(2, k + 1)))]
    return draw_grid(np.concatenate(blocks, 1), caption, group=(0, k + 1), column_labels=labels, width=1000)
