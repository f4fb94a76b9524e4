import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.runtime import convolution
from tfdecouple.runtime.convolution import convolve


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
@pytest.mark.parametrize("inputs", [1, 36, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3, 24, 64))])
def test_convolve_equals_the_convolution_and_its_gradients_in_every_shape(inputs, onednn, monkeypatch):
    """Kernels of TensorFlow's library have read beyond their maps: free memory is NaN here."""
    monkeypatch.setattr(convolution, "is_onednn_on", lambda: onednn)
    wrong = []
    for outputs in (*range(1, 10), 12, 15, 16, 17, 24, 48):
        for height, width in ((2, 2), (3, 4), (2, 7), (1, 12), (2, 16), (1, 18)):
            shapes = [(2, height, width, inputs), (3, 3, inputs, outputs), (2, height, width, outputs)]
            rng = np.random.default_rng(outputs)
            given = [tf.constant(rng.standard_normal(shape), tf.float32) for shape in shapes]
            doubles = [tf.cast(value, tf.float64) for value in given]
            expected = with_gradients(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), *doubles)
            spoil_free_memory()
            results = with_gradients(convolve, *given)
            for name, value, right in zip(("value", "input", "kernel"), results, expected, strict=True):
                # Written so that NaN is wrong.
                if not np.abs(np.asarray(value) - right).max() <= 1e-5 * np.abs(right).max():
                    wrong.append((name, outputs, height, width))
    assert not wrong
