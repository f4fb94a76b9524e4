"""Tests of the division of images among several workers."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.runs import run_config

from tfdecouple.data import make_evaluation_batches, make_training_batches, open_source, slice_for_replicas


@pytest.fixture(scope="module")
def source(image_folder):
    return open_source(run_config(image_folder).data, (8, 8, 3))


def contexts(pipelines, replicas):
    return [tf.distribute.InputContext(pipelines, number, replicas) for number in range(pipelines)]


@pytest.mark.parametrize(
    ("pipelines", "replicas", "micro_batches", "start_step"), [(1, 2, 1, 3), (2, 2, 2, 1), (2, 4, 1, 0)]
)
def test_slices_of_all_workers_in_order_are_the_batch(
    source, image_folder, pipelines, replicas, micro_batches, start_step
):
    options = {"batch_size": 8, "seed": 3, "start_step": start_step}
    config = run_config(image_folder).data
    # Two batches an epoch: four steps cross its border.
    whole = list(make_training_batches(source, config, **options).take(4).as_numpy_iterator())
    options["micro_batches"] = micro_batches
    local = replicas // pipelines
    shares = [
        list(
            make_training_batches(source, config, **options, context=context)
            .take(4 * micro_batches * local)
            .as_numpy_iterator()
        )
        for context in contexts(pipelines, replicas)
    ]
    slices = [piece for part in range(4 * micro_batches) for share in shares for piece in share[part * local :][:local]]
    parts = replicas * micro_batches
    for step, batch in enumerate(whole):
        pieces = slices[step * parts :][:parts]
        assert all(len(piece["label"]) == 8 // parts for piece in pieces)
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), batch[name])


@pytest.mark.parametrize(("pipelines", "replicas"), [(1, 2), (2, 4)])
def test_evaluation_of_several_workers_counts_each_image_once(source, pipelines, replicas):
    batches = make_evaluation_batches(source, "train", batch_size=8)
    counted = []
    for context in contexts(pipelines, replicas):
        for piece in slice_for_replicas(batches, context).as_numpy_iterator():
            assert len(piece["weight"]) == 8 // replicas
            counted += [int(index) for index, weight in zip(piece["index"], piece["weight"], strict=True) if weight]
    assert sorted(counted) == list(range(20))
