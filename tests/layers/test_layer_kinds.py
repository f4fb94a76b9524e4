"""Each kind of layer by itself: what it computes, against TFP and by hand, and how it starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import BATCH, SCALES, assert_close, build_layer, get_case
from helpers.models import give_effect
from tensorflow_probability import bijectors as tfb

from tfdecouple.layers import ActNorm, Coupling, InvertibleLinear


class TestAgainstTFP:
    """Each layer equals the elementary TFP bijector of the same numbers."""

    @pytest.mark.parametrize("name", ["conv1x1", "linear"])
    def test_linear_map_is_a_matrix_at_every_position(self, name):
        layer, x, _ = get_case(name)
        theirs = tfb.ScaleMatvecLinearOperator(tf.linalg.LinearOperatorFullMatrix(layer.kernel.value))
        y, log_det = layer.forward_and_log_det(x)
        assert_close(y, theirs.forward(x))
        assert_close(layer.inverse_and_log_det(y)[0], theirs.inverse(tf.identity(y)))
        # TFP's is that of one application; the layer applies the matrix at every position.
        once = theirs.forward_log_det_jacobian(tf.reshape(x, [-1, x.shape[-1]])[0], event_ndims=1)
        assert_close(log_det, tf.fill([BATCH], math.prod(x.shape[1:-1]) * once))

    def test_squeeze_is_a_reshape_and_a_transpose(self):
        layer, x, _ = get_case("squeeze")
        theirs = tfb.Chain(
            [
                tfb.Reshape(event_shape_out=[2, 1, 12], event_shape_in=[2, 1, 2, 2, 3]),
                tfb.Transpose([0, 2, 1, 3, 4]),
                tfb.Reshape(event_shape_out=[2, 2, 1, 2, 3], event_shape_in=[4, 2, 3]),
            ]
        )
        np.testing.assert_array_equal(layer.forward_and_log_det(x)[0], theirs.forward(x))


class TestActNorm:
    @pytest.mark.parametrize("shape", [(64, 5, 4, 3), (500, 6)])
    def test_initialised_output_has_mean_0_and_deviation_1_in_every_channel(self, shape):
        x = np.random.default_rng(0).standard_normal(shape) * np.arange(1, shape[-1] + 1) + 7
        layer = ActNorm(dtype="float64")
        layer.build(shape)
        layer.initialize(tf.constant(x))
        y = np.reshape(layer.forward_and_log_det(x)[0], [-1, shape[-1]])
        assert_close(y.mean(0), np.zeros(shape[-1]))
        assert_close(y.std(0, ddof=1), np.ones(shape[-1]))

    def test_a_constant_channel_is_shifted_and_not_scaled(self):
        x = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype("float32")
        x[..., 1] = -0.75
        layer = ActNorm()
        layer.build(x.shape)
        layer.initialize(tf.constant(x))
        assert layer.log_scale.numpy()[1] == 0 and layer.log_scale.numpy()[0] != 0
        np.testing.assert_array_equal(layer.forward_and_log_det(x)[0][..., 1], np.zeros((4, 3, 3)))


class TestLinear:
    def test_matrix_is_orthogonal_at_the_start(self):
        layer = InvertibleLinear(dtype="float64")
        layer.build((None, 7))
        matrix = layer.kernel.numpy()
        # Keras draws it in float32.
        assert_close(matrix @ matrix.T, np.eye(7), 1e-6)
        assert_close(layer.compute_condition_number(), 1, 1e-6)

    def test_float32_inverse_of_a_badly_conditioned_matrix_keeps_float32_precision(self):
        layer = InvertibleLinear()
        layer.build((None, 4))
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
        layer.kernel.assign((basis * [1, 1, 1, 1e-4]).astype("float32"))
        exact = np.linalg.inv(layer.kernel.numpy().astype("float64"))
        inverse = layer.inverse_and_log_det(np.eye(4))[0].numpy().T
        assert np.abs(inverse - exact).max() < 1e-6 * np.abs(exact).max()


class TestCoupling:
    @pytest.mark.parametrize(
        ("pattern", "part", "channels", "transformed"),
        [
            ("continuous", "last", 6, [3, 4, 5]),
            ("continuous", "first", 6, [0, 1, 2]),
            ("alternate", "last", 6, [1, 3, 5]),
            ("alternate", "first", 6, [0, 2, 4]),
            ("continuous", "last", 5, [3, 4]),
            ("continuous", "first", 5, [0, 1]),
            ("alternate", "last", 5, [3, 4]),
            ("alternate", "first", 5, [0, 1]),
        ],
    )
    @pytest.mark.parametrize("shape", [(2, 3), ()], ids=["image", "vector"])
    def test_pattern_and_part_choose_the_channels(self, pattern, part, channels, transformed, shape):
        layer = Coupling(4, pattern=pattern, part=part, dtype="float64")
        layer.build((None, *shape, channels))
        give_effect(layer, scale=0.5)
        x = np.random.default_rng(0).standard_normal((2, *shape, channels))
        changed = np.abs(layer.forward_and_log_det(x)[0] - x).reshape(-1, channels).max(0) > 1e-6
        assert np.flatnonzero(changed).tolist() == transformed

    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("shape", [(2, 2, 4), (4,)], ids=["image", "vector"])
    def test_coupling_is_the_identity_at_the_start_and_after_initialize(self, scale, shape):
        layer = build_layer(Coupling(4, **SCALES[scale]), (None, *shape))
        x = tf.random.stateless_normal([2, *shape], [0, 1])
        for _ in range(2):
            y, log_det = layer.forward_and_log_det(x)
            np.testing.assert_allclose(y, x, atol=1e-6)
            np.testing.assert_allclose(log_det, np.zeros(2), atol=1e-5)
            give_effect(layer)
            assert np.abs(layer.forward_and_log_det(x)[0] - x).max() > 1e-3
            layer.initialize(x)

    def test_log_det_of_alpha_1_stays_right_where_the_scale_underflows(self):
        layer = build_layer(Coupling(4), (None, 1, 1, 2))
        layer.net.last.bias.assign([0.0, -200.0])
        assert layer.compute_slopes(np.ones((1, 1, 1, 2))).numpy().max() == 0
        log_det = layer.forward_and_log_det(np.ones((1, 1, 1, 2)))[1]
        np.testing.assert_allclose(log_det, [math.log(2) - 200], rtol=1e-6)
