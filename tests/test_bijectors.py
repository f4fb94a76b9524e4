"""Tests of the elementary bijectors: by the checks of TensorFlow, and the log-determinant of Jacobians."""

import gc
import itertools
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import jacobian_log_det
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import (
    BoundedAffine,
    ChannelAffine,
    ChannelMatrix,
    Shift,
    Sigmoid,
    Squeeze,
    Whitening,
    with_log_det,
)
from tfdecouple.errors import UserError
from tfdecouple.transforms import TRANSFORMS

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape)


# name: constructor with arrays, the arrays, axes of an event
CASES = {
    "actnorm": (ChannelAffine, (normal(3), normal(3)), 1),
    "matrix": (ChannelMatrix, (normal(3, 3),), 1),
    "affine-1": (BoundedAffine, (normal(2, 4, 2, 3), normal(2, 4, 2, 3)), 0),
    "affine-0.6": (lambda *arrays: BoundedAffine(*arrays, alpha=0.6), (normal(2, 4, 2, 3), normal(2, 4, 2, 3)), 0),
    "additive": (Shift, (normal(2, 4, 2, 3),), 0),
    "whitening": (Whitening, (normal(2, 4, 2, 3), normal(2, 4, 2, 3)), 0),
    "sigmoid": (Sigmoid, (), 0),
    "squeeze": (Squeeze, (), 3),
    **{
        f"transform-{name}": (
            lambda *raw, transform=transform: transform.bijector(raw, 0.8),
            tuple(normal(2, 4, 2, 3) for _ in range(transform.parameters)),
            0,
        )
        for name, transform in TRANSFORMS.items()
    },
}
X = normal(2, 4, 2, 3)


def made(name):
    make, arrays, _ = CASES[name]
    return make(*map(tf.constant, arrays))


def close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_sigmoid_equals_that_of_tfp_and_is_finite_for_large_inputs():
    x = tf.constant([[-80.0, -30.0, 0.0, 30.0, 80.0, 1.0]], tf.float64)
    y, log_det = Sigmoid().forward_and_log_det(x)
    close(y, tfb.Sigmoid().forward(x))
    close(log_det, tf.reduce_sum(tfb.Sigmoid().forward_log_det_jacobian(x), -1))
    assert np.all(np.isfinite(Sigmoid().forward_and_log_det(tf.constant([[-80.0], [80.0]]))[1]))


class TestLogDets:
    @pytest.mark.parametrize("name", CASES)
    def test_log_determinants_equal_those_of_the_jacobian(self, name):
        x = tf.constant(X)
        if CASES[name][2] == 0:
            # The Jacobian takes copies of each image, and these bijectors have parameters of their own for each.
            make, arrays, _ = CASES[name]
            bijector = make(*(tf.constant(array[:1]) for array in arrays))
        else:
            bijector = made(name)
        y, log_det = with_log_det(bijector).forward_and_log_det(x)
        close(log_det, jacobian_log_det(lambda x, _: with_log_det(bijector).forward_and_log_det(x), x))
        back, inverse = with_log_det(bijector).inverse_and_log_det(y)
        close(back, x)
        close(inverse, -log_det)

    @pytest.mark.parametrize("name", CASES)
    def test_log_determinants_of_images_equal_those_of_tfp(self, name):
        bijector, x = made(name), tf.constant(X)
        y, log_det = with_log_det(bijector).forward_and_log_det(x)
        close(y, made(name).forward(x), 0)
        # A log-determinant that is the same for all events is returned once for all images by TFP.
        close(log_det, np.broadcast_to(made(name).forward_log_det_jacobian(x, event_ndims=3), [2]))
        close(
            with_log_det(bijector).inverse_and_log_det(y)[1],
            np.broadcast_to(made(name).inverse_log_det_jacobian(y, 3), [2]),
        )

    @pytest.mark.parametrize("name", ["actnorm", "affine-1", "affine-0.6"])
    def test_closed_form_gradients_equal_those_of_tensorflow(self, name):
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

        for ours, theirs in zip(
            gradients(lambda x, *rest: make(*rest).forward_and_log_det(x)), gradients(plain), strict=True
        ):
            close(ours, theirs)


def test_log_determinants_of_any_bijector_of_tfp_are_those_of_the_jacobian():
    bijector, x = tfb.SinhArcsinh(tf.constant(0.3, tf.float64), tf.constant(1.2, tf.float64)), tf.constant(X)
    y, log_det = with_log_det(bijector).forward_and_log_det(x)
    close(log_det, jacobian_log_det(lambda x, _: with_log_det(bijector).forward_and_log_det(x), x))
    back, inverse = with_log_det(bijector).inverse_and_log_det(tf.identity(y))
    close(back, x)
    close(inverse, -log_det)


class TestUseByTfp:
    @pytest.mark.parametrize(("name", "leading"), itertools.product(["actnorm", "matrix", "squeeze"], [(), (2, 1, 3)]))
    def test_bijector_accepts_any_leading_dimensions(self, name, leading):
        x = tf.broadcast_to(tf.constant(X[0]), [*leading, *X.shape[1:]])
        y = made(name).forward(x)
        assert y.shape[:-3] == leading
        expected = made(name).forward(tf.constant(X))[0]
        close(y, tf.broadcast_to(expected, [*leading, *expected.shape]))
        close(made(name).inverse(tf.identity(y)), x)
        log_det = made(name).forward_log_det_jacobian(x, event_ndims=3)
        close(
            tf.broadcast_to(log_det, leading),
            tf.fill(leading, with_log_det(made(name)).forward_and_log_det(tf.constant(X[:1]))[1][0]),
        )

    @pytest.mark.parametrize("name", CASES)
    def test_batch_shape_is_that_of_the_parameters(self, name):
        _, arrays, ndims = CASES[name]
        batch = [] if ndims or not arrays else [2, 4, 2, 3]
        assert made(name).experimental_batch_shape(x_event_ndims=ndims) == batch
        assert list(made(name).experimental_batch_shape_tensor(x_event_ndims=ndims)) == batch


class TestRefusals:
    @pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
    def test_variable_as_parameter_is_refused(self, kind):
        with pytest.raises(UserError, match="variable"):
            ChannelAffine(kind(np.zeros(3, "float32")), tf.zeros([3]))

    def test_batch_of_channel_parameters_is_refused(self):
        for make in (
            lambda: ChannelAffine(tf.zeros([2, 3]), tf.zeros([3])),
            lambda: ChannelMatrix(tf.zeros([5, 3, 3])),
        ):
            with pytest.raises(UserError, match="ax[ie]s"):
                make()


def test_squeeze_refuses_sides_and_channels_that_do_not_divide():
    assert Squeeze().forward_event_shape([4, None, 3]) == [2, None, 12]
    for run in (lambda: Squeeze().forward(X[:, :3]), lambda: Squeeze().inverse(X)):
        with pytest.raises(UserError):
            run()


def test_alpha_that_rounds_to_1_acts_as_1():
    unbounded = tf.constant([-100.0, 0.0, 3.0])
    almost, whole = (BoundedAffine(tf.zeros([3]), unbounded, alpha) for alpha in (1 - 1e-8, 1.0))
    for ours, theirs in zip(
        *(with_log_det(bijector).forward_and_log_det(tf.ones([1, 3])) for bijector in (almost, whole)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert np.all(np.isfinite(almost.inverse_and_log_det(tf.ones([1, 3]))[1]))


def test_bijector_keeps_no_feature_map_alive():
    bijector = BoundedAffine(tf.zeros([3]), tf.ones([3]))
    x = tf.ones([2, 4, 4, 3])
    seen = weakref.ref(with_log_det(bijector).forward_and_log_det(x)[0])
    gc.disable()
    try:
        assert seen() is None
    finally:
        gc.enable()
