"""`python -m tfdecouple neighbours`: samples beside the training images nearest to them."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import start_tensorflow

_NEIGHBOURS = 5
# Pixels of a batch of the search: in float64 they take 32 MB.
_BATCH_VALUES = 4_000_000


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "neighbours",
        "show the training images nearest to samples",
        "Nearest in the Euclidean distance of pixels, and of z where the model has one. A model that repeats what it "
        "was trained on gives samples equal to their neighbours.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser, split="train")
    arguments.add_drawing(parser, 6, "samples")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="factor of v (default 0.8)")
    parser.add_argument(
        "--search", type=int, default=10_000, metavar="N", help="images to search, drawn; 0 for all (default 10000)"
    )


def run(options: argparse.Namespace) -> int:
    """Writes neighbours.png and neighbours.json.

    Raises:
        UserError: for impossible arguments, a run without weights, or missing or unreadable images.
    """
    arguments.check(options)
    arguments.at_least(options, "search", 0)
    if not 0 <= options.temperature < math.inf:
        raise UserError(f"--temperature is {options.temperature}; it must be at least 0 and finite")
    start_tensorflow()
    from tfdecouple.cli.output import save_picture
    from tfdecouple.cli.run_images import drawn_indices, load_chosen, open_data, open_run
    from tfdecouple.data import chosen_batches
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import neighbour_grid

    opened = open_run(options)
    source = open_data(opened, options)
    model, has_z = opened.model, opened.config.model.has_encoder
    samples = np.asarray(model.sample(options.count, options.temperature, seed=options.seed))
    searched = drawn_indices(source, options.split, options.search or source.sizes[options.split], options.seed)
    count = min(_NEIGHBOURS, len(searched))

    searches = {"pixels": NearestNeighbours(samples, count)}
    if has_z:
        searches["z"] = NearestNeighbours(opened.z_of(samples), count)
    batch_size = max(16, min(256, _BATCH_VALUES // math.prod(opened.config.model.image_shape)))
    batches = chosen_batches(source, options.split, searched, batch_size=batch_size)
    done = 0
    with Counter("searching", len(searched)) as counter:
        for batch in batches:
            images = np.asarray(model.quantize_images(batch["image"]))
            searches["pixels"].add(images, batch["index"])
            if has_z:
                searches["z"].add(opened.z_of(images), batch["index"])
            counter(done := done + len(images))

    found = {}
    for name, search in searches.items():
        images, _ = load_chosen(source, options.split, search.indices.ravel())
        images = np.asarray(model.quantize_images(images))
        found[name] = images.reshape(*search.indices.shape, *images.shape[1:])
    copies = int((searches["pixels"].distances[:, 0] == 0).sum())
    caption = (
        f"Samples at temperature {options.temperature} and the {count} images nearest to each, by pixels"
        f"{' and by z' if has_z else ''}, among {len(searched):,} images ({source.title}, {options.split}). "
        f"{copies} of {options.count} samples equal one of them.\n{opened.note()}"
    )
    facts = {
        "data": source.title,
        "split": options.split,
        "searched": len(searched),
        "seed": options.seed,
        "count": options.count,
        "temperature": options.temperature,
        "copies": copies,
        "nearest": {
            name: {"indices": search.indices.tolist(), "distances": search.distances.tolist()}
            for name, search in searches.items()
        },
    }
    picture = neighbour_grid(samples, found, "sample", caption)
    says = f"{options.count} samples beside their nearest of {len(searched):,} images; {copies} equal one"
    save_picture(opened, options, "neighbours", picture, says, **facts)
    return 0


class NearestNeighbours:
    """Keeps, of a stream of vectors, those nearest to each of a few queries in Euclidean distance.

    Whole numbers below 2**16, such as pixels, are compared without rounding: equal images are at distance 0.

    >>> search = NearestNeighbours(np.array([[0.0], [9.0]]), 2)
    >>> search.add(np.array([[1.0], [5.0]]), np.array([10, 11]))
    >>> search.add(np.array([[9.0]]), np.array([12]))
    >>> search.indices.tolist(), search.distances.tolist()
    ([[10, 11], [12, 11]], [[1.0, 5.0], [0.0, 4.0]])

    Args:
        queries: `[q, ...]`, flattened to vectors.
        count: how many neighbours to keep, k.

    Attributes:
        indices: of the neighbours, the nearest first, int64 `[q, k]`; -1 where there are not so many yet.
        distances: to them, float64 `[q, k]`; infinite there.
    """

    def __init__(self, queries: np.ndarray, count: int):
        self._queries = _vectors(queries)
        self._count = count
        self.indices = np.full((len(queries), count), -1, np.int64)
        self.distances = np.full((len(queries), count), np.inf)

    def add(self, vectors: np.ndarray, indices: np.ndarray) -> None:
        """Looks at some more vectors.

        Args:
            vectors: `[n, ...]`, flattened to the length of the queries.
            indices: what to call them, int64 `[n]`. Where two are equally near, the one that came first is kept.
        """
        vectors = _vectors(vectors)
        # |q - x|^2 = |q|^2 - 2 q.x + |x|^2: one matrix product instead of an array of all differences.
        squares = np.sum(self._queries**2, 1)[:, None] - 2 * self._queries @ vectors.T + np.sum(vectors**2, 1)[None, :]
        distances = np.concatenate([self.distances, np.sqrt(np.maximum(squares, 0))], 1)
        every = np.concatenate([self.indices, np.broadcast_to(indices, squares.shape)], 1)
        order = np.argsort(distances, 1, kind="stable")[:, : self._count]
        self.distances = np.take_along_axis(distances, order, 1)
        self.indices = np.take_along_axis(every, order, 1)


def _vectors(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(len(values), -1)
