"""A bijector of TFP that loses static shapes in a graph is a transform of couplings: trained, evaluated, exported."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import give_effect
from tensorflow_probability import bijectors as tfb

from tfdecouple.layers import Coupling
from tfdecouple.registry import TRANSFORMS
from tfdecouple.transforms import Transform


def make_spline(width, height, slope, alpha):
    """A spline of two bins between -3 and 3, the identity outside."""
    widths, heights = (tf.stack([3 + alpha * tf.tanh(x), 3 - alpha * tf.tanh(x)], -1) for x in (width, height))
    return tfb.RationalQuadraticSpline(widths, heights, tf.exp(alpha * tf.tanh(slope))[..., None], range_min=-3.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(TRANSFORMS.entries, "spline", Transform(make_spline, 3))


def test_shapes_of_a_coupling_stay_known_in_a_graph_of_unknown_batch():
    layer = Coupling(hidden=3, transform="spline", alpha=0.5, pattern="alternate")
    layer.build((None, 4, 4, 6))
    give_effect(layer)
    for method in (layer.forward_and_log_det, layer.inverse_and_log_det):
        function = tf.function(method, input_signature=[tf.TensorSpec([None, 4, 4, 6])], autograph=False)
        shapes = [tensor.shape.as_list() for tensor in function.get_concrete_function().structured_outputs]
        assert shapes == [[None, 4, 4, 6], [None]]
    x = tf.random.stateless_normal([2, 4, 4, 6], [0, 1])
    y, log_det = layer.forward_and_log_det(x)
    assert float(tf.reduce_max(tf.abs(log_det))) > 1e-3
    np.testing.assert_allclose(layer.inverse_and_log_det(y)[0], x, atol=1e-5)
