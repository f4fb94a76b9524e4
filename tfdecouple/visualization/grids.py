"""Pictures of what a model does, each a grid of images (`tiles.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from tfdecouple.model import DecoupledModel
from tfdecouple.visualization.tiles import WIDTH, grid, in_rows

# Images that are encoded or decoded at once: memory, not a picture, depends on it.
_CHUNK = 64

# What the caption calls the paths of v.
_ROADS = {"lerp": "the line (lerp)", "slerp": "the arc (slerp)"}

# Is told how many images of a picture are computed.
OnImages = Callable[[int], None]
# Labels of the first and of the second images of pairs; None for a model that knows none.
Pair = tuple[np.ndarray, np.ndarray] | None


def _silent(done: int) -> None:
    pass


def sample_grid(
    model: DecoupledModel,
    *,
    count: int = 10,
    seed: int = 0,
    temperatures: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 1.0),
    note: str = "",
    on_images: OnImages = _silent,
    side: int = 0,
) -> Image.Image:
    """Samples at several temperatures, each with the same z and the same direction of v.

    Args:
        model: the model.
        count: samples at each temperature; ten in a row.
        seed: of the draws.
        temperatures: of v (paper section 3.1); they do not act on z.
        note: ends the caption.
        on_images: called with the number of images done.
        side: as for `grid`.

    Raises:
        InversionError: where a sample is not finite.
    """
    columns = min(count, 10)
    bands = []
    for temperature in temperatures:
        bands.append(in_rows(np.asarray(model.sample(count, temperature, seed=seed)), columns))
        on_images(len(bands) * count)
    rows = len(bands[0])
    where = "Rows" if rows == 1 else "Bands"
    shared = "a column shares its draws" if rows == 1 else "the same place of each band shares its draws"
    caption = f"Samples. {where}: temperature of v {', '.join(map(str, temperatures))}; {shared}. {note}"
    labels = [str(temperature) if row == 0 else "" for temperature in temperatures for row in range(rows)]
    return grid(np.concatenate(bands), caption, group=(rows if rows > 1 else 0, 0), row_labels=labels, side=side)


def class_grid(
    model: DecoupledModel,
    labels: Sequence[int],
    names: Sequence[str],
    *,
    columns: int = 10,
    temperature: float = 0.7,
    seed: int = 0,
    note: str = "",
    on_images: OnImages = _silent,
    side: int = 0,
) -> Image.Image:
    """Samples of some labels, a row each; a column shares the v, so that what the label changes shows.

    Args:
        model: a model that knows labels.
        labels: of the rows.
        names: of all labels.
        columns: samples of each label.
        temperature: of v.
        seed: of the draws.
        note: ends the caption.
        on_images: called with the number of images done.
        side: as for `grid`.

    Raises:
        InversionError: where a sample is not finite.
    """
    rows = []
    for label in labels:
        rows.append(np.asarray(model.sample(columns, temperature, seed=seed, labels=label)))
        on_images(len(rows) * columns)
    caption = f"Samples of each label at temperature {temperature:g}; a column shares its draws. {note}"
    return grid(np.stack(rows), caption, row_labels=[names[label] for label in labels], side=side)


def reconstruct(
    model: DecoupledModel, images: np.ndarray, on_images: OnImages = _silent, labels: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Returns decode(encode(images)), and how many of the images came back to the last pixel.

    Args:
        model: the model.
        images: uint8 `[n, height, width, channels]`.
        on_images: called with the number of images done.
        labels: of the images, `[n]`, for a model that knows labels.
    """
    back = np.empty_like(images)
    for chunk in _chunks(len(images)):
        back[chunk] = model.decode(*model.encode(images[chunk], _of(labels, chunk)))
        on_images(chunk.stop)
    return back, int((back == images).reshape(len(images), -1).all(1).sum())


def reconstruction_grid(
    model: DecoupledModel,
    images: np.ndarray,
    note: str = "",
    on_images: OnImages = _silent,
    labels: np.ndarray | None = None,
) -> tuple[Image.Image, int]:
    """Images above their reconstructions decode(encode(image)).

    Args:
        model: the model.
        images: uint8 `[n, height, width, channels]`.
        note: ends the caption.
        on_images: called with the number of images done.
        labels: as for `reconstruct`.

    Returns:
        The picture, and how many of the images came back to the last pixel.
    """
    back, exact = reconstruct(model, images, on_images, labels)
    return beside(images, back, exact, note), exact


def beside(images: np.ndarray, back: np.ndarray, exact: int, note: str = "", side: int = 0) -> Image.Image:
    """Draws images above what `reconstruct` returned for them; `side` as for `grid`."""
    columns = min(len(images), 10)
    tiles = np.stack([in_rows(images, columns), in_rows(back, columns)], 1).reshape(-1, columns, *images.shape[1:])
    caption = f"Image above, decode(encode(image)) below: {exact} of {len(images)} identical to the last pixel. {note}"
    return grid(tiles, caption, group=(2, 0), side=side)


def switch_grid(
    model: DecoupledModel,
    a: np.ndarray,
    b: np.ndarray,
    columns: int = 5,
    what: str = "Switch",
    note: str = "",
    on_images: OnImages = _silent,
    side: int = 0,
    labels: Pair = None,
) -> Image.Image:
    """Tiles of 2 x 2 as in the paper's Figure 1: above a and (z of b, v of a), below b and (z of a, v of b).

    Args:
        model: a model with z.
        a: uint8 `[n, height, width, channels]`.
        b: the same shape.
        columns: tiles in a row.
        what: begins the caption.
        note: ends it.
        on_images: called with the number of images done.
        side: as for `grid`.
        labels: of a and of b, for a model that knows labels.
    """
    ab, ba = np.empty_like(a), np.empty_like(b)
    for chunk in _chunks(len(a)):
        own = None if labels is None else (labels[0][chunk], labels[1][chunk])
        ab[chunk], ba[chunk] = model.switch(a[chunk], b[chunk], own)
        on_images(2 * chunk.stop)
    columns = min(columns, len(a))
    tiles = in_rows(np.stack([np.stack([a, ba], 1), np.stack([b, ab], 1)], 1), columns)
    rows, shape = len(tiles), a.shape[1:]
    tiles = tiles.transpose(0, 2, 1, 3, 4, 5, 6).reshape(2 * rows, 2 * columns, *shape)
    caption = f"{what}. Each tile: left two images, right the same v with the z of the other (paper Figure 1). {note}"
    return grid(tiles, caption, group=(2, 2), side=side)


def _of(labels: np.ndarray | None, chunk: slice) -> np.ndarray | None:
    return None if labels is None else labels[chunk]


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def interpolations(
    model: DecoupledModel,
    a: np.ndarray,
    b: np.ndarray,
    places: Sequence[float],
    paths: Sequence[str] = ("lerp",),
    on_images: OnImages = _silent,
    labels: Pair = None,
) -> np.ndarray:
    """Interpolates between pairs of images, z and v apart.

    Args:
        model: the model. Without z there is nothing to go down, and one row is left.
        a: uint8 `[n, height, width, channels]`.
        b: the same shape.
        places: of alpha and of beta.
        paths: of v, as `DecoupledModel.interpolate` takes them.
        on_images: called with the number of images done.
        labels: of a and of b, for a model that knows labels.

    Returns:
        uint8 `[n, paths, rows, places, height, width, channels]`: z goes down, v across.
    """
    alphas = places if model.config.has_latent else places[:1]
    made: list[np.ndarray] = []
    for index in range(len(a)):
        chosen = slice(index, index + 1)
        own = None if labels is None else (labels[0][chosen], labels[1][chosen])
        for path in paths:
            made.append(np.asarray(model.interpolate(a[chosen], b[chosen], alphas, places, own, path))[0])
            on_images(len(made) * len(alphas) * len(places))
    return np.stack(made).reshape(len(a), len(paths), *made[0].shape)


def interpolation_grid(
    model: DecoupledModel,
    a: np.ndarray,
    b: np.ndarray,
    places: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1),
    note: str = "",
    on_images: OnImages = _silent,
    side: int = 0,
    labels: Pair = None,
) -> Image.Image:
    """Two-dimensional interpolation between two images (paper Figure 5): alpha, for z, down and beta, for v, across.

    Args:
        model: the model.
        a: uint8 `[height, width, channels]`, the upper left corner; or several, `[n, ...]`, one below another.
        b: the lower right corner; the same shape.
        places: of alpha and of beta.
        note: ends the caption.
        on_images: called with the number of images done.
        side: as for `grid`.
        labels: of a and of b, for a model that knows labels, one each or `[n]`.
    """
    shape = a.shape[-3:]
    own = None if labels is None else (np.reshape(labels[0], -1), np.reshape(labels[1], -1))
    tiles = interpolations(model, a.reshape(-1, *shape), b.reshape(-1, *shape), places, on_images=on_images, labels=own)
    return interpolations_drawn(tiles, places, note=note, side=side)


def interpolations_drawn(
    tiles: np.ndarray, places: Sequence[float], paths: Sequence[str] = ("lerp",), note: str = "", side: int = 0
) -> Image.Image:
    """Draws what `interpolations` made, the paths of v beside each other.

    Args:
        tiles: as `interpolations` returns them.
        places: as it took them.
        paths: likewise.
        note: ends the caption.
        side: as for `grid`.
    """
    count, _, rows, columns = tiles.shape[:4]
    numbers = [f"{place:.2g}" for place in places]
    if rows > 1:
        caption = (
            "Interpolation. Down: z from one image to the other; across: v. Upper left and lower right: the two images."
        )
        row_labels = [f"z {number}" for number in numbers] * count
    elif columns > 1:
        caption = "Interpolation of v, from the image on the left to that on the right; this model has no z."
        row_labels = []
    else:
        caption = f"Interpolation: what lies at {numbers[0]} of the way from one image, 0, to the other, 1."
        row_labels = []
    if len(paths) > 1:
        caption += f" v goes along {' (left) or '.join(_ROADS[path] for path in paths)} (right)."
    elif tuple(paths) != ("lerp",):
        caption += f" v goes along {_ROADS[paths[0]]}."
    # [n, paths, rows, places, ...] to [n * rows, paths * places, ...].
    beside_each_other = np.moveaxis(tiles, 1, 2).reshape(count * rows, len(paths) * columns, *tiles.shape[4:])
    return grid(
        beside_each_other,
        f"{caption} {note}",
        group=(rows if count > 1 else 0, columns if len(paths) > 1 else 0),
        row_labels=row_labels,
        column_labels=[f"v {number}" for number in numbers] * len(paths),
        about=WIDTH * len(paths),
        side=side,
    )


def contrast(images: np.ndarray) -> np.ndarray:
    """Returns by how much neighbouring pixels of images differ, in levels: the mean over channels, rows and columns.

    Args:
        images: uint8 `[..., height, width, channels]`.

    Returns:
        float64 of the leading axes.
    """
    values = images.astype(np.float64)
    steps = [np.abs(np.diff(values, axis=axis)).mean((-3, -2, -1)) for axis in (-3, -2)]
    return (steps[0] + steps[1]) / 2


def edit_grid(
    model: DecoupledModel,
    images: np.ndarray,
    directions: Mapping[str, np.ndarray],
    amounts: Sequence[float],
    name: str,
    note: str = "",
    on_images: OnImages = _silent,
    labels: np.ndarray | None = None,
) -> Image.Image:
    """Images changed along a direction in z: a row for each image and each way to find the direction.

    Args:
        model: a model with z.
        images: uint8 `[n, height, width, channels]`.
        directions: by the label of their rows, float32 `[d_z]`.
        amounts: of each column.
        name: of the direction.
        note: ends the caption.
        on_images: called with the number of images done.
        labels: as for `reconstruct`.
    """
    rows, done = [], 0
    for chunk in _chunks(len(images)):
        z, v = model.encode(images[chunk], _of(labels, chunk))
        assert z is not None
        made = np.empty((len(v), len(directions), len(amounts), *images.shape[1:]), np.uint8)
        for row, vector in enumerate(directions.values()):
            for column, amount in enumerate(amounts):
                # As `model.edit` does, without encoding anew.
                made[:, row, column] = model.decode(z + np.float32(amount) * vector, v)
                on_images(done := done + len(v))
        rows.append(made)
    tiles = np.concatenate(rows).reshape(-1, len(amounts), *images.shape[1:])
    return grid(
        tiles,
        f"Along {name}: z changes by so many times the direction, v stays; 0 is the image itself. {note}",
        group=(len(directions) if len(directions) > 1 else 0, 0),
        row_labels=list(directions) * len(images) if any(directions) else (),
        column_labels=[f"{amount:g}" for amount in amounts],
    )


def neighbour_grid(
    queries: np.ndarray, neighbours: Mapping[str, np.ndarray], first: str, caption: str = ""
) -> Image.Image:
    """Images beside those nearest to them.

    Args:
        queries: uint8 `[n, height, width, channels]`.
        neighbours: by the name of the distance: uint8 `[n, k, height, width, channels]`, the nearest first.
        first: what the queries are.
        caption: of the picture.
    """
    blocks, labels, k = [], [], 0
    for name, images in neighbours.items():
        k = images.shape[1]
        blocks.append(np.concatenate([queries[:, None], images], 1))
        labels += [first, f"{name}: 1", *(str(number) for number in range(2, k + 1))]
    return grid(np.concatenate(blocks, 1), caption, group=(0, k + 1), column_labels=labels, about=1000)
