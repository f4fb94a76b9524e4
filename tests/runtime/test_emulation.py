"""Tests of the emulated accelerator: what it rounds, where it reaches, and that it leaves nothing behind."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.emulation import emulated_accelerator

enable = tf.config.experimental.enable_tensor_float_32_execution


@pytest.fixture(autouse=True)
def default_setting():
    enable(True)
    yield
    enable(True)


def rounded(x, kept=10):
    """float32 with `kept` bits of mantissa, to the nearest and in a tie to the even, by arithmetic of float64."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    return tf.constant(np.ldexp(np.rint(np.ldexp(fraction, kept + 1)), exponent - kept - 1), tf.float32)


def drawn(*shape, seed=0):
    return tf.constant(np.random.default_rng([seed, *shape]).standard_normal(shape), tf.float32)


def conv2d(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


CONV = {"strides": [1, 1, 1, 1], "padding": "SAME"}
IMAGES, KERNEL, MAPS = (2, 4, 4, 3), (3, 3, 3, 5), (2, 4, 4, 5)
# Each operation as a function of its two operands, and their shapes.
OPERATIONS = {
    "MatMul": (lambda a, b: tf.raw_ops.MatMul(a=a, b=b, transpose_b=True), (4, 6), (5, 6)),
    "BatchMatMul": (lambda a, b: tf.raw_ops.BatchMatMul(x=a, y=b), (2, 4, 6), (2, 6, 5)),
    "BatchMatMulV2": (lambda a, b: tf.raw_ops.BatchMatMulV2(x=a, y=b, adj_x=True), (2, 6, 4), (6, 5)),
    "BatchMatMulV3": (lambda a, b: tf.raw_ops.BatchMatMulV3(x=a, y=b, Tout=a.dtype), (2, 4, 6), (2, 6, 5)),
    "Einsum": (lambda a, b: tf.raw_ops.Einsum(inputs=[a, b], equation="bij,jk->bik"), (2, 4, 6), (6, 5)),
    "Conv2D": (lambda a, b: tf.raw_ops.Conv2D(input=a, filter=b, **CONV), IMAGES, KERNEL),
    "Conv2DBackpropInput": (
        lambda a, b: tf.raw_ops.Conv2DBackpropInput(input_sizes=IMAGES, filter=a, out_backprop=b, **CONV),
        KERNEL,
        MAPS,
    ),
    "Conv2DBackpropFilter": (
        lambda a, b: tf.raw_ops.Conv2DBackpropFilter(input=a, filter_sizes=KERNEL, out_backprop=b, **CONV),
        IMAGES,
        MAPS,
    ),
}


def by_name(name):
    run, *shapes = OPERATIONS[name]
    a, b = drawn(*shapes[0]), drawn(*shapes[1], seed=1)
    return run, a, b


class TestRounding:
    @pytest.mark.parametrize(("operands", "kept"), [("tf32", 10), ("bfloat16", 7)])
    def test_is_to_nearest_and_in_a_tie_to_even(self, operands, kept):
        last = 2.0**-kept
        halves = [1 + last / 2, 1 + 1.5 * last, 1 + last / 2 + 2**-23, 1 + 1.5 * last - 2**-23, 2 - last / 2]
        values = [*halves, 1.5e-38, 3.3e38, *np.random.default_rng(0).standard_normal(1000)]
        values = np.array([*values, *(-np.array(values)), 0.0, 1.0], np.float32)
        with emulated_accelerator(operands):
            found = tf.matmul(values[:, None], [[1.0]])[:, 0]
        np.testing.assert_array_equal(found, rounded(values, kept))
        assert found[0] == 1 and found[1] == np.float32(1 + 2 * last)

    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_of_the_operands_of_each_operation(self, name, traced):
        run, a, b = by_name(name)
        run = tf.function(run) if traced else run
        full, expected = run(a, b), run(rounded(a), rounded(b))
        with emulated_accelerator():
            found = run(a, b)
        np.testing.assert_array_equal(found, expected)
        assert np.abs(found - full).max() > 1e-4

    def test_not_of_float64(self):
        a, run = tf.cast(drawn(4, 4), tf.float64), tf.function(tf.matmul)
        full = run(a, a)
        with emulated_accelerator(noise=1e-6):
            np.testing.assert_array_equal(run(a, a), full)
            np.testing.assert_array_equal(tf.matmul(a, a), full)


class TestSwitch:
    def test_is_read_at_each_call(self):
        a = drawn(4, 4)
        run = tf.function(tf.matmul)
        full = run(a, a).numpy()
        with emulated_accelerator():
            for on in (True, False, True, False):
                enable(on)
                assert np.array_equal(run(a, a), full) is not on
                assert np.array_equal(tf.matmul(a, a), full) is not on


class TestReach:
    def check(self, run, *arguments):
        """Whether a function's products of x[i] @ y are rounded, its gradients too; it is traced before."""
        traced = tf.function(run, autograph=False)
        given = [tf.Variable(value) for value in arguments]

        def both():
            with tf.GradientTape() as tape:
                value = traced(*given)
            return [value, *tape.gradient(value, given)]

        full = both()
        with emulated_accelerator():
            rough = both()
        again = both()
        for before, inside, after in zip(full, rough, again, strict=True):
            np.testing.assert_array_equal(before, after)
            assert 1e-5 < np.abs(inside - before).max() < 0.1
        return rough

    def test_gradient_is_that_of_rounded_operands(self):
        x, y, weight = drawn(3, 5), drawn(5, 4), drawn(3, 4, seed=2)
        _, of_x, of_y = self.check(lambda x, y: tf.reduce_sum(tf.matmul(x, y) * weight), x, y)
        np.testing.assert_allclose(of_x, rounded(weight) @ tf.transpose(rounded(y)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_y, tf.transpose(rounded(x)) @ rounded(weight), rtol=1e-5, atol=1e-6)

    def test_functions_within_functions(self):
        inner = tf.function(tf.matmul, autograph=False, experimental_attributes={"_noinline": True})
        middle = tf.function(lambda x, y: tf.nn.elu(inner(x, y)), autograph=False)
        self.check(lambda x, y: tf.reduce_sum(middle(x, y) ** 2), drawn(3, 5), drawn(5, 4))

    def test_a_loaded_saved_model(self, tmp_path):
        module = tf.Module()
        module.weight = tf.Variable(drawn(4, 4))
        module.run = tf.function(lambda x: x @ module.weight, input_signature=[tf.TensorSpec([None, 4])])
        tf.saved_model.save(module, str(tmp_path / "saved"))
        loaded, x = tf.saved_model.load(str(tmp_path / "saved")), drawn(3, 4)
        with emulated_accelerator():
            np.testing.assert_array_equal(loaded.run(x), tf.matmul(rounded(x), rounded(module.weight)))


class TestBfloat16:
    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_products_are_added_up_in_float32(self, name, traced):
        run, a, b = by_name(name)
        call = tf.function(run) if traced else run
        a, b = tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16)
        call(a, b)
        with emulated_accelerator():
            found = call(a, b)
        right = tf.cast(run(tf.cast(a, tf.float32), tf.cast(b, tf.float32)), tf.bfloat16)
        assert found.dtype == tf.bfloat16
        np.testing.assert_array_equal(tf.cast(found, tf.float32), tf.cast(right, tf.float32))
