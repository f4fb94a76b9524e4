"""`python -m tfdecouple neighbours`: shows samples beside the training images nearest to them."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow

_NEIGHBOURS = 5
# The most pixels of a batch of the search: in float64 they take 32 MB.
_BATCH_VALUES = 4_000_000


def add_parser(commands: Any) -> None:
    """Declares the options."""
    parser = arguments.add_command(
        commands,
        "neighbours",
        "show the training images nearest to samples",
        "Nearest in the Euclidean distance of pixels, and of z where the model has one. A model that repeats its "
        "training images gives samples equal to their neighbours.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser, split="train")
    arguments.add_drawing(parser, 6, "samples")
    arguments.add_number(parser, "--temperature", 0.8, "factor of v", 0, arguments.MOST_TEMPERATURE)
    arguments.add_number(parser, "--search", 10_000, "number of images to search, drawn at random; 0 for all")


def run(options: argparse.Namespace) -> int:
    """Writes neighbours.png and neighbours.json."""
    start_tensorflow()
    from tfdecouple.cli.run_images import draw_indices, load_by_index, open_data, open_run, save_picture
    from tfdecouple.data import chosen_batches
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import neighbour_grid

    opened = open_run(options)
    source = open_data(opened, options)
    model, has_z = opened.model, opened.config.model.has_encoder
    samples = np.asarray(model.sample(options.count, options.temperature, seed=options.seed))
    searched = draw_indices(source, options.split, options.search or source.sizes[options.split], options.seed)
    count = min(_NEIGHBOURS, len(searched))

    searches = {"pixels": NeighbourSearch(samples, count)}
    if has_z:
        searches["z"] = NeighbourSearch(opened.encode_z(samples), count)
    batch_size = max(16, min(256, _BATCH_VALUES // math.prod(opened.config.model.image_shape)))
    done = 0
    with Counter("searching", len(searched)) as counter:
        for batch in chosen_batches(source, options.split, searched, batch_size=batch_size):
            images = np.asarray(model.quantize_images(batch["image"]))
            searches["pixels"].add_vectors(images, batch["index"])
            if has_z:
                searches["z"].add_vectors(opened.encode_z(images), batch["index"])
            counter(done := done + len(images))

    nearest = {}
    for name, search in searches.items():
        images, _ = load_by_index(source, options.split, search.indices.ravel())
        images = np.asarray(model.quantize_images(images))
        nearest[name] = images.reshape(*search.indices.shape, *images.shape[1:])
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
    picture = neighbour_grid(samples, nearest, "sample", caption)
    summary = f"{options.count} samples beside their nearest of {len(searched):,} images; {copies} equal one"
    save_picture(opened, options, "neighbours", picture, summary, **facts)
    return 0


class NeighbourSearch:
    """The vectors of a stream that are nearest to each of a few queries in Euclidean distance.

    >>> search = NeighbourSearch(np.array([[0.0], [9.0]]), 2)
    >>> search.add_vectors(np.array([[1.0], [5.0]]), np.array([10, 11]))
    >>> search.add_vectors(np.array([[9.0]]), np.array([12]))
    >>> search.indices.tolist(), search.distances.tolist()
    ([[10, 11], [12, 11]], [[1.0, 5.0], [0.0, 4.0]])

    Args:
        queries: `[q, ...]`, flattened to vectors.
        count: the number of neighbours, k.

    Attributes:
        indices: the indices of the neighbours, the nearest first, int64 `[q, at most k]`.
        distances: the distances to them, float64 `[q, at most k]`; equal images are at distance 0.
    """

    def __init__(self, queries: np.ndarray, count: int):
        self._queries, self._count = queries.reshape(len(queries), -1), count
        self.indices = np.zeros((len(queries), 0), np.int64)
        self.distances = np.zeros((len(queries), 0))

    def add_vectors(self, vectors: np.ndarray, indices: np.ndarray) -> None:
        """Searches further vectors, `[n, ...]`, with the indices int64 `[n]`; of equally near ones the first stays."""
        from scipy.spatial.distance import cdist

        distances = np.concatenate([self.distances, cdist(self._queries, vectors.reshape(len(vectors), -1))], 1)
        candidates = np.concatenate([self.indices, np.tile(indices, (len(self._queries), 1))], 1)
        order = np.argsort(distances, 1, kind="stable")[:, : self._count]
        self.distances = np.take_along_axis(distances, order, 1)
        self.indices = np.take_along_axis(candidates, order, 1)
