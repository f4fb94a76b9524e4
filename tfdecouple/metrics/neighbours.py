"""The nearest of many images: whether a model repeats what it was trained on."""

from __future__ import annotations

import numpy as np


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
