"""Tests of tfdecouple.runtime.numerics: right for every shape, and free of operations where a shape is known."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.layers import ActNorm, Coupling, InvertibleConv1x1, Squeeze
from tfdecouple.runtime.numerics import product, sizes, zero_per_image

KNOWN = [2, 4, 6, 8]
SHAPES = [KNOWN, [None, 4, 6, 8], [None, None, None, 8], [2, None, 6, 8]]


@pytest.mark.parametrize("shape", SHAPES)
def test_right_whatever_is_known(shape):
    def run(x):
        found = sizes(x)
        assert [isinstance(size, int) for size in found] == [size is not None for size in shape]
        assert [size for size in found if isinstance(size, int)] == [size for size in shape if size is not None]
        return tf.stack(found), product(found, tf.float64), zero_per_image(x)

    results = tf.function(run, input_signature=[tf.TensorSpec(shape)])(tf.zeros(KNOWN))
    for found, expected in zip(results, (KNOWN, 384.0, [0.0, 0.0]), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [value.dtype for value in results[1:]] == [tf.float64, tf.float32]


@pytest.mark.parametrize("layer", [ActNorm, InvertibleConv1x1, Squeeze, lambda: Coupling(4, pattern="alternate")])
@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
def test_layers_ask_for_no_shape_that_is_known(layer, method):
    layer = layer()
    layer.build(KNOWN)
    run = tf.function(getattr(layer, method), autograph=False)
    asked = [
        {operation.type for operation in run.get_concrete_function(tf.TensorSpec(shape)).graph.get_operations()}
        & {"Shape", "Size"}
        for shape in (KNOWN, [None, *KNOWN[1:]])
    ]
    assert asked == [set(), {"Shape"}]
