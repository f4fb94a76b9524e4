"""How each kind of layer starts, what couplings change, and exactness at the limits of float32."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import SCALES, assert_close, build_layer
from helpers.models import give_effect

from tfdecouple.layers import ActNorm, Coupling, InvertibleLinear


def test_actnorm_shifts_a_constant_channel_to_0_and_does_not_scale_it():
    x = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype("float32")
    x[..., 1] = -0.75
    layer = build_layer(ActNorm(), x.shape)
    layer.initialize(tf.constant(x))
    assert layer.log_scale.numpy()[1] == 0 and layer.log_scale.numpy()[0] != 0
    np.testing.assert_array_equal(layer.forward_and_log_det(x)[0][..., 1], np.zeros((4, 3, 3)))


def test_matrix_of_a_new_linear_layer_is_orthogonal():
    layer = build_layer(InvertibleLinear(dtype="float64"), (None, 7))
    matrix = layer.kernel.numpy()
    # Keras draws it in float32.
    assert_close(matrix @ matrix.T, np.eye(7), 1e-6)
    assert_close(layer.compute_condition_number(), 1, 1e-6)


def test_float32_inverse_of_a_badly_conditioned_matrix_keeps_float32_precision():
    layer = build_layer(InvertibleLinear(), (None, 4))
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    layer.kernel.assign((basis * [1, 1, 1, 1e-4]).astype("float32"))
    exact = np.linalg.inv(layer.kernel.numpy().astype("float64"))
    inverse = layer.inverse_and_log_det(np.eye(4))[0].numpy().T
    assert np.abs(inverse - exact).max() < 1e-6 * np.abs(exact).max()


# The channels that a coupling changes, by pattern, part and count of channels.
CHANGED = {
    ("continuous", "last", 6): [3, 4, 5],
    ("continuous", "first", 6): [0, 1, 2],
    ("alternate", "last", 6): [1, 3, 5],
    ("alternate", "first", 6): [0, 2, 4],
    **{(pattern, "last", 5): [3, 4] for pattern in ("continuous", "alternate")},
    **{(pattern, "first", 5): [0, 1] for pattern in ("continuous", "alternate")},
}


@pytest.mark.parametrize(("pattern", "part", "channels"), CHANGED)
@pytest.mark.parametrize("shape", [(2, 3), ()], ids=["image", "vector"])
def test_pattern_and_part_of_a_coupling_choose_the_changed_channels(pattern, part, channels, shape):
    layer = Coupling(4, pattern=pattern, part=part, dtype="float64")
    give_effect(build_layer(layer, (None, *shape, channels)), scale=0.5)
    x = np.random.default_rng(0).standard_normal((2, *shape, channels))
    changed = np.abs(layer.forward_and_log_det(x)[0] - x).reshape(-1, channels).max(0) > 1e-6
    assert np.flatnonzero(changed).tolist() == CHANGED[pattern, part, channels]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(2, 2, 4), (4,)], ids=["image", "vector"])
def test_coupling_is_the_identity_at_the_start_and_after_initialize(scale, shape):
    layer = build_layer(Coupling(4, **SCALES[scale]), (None, *shape))
    x = tf.random.stateless_normal([2, *shape], [0, 1])
    for _ in range(2):
        y, log_det = layer.forward_and_log_det(x)
        np.testing.assert_allclose(y, x, atol=1e-6)
        np.testing.assert_allclose(log_det, np.zeros(2), atol=1e-5)
        give_effect(layer)
        assert np.abs(layer.forward_and_log_det(x)[0] - x).max() > 1e-3
        layer.initialize(x)


def test_log_det_of_a_coupling_with_alpha_1_stays_right_where_the_scale_underflows():
    layer = build_layer(Coupling(4), (None, 1, 1, 2))
    layer.net.last.bias.assign([0.0, -200.0])
    assert layer.compute_slopes(np.ones((1, 1, 1, 2))).numpy().max() == 0
    log_det = layer.forward_and_log_det(np.ones((1, 1, 1, 2)))[1]
    np.testing.assert_allclose(log_det, [math.log(2) - 200], rtol=1e-6)
