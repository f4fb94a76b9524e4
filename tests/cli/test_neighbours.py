"""The search for nearest neighbours, held against a comparison of all with all."""

import numpy as np
from helpers.models import random_images

from tfdecouple.cli.neighbours import NeighbourSearch


def test_search_over_batches_finds_what_comparing_all_finds():
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((50, 2, 3)), rng.standard_normal((4, 2, 3))
    search = NeighbourSearch(queries, 6)
    for start in range(0, 50, 7):
        search.add_vectors(vectors[start : start + 7], np.arange(start, min(start + 7, 50)) + 100)
    distances = np.sqrt(((queries[:, None] - vectors[None]) ** 2).sum((2, 3)))
    np.testing.assert_array_equal(search.indices, np.argsort(distances, 1)[:, :6] + 100)
    np.testing.assert_allclose(search.distances, np.sort(distances, 1)[:, :6], rtol=1e-9)


def test_training_image_is_its_own_nearest_at_distance_0():
    images = random_images(20, size=64)
    search = NeighbourSearch(images[:3], 2)
    search.add_vectors(images, np.arange(20))
    assert search.indices[:, 0].tolist() == [0, 1, 2]
    assert search.distances[:, 0].tolist() == [0, 0, 0] and (search.distances[:, 1] > 0).all()
