"""Tests that a model computes the same in each way: in shards, compiled by XLA, and with each kind of convolution."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import CASES
from helpers.models import SMALL, give_effect, random_images
from helpers.variants import SMALLEST, fresh, variant

from tfdecouple.execution import convolution, run_mode, runner
from tfdecouple.execution.convolution import convolve
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.execution.runner import Traced, run_functions_eagerly
from tfdecouple.layers import InvertibleSequence
from tfdecouple.model import DecoupledModel


@pytest.fixture
def set_shards(monkeypatch):
    return lambda count: monkeypatch.setattr(run_mode, "count_shards", lambda: count)


def count_programs(function, *arguments):
    """Returns how many functions below a traced one are left to XLA, and how many are not."""
    library = function.get_concrete_function(*arguments).graph.as_graph_def().library.function
    compiled = [f.attr["_XlaMustCompile"].b for f in library if f.attr["_noinline"].b]
    return sum(compiled), len(compiled) - sum(compiled)


def assert_near(results, expected, tolerance=1e-5):
    for ours, theirs in zip(tf.nest.flatten(results), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))


class TestShardsAndXla:
    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_model_decodes_exactly_with_any_shards(self, set_shards, eager, monkeypatch, count):
        # The test runs eagerly, since a trace keeps the shards that it was made with.
        model, used, split = variant("coupling"), set(), run_mode.split_into_parts
        for module in (run_mode, runner):
            monkeypatch.setattr(module, "split_into_parts", lambda x, shards: used.add(shards) or split(x, shards))
        images = random_images(count, 4)
        for encoding, decoding in ((2, 2), (1, 2), (3, 1)):
            used.clear()
            set_shards(encoding)
            codes = model.encode(images)
            set_shards(decoding)
            np.testing.assert_array_equal(model.decode(*codes), images)
            assert used - {1} == {shards for shards in (encoding, decoding) if 1 < shards <= count}

    def test_elbo_and_gradients_of_two_shards_equal_those_of_one(self, set_shards, eager):
        model = give_effect(DecoupledModel(SMALL), scale=0.05)
        model.initialized.assign(True)
        images, z_noise = random_images(4), tf.random.stateless_normal([4, SMALL.latent_dim], [0, 1])
        u_noise = tf.random.stateless_uniform([4, 8, 8, 3], [0, 2])
        weights = [variable.value for variable in model.trainable_variables]

        def loss_and_gradients(shards):
            set_shards(shards)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model.bound(images, noise=(z_noise, u_noise), training=True)[0])
            return [loss, *tape.gradient(loss, weights, unconnected_gradients="zero")]

        for ours, theirs in zip(loss_and_gradients(2), loss_and_gradients(1), strict=True):
            largest = float(tf.reduce_max(tf.abs(theirs)) + 1)
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * largest)

    @pytest.mark.parametrize(
        "name",
        ["step-odd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("factor-out-additive", "whitening-image"))],
    )
    def test_loss_and_gradients_of_a_layer_compiled_by_xla_equal_those_of_tensorflow(self, name):
        case = CASES[name]
        layer = InvertibleSequence()
        layer.sequence = [give_effect(case.build(dtype="float32"))]
        x = tf.random.stateless_normal([3, *case.shape], [0, 1])
        z = case.condition and tf.random.stateless_normal([3, *case.condition], [0, 2])
        weights = [tf.convert_to_tensor(variable) for variable in layer.trainable_variables]

        def loss_and_gradients(is_compiled):
            layer.runner = Traced(RunMode(jit_compile=is_compiled))

            @tf.function(autograph=False)
            def run(x, weights):
                scope = keras.StatelessScope(state_mapping=list(zip(layer.trainable_variables, weights, strict=True)))
                with scope, tf.GradientTape() as tape:
                    tape.watch([x, weights])
                    y, log_det = layer.forward_and_log_det(x, z)
                    loss = tf.reduce_sum(y * tf.sin(y)) - tf.reduce_sum(log_det)
                return y, log_det, tape.gradient(loss, [x, *weights])

            compiled, other = count_programs(run, x, weights)
            assert (compiled > 0 and other == 0) if is_compiled else compiled == 0
            return run(x, weights)

        assert_near(loss_and_gradients(True), loss_and_gradients(False))

    def test_model_compiled_by_xla_decodes_images_exactly(self):
        config = dataclasses.replace(SMALLEST, conditioning="none")
        plain, compiled = fresh(config), DecoupledModel(config, jit_compile=True)
        compiled.set_weights(plain.get_weights())
        images = random_images(3, 4)
        codes = compiled.encode(images)
        np.testing.assert_array_equal(compiled.decode(*codes), images)
        with run_functions_eagerly():
            assert_near(codes.v, plain.encode(images).v)
            np.testing.assert_array_equal(plain.decode(*codes), images)


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
