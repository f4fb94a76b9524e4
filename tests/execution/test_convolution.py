"""Tests that `convolve`, whichever way it computes, equals the convolution and its gradients."""

import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.execution import convolution
from tfdecouple.execution.convolution import convolve


def draw_map(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape))


def spoil_free_memory():
    """Leaves NaN in the memory that the next operations are given."""
    for _ in range(2):
        held = [tf.fill([size], np.float32(np.nan)) for size in (64, 512, 4096, 32768)]
        del held


def with_gradients(function, x, kernel, upstream):
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = function(x, kernel)
    return y, *tape.gradient(y, [x, kernel], output_gradients=upstream)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(
    "counts", [(1, 3, 9, 16, 48), pytest.param((2, *range(4, 9), 12, 15, 17, 24), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("inputs", [1, 36, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3, 24, 64))])
def test_convolve_equals_the_convolution_and_its_gradients_in_every_shape(inputs, counts, onednn, monkeypatch):
    """Kernels of TensorFlow's library have read beyond their maps: free memory is NaN here."""
    monkeypatch.setattr(convolution, "is_onednn_on", lambda: onednn)
    wrong = []
    for outputs in counts:
        for height, width in ((2, 2), (3, 4), (2, 7), (1, 12), (2, 16), (1, 18)):
            shapes = [(2, height, width, inputs), (3, 3, inputs, outputs), (2, height, width, outputs)]
            given = [tf.cast(draw_map(*shape, seed=seed), tf.float32) for seed, shape in enumerate(shapes)]
            doubles = [tf.cast(value, tf.float64) for value in given]
            expected = with_gradients(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), *doubles)
            spoil_free_memory()
            results = with_gradients(convolve, *given)
            for name, value, right in zip(("value", "input", "kernel"), results, expected, strict=True):
                # Written so that NaN is wrong.
                if not np.abs(np.asarray(value) - right).max() <= 1e-5 * np.abs(right).max():
                    wrong.append((name, outputs, height, width))
    assert not wrong


def is_plain(x, kernel):
    """Returns whether the convolution of `x` and its gradients are TensorFlow's operations."""

    def run(x, kernel):
        upstream = tf.ones([*tf.unstack(tf.shape(x))[:-1], kernel.shape[-1]], x.dtype)
        return with_gradients(convolve, x, kernel, upstream)

    operations = tf.function(run, autograph=False).get_concrete_function(x, kernel).graph.get_operations()
    (gradient,) = (operation for operation in operations if operation.type == "Conv2DBackpropFilter")
    is_input_plain = any(operation.type == "Conv2DBackpropInput" for operation in operations)
    return is_input_plain and gradient.outputs[0].shape == kernel.shape


@pytest.mark.parametrize("onednn", [True, False])
def test_convolve_of_unknown_sizes_and_on_a_gpu_uses_the_operations_of_tensorflow(onednn, monkeypatch):
    monkeypatch.setattr(convolution, "is_onednn_on", lambda: onednn)
    x, kernel = draw_map(2, 4, 4, 20), draw_map(3, 3, 20, 3)
    assert not is_plain(x, kernel)
    assert not is_plain(tf.TensorSpec([None, 4, 4, 20], kernel.dtype), kernel)
    assert is_plain(tf.TensorSpec([2, None, None, 20], kernel.dtype), kernel)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["/GPU:0"] if kind == "GPU" else [])
    assert is_plain(x, kernel)
