"""Tests of the elementary bijectors as TFP uses them, of gradients in closed form, and of their limits.

The laws of the layers in tests/layers/test_laws.py hold the values and log-determinants of the bijectors.
"""

import gc
import re
import weakref

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import assert_close
from helpers.models import assert_all_close
from helpers.refusals import message_of
from tensorflow_probability import bijectors as tfb

from tfdecouple import bijectors
from tfdecouple.errors import UserError


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


X, PAIR = normal(2, 4, 2, 3), (normal(2, 4, 2, 3), np.sin(normal(2, 4, 2, 3)))
# {name: (constructor with arrays, the arrays, axes of an event)}.
CASES = {
    "actnorm": (bijectors.ChannelAffine, (normal(3), np.sin(normal(3))), 1),
    "matrix": (bijectors.ChannelMatrix, (normal(3, 3),), 1),
    "affine-1": (bijectors.BoundedAffine, PAIR, 0),
    "affine-0.6": (lambda *arrays: bijectors.BoundedAffine(*arrays, alpha=0.6), PAIR, 0),
    "additive": (bijectors.Shift, PAIR[:1], 0),
    "whitening": (bijectors.Whitening, PAIR, 0),
    "sigmoid": (bijectors.Sigmoid, (), 0),
    "squeeze": (bijectors.Squeeze, (), 3),
}


def make_bijector(name):
    make, arrays, _ = CASES[name]
    return make(*map(tf.constant, arrays))


class TestBijector:
    @pytest.mark.parametrize("name", CASES)
    def test_methods_of_tfp_give_the_values_log_determinants_and_batch_shape_of_a_bijector(self, name):
        bijector, x, (_, arrays, ndims) = make_bijector(name), tf.constant(X), CASES[name]
        y, log_det = bijector.forward_and_log_det(x)
        assert_close(y, make_bijector(name).forward(x), 0)
        # A log-determinant that is the same for all events is returned once for all images by TFP.
        assert_close(log_det, np.broadcast_to(make_bijector(name).forward_log_det_jacobian(x, event_ndims=3), [2]))
        inverse = np.broadcast_to(make_bijector(name).inverse_log_det_jacobian(y, 3), [2])
        assert_close(bijector.inverse_and_log_det(y)[1], inverse)
        batch = [] if ndims or not arrays else [2, 4, 2, 3]
        assert bijector.experimental_batch_shape(x_event_ndims=ndims) == batch
        assert list(bijector.experimental_batch_shape_tensor(x_event_ndims=ndims)) == batch

    @pytest.mark.parametrize("name", ["actnorm", "affine-1", "affine-0.6"])
    def test_closed_form_gradients_of_a_bijector_equal_those_of_tensorflow(self, name):
        make, arrays, _ = CASES[name]
        inputs = [tf.constant(X), *map(tf.constant, arrays)]

        def plain(x, shift, second):
            if name == "actnorm":
                return x * tf.exp(second) + shift, tf.fill([2], 8 * tf.reduce_sum(second))
            scale = 1 + (1 if name == "affine-1" else 0.6) * tf.tanh(second / 2)
            return x * scale + shift, tf.reduce_sum(tf.math.log(scale), [1, 2, 3])

        def gradients(function):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y, log_det = function(*inputs)
                loss = tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(log_det * tf.constant([1.0, -3.0], tf.float64))
            return [y, log_det, *tape.gradient(loss, inputs)]

        ours = gradients(lambda x, *rest: make(*rest).forward_and_log_det(x))
        assert_all_close(ours, gradients(plain), rtol=1e-9, atol=1e-9)

    def test_sigmoid_equals_that_of_tfp_for_large_inputs(self):
        for x in (tf.constant([[-80.0, -30.0, 0.0, 30.0, 80.0, 1.0]], dtype) for dtype in (tf.float64, tf.float32)):
            y, log_det = bijectors.Sigmoid().forward_and_log_det(x)
            assert_close(y, tfb.Sigmoid().forward(x))
            assert_close(log_det, tf.reduce_sum(tfb.Sigmoid().forward_log_det_jacobian(x), -1), 1e-6)

    def test_bijector_refuses_parameters_and_inputs_of_a_wrong_shape(self):
        for call in (
            lambda: bijectors.ChannelAffine(tf.zeros([2, 3]), tf.zeros([3])),
            lambda: bijectors.ChannelMatrix(tf.zeros([5, 3, 3])),
            lambda: bijectors.Squeeze().forward(X[:, :3]),
            lambda: bijectors.Squeeze().inverse(X),
        ):
            assert re.search("ax[ie]s|even|multiple of 4", message_of(UserError, call))

    def test_alpha_that_float32_rounds_to_1_acts_as_1(self):
        unbounded = tf.constant([-100.0, 0.0, 3.0])
        almost, whole = (bijectors.BoundedAffine(tf.zeros([3]), unbounded, alpha) for alpha in (1 - 1e-8, 1.0))
        x = tf.ones([1, 3])
        assert_all_close(almost.forward_and_log_det(x), whole.forward_and_log_det(x), rtol=0)
        assert np.all(np.isfinite(almost.inverse_and_log_det(x)[1]))

    def test_bijector_keeps_no_feature_map_alive(self):
        bijector = bijectors.BoundedAffine(tf.zeros([3]), tf.ones([3]))
        x = tf.ones([2, 4, 4, 3])
        seen = weakref.ref(bijectors.with_log_det(bijector).forward_and_log_det(x)[0])
        gc.disable()
        try:
            assert seen() is None
        finally:
            gc.enable()
