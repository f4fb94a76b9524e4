"""Tests of what XLA compiles: each kind of layer by itself, with the numbers that TensorFlow computes."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import CASES
from helpers.models import give_effect, random_images
from helpers.traces import run_eagerly
from helpers.variants import SMALLEST, fresh

from tfdecouple import DecoupledModel
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode


def count_programs(function, *arguments):
    """Returns how many functions below a traced one are left to XLA, and how many are not."""
    library = function.get_concrete_function(*arguments).graph.as_graph_def().library.function
    compiled = [f.attr["_XlaMustCompile"].b for f in library if f.attr["_noinline"].b]
    return sum(compiled), len(compiled) - sum(compiled)


def assert_near(results, expected, tolerance=1e-5):
    """Asserts that tensors are equal within a part of the largest number of each, or of 1."""
    for ours, theirs in zip(tf.nest.flatten(results), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize(
    "name", ["step-odd", "factor-out-additive", "prior-step-additive", "whitening-image", "sigmoid"]
)
def test_loss_and_gradients_of_a_layer_compiled_by_xla_equal_those_of_tensorflow(name):
    case = CASES[name]
    layer = give_effect(case.build(dtype="float32"))
    x = tf.random.stateless_normal([3, *case.shape], [0, 1])
    z = case.condition and tf.random.stateless_normal([3, *case.condition], [0, 2])
    weights = [tf.convert_to_tensor(variable) for variable in layer.trainable_variables]

    def loss_and_gradients(is_compiled):
        Execution(layer)

        @tf.function(autograph=False)
        def run(x, weights):
            scope = keras.StatelessScope(state_mapping=list(zip(layer.trainable_variables, weights, strict=True)))
            with scope, RunMode(jit_compile=is_compiled).apply(), tf.GradientTape() as tape:
                tape.watch([x, weights])
                y, log_det = layer.forward_and_log_det(x, z)
                loss = tf.reduce_sum(y * tf.sin(y)) - tf.reduce_sum(log_det)
            return y, log_det, tape.gradient(loss, [x, *weights])

        compiled, other = count_programs(run, x, weights)
        assert (compiled > 0 and other == 0) if is_compiled else compiled == 0
        return run(x, weights)

    assert_near(loss_and_gradients(True), loss_and_gradients(False))


def test_each_kind_of_layer_is_compiled_once_by_xla():
    def count(steps):
        flow = DecoupledModel(dataclasses.replace(SMALLEST, steps=steps), jit_compile=True).flow
        run = tf.function(lambda x, z: flow.forward_and_log_det(x, z), autograph=False)
        return count_programs(run, tf.zeros([1, 4, 4, 3]), tf.zeros([1, 4]))

    assert count((1, 1)) == count((3, 2)) == (2, 0)


def test_model_compiled_by_xla_decodes_images_exactly():
    plain, compiled = fresh(SMALLEST), DecoupledModel(SMALLEST, jit_compile=True)
    compiled.set_weights(plain.get_weights())
    images = random_images(3, 4)
    codes = compiled.encode(images)
    np.testing.assert_array_equal(compiled.decode(*codes), images)
    with run_eagerly():
        assert_near(codes, plain.encode(images))
        np.testing.assert_array_equal(plain.decode(*codes), images)
