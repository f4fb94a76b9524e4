"""Tests of tfdecouple.layers: each layer is what it says, exactly invertible, with the log-determinant of its Jacobian.

The properties are checked in float64, where a wrong term shows up far above the rounding.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import (
    BATCH,
    CASES,
    CONDITIONAL,
    KINDS,
    SPLITS,
    assert_close,
    build_layer,
    get_case,
)
from helpers.models import assert_gradients_reach_weights, give_effect, jacobian_log_det, negative_log_likelihood

from tfdecouple.errors import UserError
from tfdecouple.layers import ActNorm


class TestProperties:
    @pytest.mark.parametrize("name", CASES)
    def test_inverts_with_the_log_det_of_its_jacobian(self, name):
        layer, x, condition = get_case(name)
        y, log_det = layer.forward_and_log_det(x, condition)
        assert_close(log_det, jacobian_log_det(layer.forward_and_log_det, x, condition))
        # Additive couplings and the squeeze keep volumes; nothing else does, once its weights have an effect. (What is
        # registered may.)
        if not name.startswith("step-layer"):
            assert np.all(log_det == 0) == ("additive" in name or name == "squeeze")
        back, inverse = layer.inverse_and_log_det(y, condition)
        assert np.abs(y - x).max() > 1e-3 if y.shape == x.shape else y.shape[-1] == 4 * x.shape[-1]
        assert_close(back, x)
        assert_close(log_det + inverse, tf.zeros(BATCH, tf.float64))
        # The other way round, from an array that did not come out of the layer.
        assert_close(layer.forward_and_log_det(layer.inverse_and_log_det(y + 1, condition)[0], condition)[0], y + 1)

    @pytest.mark.parametrize("name", KINDS)
    def test_images_of_a_batch_do_not_touch_each_other(self, name):
        layer, x, condition = get_case(name)
        together = layer.forward_and_log_det(x, condition)
        alone = layer.forward_and_log_det(x[1:], None if condition is None else condition[1:])
        assert_close(together[0][1:], alone[0])
        assert_close(together[1][1:], alone[1])

    @pytest.mark.parametrize("name", KINDS)
    def test_every_weight_receives_a_gradient(self, name):
        layer, x, condition = get_case(name)
        assert_gradients_reach_weights(layer, lambda: negative_log_likelihood(layer, x, condition))

    @pytest.mark.parametrize("name", KINDS)
    def test_initialize_returns_the_output_of_the_initialised_layer(self, name):
        make, shape, condition_size = CASES[name]
        layer, (_, x, condition) = make(), get_case(name)
        layer.build((None, *shape))
        give_effect(layer)
        before = layer.forward_and_log_det(x, condition)[0]
        output = layer.initialize(x, condition)
        assert_close(output, layer.forward_and_log_det(x, condition)[0])
        # Linear maps, registered layers, the colour map and the squeeze have nothing to set.
        sets_nothing = name.startswith(("linear", "conv1x1", "step-layer", "colour-map", "squeeze"))
        assert np.allclose(output, before) == sets_nothing

    @pytest.mark.parametrize("name", CONDITIONAL)
    def test_a_conditional_layer_depends_on_the_condition(self, name):
        layer, x, condition = get_case(name)
        y, log_det = layer.forward_and_log_det(x, condition)
        other, other_log_det = layer.forward_and_log_det(x, condition + 1)
        assert np.abs(y - other).max() > 1e-3
        assert np.abs(log_det - other_log_det).max() > 1e-3

    @pytest.mark.parametrize("name", KINDS)
    def test_results_are_of_the_layers_dtype_and_shape(self, name):
        make, shape, condition_size = CASES[name]
        layer = make(dtype="float32")
        condition = np.zeros((BATCH, condition_size)) if condition_size else None
        # Neither built nor of its dtype: a float64 numpy array.
        y, log_det = layer.forward_and_log_det(np.ones((BATCH, *shape)), condition)
        x, inverse = layer.inverse_and_log_det(y, condition)
        assert [t.dtype for t in (y, log_det, x, inverse)] == [tf.float32] * 4
        assert log_det.shape == inverse.shape == (BATCH,) and x.shape == (BATCH, *shape)
        assert math.prod(y.shape) == math.prod(x.shape)


class TestBijector:
    @pytest.mark.parametrize("name", [*KINDS, *SPLITS])
    def test_bijector_agrees_with_the_layer_and_its_own_inverse(self, name):
        layer, x, condition = get_case(name)
        bijector = layer.as_bijector()
        kwargs = {} if condition is None else {"condition": condition}
        ndims = len(x.shape) - 1
        y = bijector.forward(x, **kwargs)
        forward = bijector.forward_log_det_jacobian(x, event_ndims=ndims, **kwargs)
        assert_close(forward, layer.forward_and_log_det(x, condition)[1])
        # TFP would remember the very tensor that it returned, so the inverse gets a copy.
        copy = tf.identity(y)
        assert_close(layer.as_bijector().inverse(copy, **kwargs), x)
        assert_close(layer.as_bijector().inverse_log_det_jacobian(copy, event_ndims=ndims, **kwargs), -forward)

    @pytest.mark.parametrize("name", [name for name in KINDS if name != "squeeze"])
    def test_bijector_takes_any_leading_dimensions(self, name):
        layer, x, condition = get_case(name)
        x = tf.stack([x, x + 1, x - 1])[:, None]
        bijector = layer.as_bijector(condition)
        y = bijector.forward(x)
        log_det = bijector.forward_log_det_jacobian(x, event_ndims=len(x.shape) - 3)
        assert y.shape[:3] == log_det.shape == (3, 1, BATCH)
        expected = layer.forward_and_log_det(x[1, 0], condition)
        assert_close(y[1, 0], expected[0])
        assert_close(log_det[1, 0], expected[1])

    @pytest.mark.parametrize("name", CONDITIONAL)
    def test_its_batch_shape_is_that_of_the_condition(self, name):
        layer, x, condition = get_case(name)
        conditions = tf.stack([condition, condition + 1, condition - 1])
        bijector = layer.as_bijector(conditions)
        assert bijector.experimental_batch_shape() == (3, BATCH)
        assert bijector.experimental_batch_shape(x_event_ndims=len(x.shape)) == (3,)
        assert layer.as_bijector().experimental_batch_shape() == ()
        sliced = bijector[1]
        assert sliced.experimental_batch_shape_tensor() == BATCH
        assert_close(sliced.condition, condition + 1)
        assert_close(sliced.forward(x), layer.forward_and_log_det(x, condition + 1)[0])

    def test_a_new_bijector_knows_the_weights_of_now(self):
        layer, x = build_layer(ActNorm(dtype="float64"), (None, 2)), tf.ones([3, 2], tf.float64)
        first = layer.as_bijector()
        y = first.forward(x)
        before = first.forward_log_det_jacobian(x, event_ndims=1)
        give_effect(layer)
        after, log_det = layer.forward_and_log_det(x)
        assert np.all(after != y)
        assert_close(layer.as_bijector().forward(x), after)
        assert_close(layer.as_bijector().forward_log_det_jacobian(x, event_ndims=1), log_det)
        assert_close(layer.as_bijector().inverse(y), layer.inverse_and_log_det(y)[0])
        # As all of TFP's: its own tensors, whatever has become of the weights.
        assert_close(first.forward(x), y)
        assert_close(first.forward_log_det_jacobian(x, event_ndims=1), before)

    def test_a_layer_that_is_not_built_has_none(self):
        with pytest.raises(UserError, match="not built"):
            ActNorm().as_bijector()
