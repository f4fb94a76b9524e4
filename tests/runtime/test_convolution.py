"""Tests that `convolve`, however it packs pixels, equals the convolution and its gradients."""

import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.runtime import convolution, devices
from tfdecouple.runtime.convolution import convolve

SMALL, WIDE = 3, 20
LANES = convolution.get_vector_size


@pytest.fixture(autouse=True, scope="module")
def of_sixteen_channels():
    """Whatever processor runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "get_vector_size", lambda: 16)
        yield


def maps(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape))


def plain(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


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


def operations(function, x, kernel):
    """{type: operations} of value and gradients."""

    def run(x, kernel):
        return with_gradients(function, x, kernel, tf.ones([*tf.unstack(tf.shape(x))[:-1], kernel.shape[-1]], x.dtype))

    results = {}
    for operation in tf.function(run, autograph=False).get_concrete_function(x, kernel).graph.get_operations():
        results.setdefault(operation.type, []).append(operation)
    return results


@pytest.mark.parametrize("inputs", [1, 8, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3, 24, 64))])
def test_convolve_equals_the_convolution_and_its_gradients_in_every_shape(inputs, monkeypatch):
    """The kernels of TensorFlow's library have read beyond their maps: free memory is NaN here."""
    monkeypatch.setattr(convolution, "get_vector_size", LANES)
    wrong = []
    for outputs in (*range(1, 10), 12, 15, 16, 17, 24, 48):
        for height, width in ((2, 2), (3, 4), (2, 7), (1, 12), (2, 16), (1, 18)):
            shapes = [(2, height, width, inputs), (3, 3, inputs, outputs), (2, height, width, outputs)]
            given = [tf.cast(maps(*shape, seed=seed), tf.float32) for seed, shape in enumerate(shapes)]
            expected = with_gradients(plain, *[tf.cast(value, tf.float64) for value in given])
            spoil_free_memory()
            results = with_gradients(convolve, *given)
            for name, value, right in zip(("value", "input", "kernel"), results, expected, strict=True):
                # Written so that NaN is wrong.
                if not np.abs(np.asarray(value) - right).max() <= 1e-5 * np.abs(right).max():
                    wrong.append((name, outputs, height, width))
    assert not wrong


class TestPacking:
    @pytest.mark.parametrize(
        ("outputs", "width", "step"), [(2, 16, 8), (2, 12, 6), (5, 8, 2), (5, 9, 3), (8, 8, 2), (8, 7, 1), (9, 8, 1)]
    )
    def test_convolve_packs_neighbouring_pixels_that_fit_a_vector_and_divide_the_row(self, outputs, width, step):
        results = operations(convolve, maps(2, 4, width, 24), maps(3, 3, 24, outputs))
        (forward,) = results["Conv2D"]
        assert forward.get_attr("strides") == [1, 1, step, 1]
        assert forward.inputs[1].shape[-1] == step * outputs

    def test_convolve_packs_no_pixels_of_unknown_sizes_or_on_a_gpu(self, monkeypatch):
        kernel = maps(3, 3, WIDE, SMALL)

        def is_plain(x):
            results = operations(convolve, x, kernel)
            (forward,), (backward,) = results["Conv2D"], results["Conv2DBackpropFilter"]
            return forward.get_attr("strides") == [1, 1, 1, 1] and backward.outputs[0].shape == kernel.shape

        assert not is_plain(maps(2, 4, 4, WIDE))
        assert not is_plain(tf.TensorSpec([None, 4, 4, WIDE], kernel.dtype))
        assert is_plain(tf.TensorSpec([2, None, None, WIDE], kernel.dtype))
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["/GPU:0"] if kind == "GPU" else [])
        assert is_plain(maps(2, 4, 4, WIDE))


@pytest.mark.parametrize(
    ("described", "lanes"), [("flags : avx2 avx512f avx512_bf16 amx_bf16", 16), ("flags : avx2", 8), (None, 8)]
)
def test_vector_size_is_that_of_the_processor(described, lanes, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if described is not None:
        file.write_text(described, encoding="utf-8")
    monkeypatch.setattr(devices, "_CPUINFO", file)
    devices.read_cpuinfo.cache_clear()
    assert LANES() == lanes
    devices.read_cpuinfo.cache_clear()
