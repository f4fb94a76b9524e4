"""Tests of how gradients travel between devices: in packs, and in an order in which they are there."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.training.strategy import make_strategy, reduce_in_packs

# Of 4, 8 and 12 bytes; in a model the encoder stands behind the flow, and before it in a step.
SIZES = {"flow/first": 1, "flow/last": 2, "encoder/only": 3}


def reduced(bytes_per_pack):
    """What two devices add up, and the sizes of the packs in the order in which they leave a device."""
    strategy = make_strategy(2)
    with strategy.scope():
        variables = {name: tf.Variable(tf.zeros([size])) for name, size in SIZES.items()}

    @tf.function(autograph=False)
    def run():
        def values():
            number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group + 1, tf.float32)
            return [number * (place + tf.range(size, dtype=tf.float32)) for place, size in enumerate(SIZES.values())]

        found = reduce_in_packs(strategy, tf.distribute.ReduceOp.SUM, strategy.run(values), variables, bytes_per_pack)
        return [strategy.experimental_local_results(value)[1] for value in found]

    operations = run.get_concrete_function().graph.get_operations()
    # Both devices have each pack; the shape is that of the pack as one vector.
    packs = [op.inputs[0].shape.num_elements() for op in operations if op.type.startswith("CollectiveReduce")]
    return [value.numpy() for value in run()], packs[: len(packs) // 2]


@pytest.mark.parametrize(("bytes_per_pack", "packs"), [(0, [6]), (4, [2, 1 + 3]), (1, [2, 1, 3]), (1000, [6])])
def test_packs_leave_as_the_backward_pass_fills_them(bytes_per_pack, packs):
    values, found = reduced(bytes_per_pack)
    for place, (value, size) in enumerate(zip(values, SIZES.values(), strict=True)):
        np.testing.assert_array_equal(value, 3 * (place + np.arange(size)))
    assert found == packs


def test_nothing_is_reduced_of_a_model_without_statistics():
    assert reduce_in_packs(make_strategy(1), tf.distribute.ReduceOp.MEAN, [], {}, 1) == []
