"""Functions that draw grids of a model's samples, reconstructions, switches, interpolations and edits.

Images are uint8 `[n, height, width, channels]`. These arguments have one meaning in all functions: `note` ends the
caption; `side` is the largest side of an image in the grid, as for `draw_grid`; `labels` are the labels of the images,
`[n]`, or a pair of label arrays for pairs of images, and None for a model without labels; `on_images` receives the
number of finished images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from tfdecouple.model import DecoupledModel
from tfdecouple.visualization.tiles import WIDTH, arrange_rows, draw_grid

# Number of images that the model computes at once, which changes the use of memory but no picture.
_CHUNK = 64

_PATHS = {"lerp": "the line (lerp)", "slerp": "the arc (slerp)"}

OnImages = Callable[[int], None]
PairLabels = tuple[np.ndarray, np.ndarray] | None


def _ignore(done: int) -> None:
    pass


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def draw_sample_grid(
    model: DecoupledModel,
    *,
    count: int = 10,
    seed: int = 0,
    temperatures: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 1.0),
    note: str = "",
    on_images: OnImages = _ignore,
    side: int = 0,
) -> Image.Image:
    """Returns a picture of `count` samples at each temperature, in rows of ten, from the same draws of z and noise.

    The temperatures are factors of v (paper section 3.1); z does not depend on them.

    Raises:
        InversionError: if a sample is not finite.
    """
    bands = []
    for temperature in temperatures:
        bands.append(arrange_rows(np.asarray(model.sample(count, temperature, seed=seed)), min(count, 10)))
        on_images(len(bands) * count)
    rows = len(bands[0])
    where = "Rows" if rows == 1 else "Bands"
    shared = "a column shares its draws" if rows == 1 else "the same place of each band shares its draws"
    caption = f"Samples. {where}: temperature of v {', '.join(map(str, temperatures))}; {shared}. {note}"
    labels = [str(temperature) if row == 0 else "" for temperature in temperatures for row in range(rows)]
    return draw_grid(np.concatenate(bands), caption, group=(rows if rows > 1 else 0, 0), row_labels=labels, side=side)


def draw_class_grid(
    model: DecoupledModel,
    labels: Sequence[int],
    names: Sequence[str],
    *,
    columns: int = 10,
    temperature: float = 0.7,
    seed: int = 0,
    note: str = "",
    on_images: OnImages = _ignore,
    side: int = 0,
) -> Image.Image:
    """Returns a picture with a row of samples for each label; a column shares v, to show the effect of the label.

    `labels` are the labels of the rows, and `names` are the names of all labels of the model.

    Raises:
        InversionError: if a sample is not finite.
    """
    rows = []
    for label in labels:
        rows.append(np.asarray(model.sample(columns, temperature, seed=seed, labels=label)))
        on_images(len(rows) * columns)
    caption = f"Samples of each label at temperature {temperature:g}; a column shares its draws. {note}"
    return draw_grid(np.stack(rows), caption, row_labels=[names[label] for label in labels], side=side)


def reconstruct_images(
    model: DecoupledModel, images: np.ndarray, on_images: OnImages = _ignore, labels: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Returns decode(encode(images)), and the number of images that are reconstructed to the last pixel."""
    decoded = np.empty_like(images)
    for chunk in _chunks(len(images)):
        known = None if labels is None else labels[chunk]
        decoded[chunk] = model.decode(*model.encode(images[chunk], known))
        on_images(chunk.stop)
    return decoded, int((decoded == images).reshape(len(images), -1).all(1).sum())


def draw_reconstruction_grid(
    images: np.ndarray, decoded: np.ndarray, exact: int, note: str = "", side: int = 0
) -> Image.Image:
    """Returns a picture of images above their reconstructions, `decoded`, of which `exact` are identical."""
    columns = min(len(images), 10)
    rows = [arrange_rows(each, columns) for each in (images, decoded)]
    tiles = np.stack(rows, 1).reshape(-1, columns, *images.shape[1:])
    caption = f"Image above, decode(encode(image)) below: {exact} of {len(images)} identical to the last pixel. {note}"
    return draw_grid(tiles, caption, group=(2, 0), side=side)


def draw_switch_grid(
    model: DecoupledModel,
    a: np.ndarray,
    b: np.ndarray,
    columns: int = 5,
    what: str = "Switch",
    note: str = "",
    on_images: OnImages = _ignore,
    side: int = 0,
    labels: PairLabels = None,
) -> Image.Image:
    """Returns a picture of pairs of images and their switches, as in the paper's Figure 1.

    `a` are the first and `b` the second images of the pairs. A tile shows a and decode(z of b, v of a) above b and
    decode(z of a, v of b). A row has `columns` tiles, and `what` begins the caption.
    """
    ab, ba = np.empty_like(a), np.empty_like(b)
    for chunk in _chunks(len(a)):
        known = None if labels is None else (labels[0][chunk], labels[1][chunk])
        ab[chunk], ba[chunk] = model.switch(a[chunk], b[chunk], known)
        on_images(2 * chunk.stop)
    columns = min(columns, len(a))
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
    on_images: OnImages = _ignore,
    labels: PairLabels = None,
) -> np.ndarray:
    """Returns interpolations between pairs of images, uint8 `[n, paths, rows, places, height, width, channels]`.

    `a` are the first and `b` the second images of the pairs. `places` are numbers from 0, the first image, to 1, the
    second; z changes from row to row and v from column to column. A model without z has one row. `paths` are the
    paths of v in `DecoupledModel.interpolate`.
    """
    z_places = places if model.config.has_latent else places[:1]
    tiles: list[np.ndarray] = []
    for index in range(len(a)):
        pair = slice(index, index + 1)
        known = None if labels is None else (labels[0][pair], labels[1][pair])
        for path in paths:
            tiles.append(np.asarray(model.interpolate(a[pair], b[pair], z_places, places, known, path))[0])
            on_images(len(tiles) * len(z_places) * len(places))
    return np.stack(tiles).reshape(len(a), len(paths), *tiles[0].shape)


def draw_interpolation_grid(
    tiles: np.ndarray, places: Sequence[float], paths: Sequence[str] = ("lerp",), note: str = "", side: int = 0
) -> Image.Image:
    """Returns a picture of the tiles of `interpolate_pairs`, with the paths of v side by side (paper Figure 5)."""
    count, _, rows, columns = tiles.shape[:4]
    numbers = [f"{place:.2g}" for place in places]
    row_labels = [f"z {number}" for number in numbers] * count if rows > 1 else []
    if rows > 1:
        caption = (
            "Interpolation. Down: z from one image to the other; across: v. Upper left and lower right: the two images."
        )
    elif columns > 1:
        caption = "Interpolation of v, from the image on the left to that on the right; this model has no z."
    else:
        caption = f"Interpolation: what lies at {numbers[0]} of the way from one image, 0, to the other, 1."
    if len(paths) > 1:
        caption += f" v goes along {' (left) or '.join(_PATHS[path] for path in paths)} (right)."
    elif tuple(paths) != ("lerp",):
        caption += f" v goes along {_PATHS[paths[0]]}."
    return draw_grid(
        np.moveaxis(tiles, 1, 2).reshape(count * rows, len(paths) * columns, *tiles.shape[4:]),
        f"{caption} {note}",
        group=(rows if count > 1 else 0, columns if len(paths) > 1 else 0),
        row_labels=row_labels,
        column_labels=[f"v {number}" for number in numbers] * len(paths),
        width=WIDTH * len(paths),
        side=side,
    )


def compute_pixel_contrast(images: np.ndarray) -> np.ndarray:
    """Returns the mean absolute difference of neighbouring pixels of each image, in units of pixel values.

    Args:
        images: the images, uint8 `[..., height, width, channels]`.

    Returns:
        The mean over channels, rows and columns, float64 in the shape of the leading axes.
    """
    values = images.astype(np.float64)
    steps = [np.abs(np.diff(values, axis=axis)).mean((-3, -2, -1)) for axis in (-3, -2)]
    return (steps[0] + steps[1]) / 2


def draw_edit_grid(
    model: DecoupledModel,
    images: np.ndarray,
    directions: Mapping[str, np.ndarray],
    amounts: Sequence[float],
    name: str,
    note: str = "",
    on_images: OnImages = _ignore,
) -> Image.Image:
    """Returns a picture of images edited along directions in z: a row for each image and each direction.

    `directions` are vectors, float32 `[d_z]`, by the name of their method of finding, which labels the rows. A column
    adds its amount times the direction to z. `name` is the name of the direction in the caption.
    """
    rows, done = [], 0
    for chunk in _chunks(len(images)):
        z, v = model.encode(images[chunk])[:2]
        assert z is not None
        changed = np.empty((len(v), len(directions), len(amounts), *images.shape[1:]), np.uint8)
        for row, vector in enumerate(directions.values()):
            for column, amount in enumerate(amounts):
                # `model.edit` would give the same images, but encode them again for each amount.
                changed[:, row, column] = model.decode(z + np.float32(amount) * vector, v)
                on_images(done := done + len(v))
        rows.append(changed)
    return draw_grid(
        np.concatenate(rows).reshape(-1, len(amounts), *images.shape[1:]),
        f"Along {name}: z changes by so many times the direction, v stays; 0 is the image itself. {note}",
        group=(len(directions) if len(directions) > 1 else 0, 0),
        row_labels=list(directions) * len(images) if any(directions) else (),
        column_labels=[f"{amount:g}" for amount in amounts],
    )


def draw_neighbour_grid(queries: np.ndarray, neighbours: Mapping[str, np.ndarray], caption: str = "") -> Image.Image:
    """Returns a picture of samples beside the images nearest to them.

    Args:
        queries: the samples, uint8 `[n, height, width, channels]`.
        neighbours: the k nearest images, uint8 `[n, k, height, width, channels]`, by the name of the distance.
        caption: the text below the grid.
    """
    blocks, labels, k = [], [], 0
    for name, images in neighbours.items():
        k = images.shape[1]
        blocks.append(np.concatenate([queries[:, None], images], 1))
        labels += ["sample", f"{name}: 1", *(str(number) for number in range(2, k + 1))]
    return draw_grid(np.concatenate(blocks, 1), caption, group=(0, k + 1), column_labels=labels, width=1000)
