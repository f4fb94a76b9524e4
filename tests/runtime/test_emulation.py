"""The emulated accelerator rounds: without that the tests of exactness under TF32 would show nothing."""

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


def rounded(x, bits=10):
    """float32 with `bits` bits of mantissa, to the nearest and in a tie to the even, by arithmetic of float64."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    return tf.constant(np.ldexp(np.rint(np.ldexp(fraction, bits + 1)), exponent - bits - 1), tf.float32)


def draw(*shape, seed=0):
    return tf.constant(np.random.default_rng([seed, *shape]).standard_normal(shape), tf.float32)


OPERATIONS = {
    "product": (tf.matmul, (4, 6), (6, 5)),
    "convolution": (lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), (2, 4, 4, 3), (3, 3, 3, 5)),
}


@pytest.mark.parametrize("operands", ["tf32", "bfloat16"])
@pytest.mark.parametrize(("name", "traced"), [("product", False), ("product", True), ("convolution", False)])
def test_operands_are_rounded_where_the_switch_is_on(name, traced, operands):
    run, *shapes = OPERATIONS[name]
    a, b = draw(*shapes[0]), draw(*shapes[1], seed=1)
    bits = {"tf32": 10, "bfloat16": 7}[operands]
    full, expected = run(a, b), run(rounded(a, bits), rounded(b, bits))
    call = tf.function(run) if traced else run
    call(a, b)
    with emulated_accelerator(operands):
        np.testing.assert_array_equal(call(a, b), expected)
        enable(False)
        np.testing.assert_array_equal(call(a, b), full)
    assert np.abs(expected - full).max() > 1e-4
