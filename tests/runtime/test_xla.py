"""Tests of what XLA compiles: each kind of layer by itself, with the numbers that TensorFlow computes."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import give_effect, random_images
from helpers.traces import run_eagerly
from helpers.variants import SMALLEST, fresh

from tfdecouple import DecoupledModel
from tfdecouple.layers import ConditionalWhitening, Sigmoid
from tfdecouple.networks.flow import FactorOut, FlowStep
from tfdecouple.networks.prior import PriorStep
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode

Z = 3
COUPLINGS = {"hidden": 4, "condition_size": Z}
# Kinds of layers that run through a shared trace, the shape of their inputs and that of their condition.
KINDS = {
    "step": (lambda: FlowStep({**COUPLINGS, "alpha": 0.8}), (2, 2, 3), (Z,)),
    "additive factor-out": (
        lambda: FactorOut(2, {**COUPLINGS, "transform": "additive"}),
        (2, 2, 6),
        (2, 2, 3),
    ),
    "prior": (lambda: PriorStep({"hidden": 4}), (4,), None),
    "whitening": (lambda: ConditionalWhitening(5, Z), (2, 2, 3), (Z,)),
    "sigmoid": (Sigmoid, (2, 2, 3), None),
}


def programs(function, *arguments):
    """How many functions below a traced one are left to XLA, and how many are not, layer by layer."""
    library = function.get_concrete_function(*arguments).graph.as_graph_def().library.function
    compiled = [f.attr["_XlaMustCompile"].b for f in library if f.attr["_noinline"].b]
    return sum(compiled), len(compiled) - sum(compiled)


def assert_near(found, expected, tolerance=1e-5):
    """Asserts that tensors are equal within a part of the largest number of each, or of 1."""
    for ours, theirs in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))


class TestLayers:
    @pytest.mark.parametrize("name", KINDS)
    def test_loss_and_gradients_compiled_by_xla_equal_those_of_tensorflow(self, name):
        make, shape, condition = KINDS[name]
        layer, batch = make(), 3
        layer.build((None, *shape), condition and (None, *condition))
        give_effect(layer)
        x = tf.random.stateless_normal([batch, *shape], [0, 1])
        z = condition and tf.random.stateless_normal([batch, *condition], [0, 2])
        weights = [tf.convert_to_tensor(variable) for variable in layer.trainable_variables]

        def loss_and_gradients(on):
            Execution(layer)

            @tf.function(autograph=False)
            def run(x, weights):
                mapping = list(zip(layer.trainable_variables, weights, strict=True))
                with (
                    keras.StatelessScope(state_mapping=mapping),
                    RunMode(jit_compile=on).apply(),
                    tf.GradientTape() as tape,
                ):
                    tape.watch([x, weights])
                    y, log_det = layer.forward_and_log_det(x, z)
                    loss = tf.reduce_sum(y * tf.sin(y)) - tf.reduce_sum(log_det)
                return y, log_det, tape.gradient(loss, [x, *weights])

            compiled, other = programs(run, x, weights)
            assert (compiled > 0 and other == 0) if on else compiled == 0
            return run(x, weights)

        assert_near(loss_and_gradients(True), loss_and_gradients(False))


class TestSwitch:
    def test_each_kind_of_layer_is_compiled_once(self):
        def count(steps):
            flow = DecoupledModel(dataclasses.replace(SMALLEST, steps=steps), jit_compile=True).flow
            run = tf.function(lambda x, z: flow.forward_and_log_det(x, z), autograph=False)
            return programs(run, tf.zeros([1, 4, 4, 3]), tf.zeros([1, 4]))

        assert count((1, 1)) == count((3, 2)) == (2, 0)


def test_model_compiled_by_xla_decodes_images_exactly():
    plain, compiled = fresh(SMALLEST), DecoupledModel(SMALLEST, jit_compile=True)
    compiled.set_weights(plain.get_weights())
    given = random_images(3, 4)
    codes = compiled.encode(given)
    np.testing.assert_array_equal(compiled.decode(*codes), given)
    with run_eagerly():
        assert_near(codes, plain.encode(given))
        np.testing.assert_array_equal(plain.decode(*codes), given)
