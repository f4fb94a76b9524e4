"""Tests of what XLA compiles: each kind of layer by itself, with the numbers that TensorFlow computes."""

from __future__ import annotations

import dataclasses
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import give_effect, random_images
from helpers.places import ROOT
from helpers.variants import SMALLEST, fresh

from tfdecouple import DecoupledModel
from tfdecouple.config import load_preset, preset_names
from tfdecouple.layers import ConditionalWhitening, Sigmoid
from tfdecouple.networks.flow import FactorOut, FlowStep
from tfdecouple.networks.prior import PriorStep
from tfdecouple.runtime.execution import Execution, jit_compiled

sys.path.insert(0, str(ROOT))

from benchmarks.compiling import kinds_of  # noqa: E402

Z = 3
MAP = (2, 2, 3)
# Every kind of layer that any preset runs through a shared trace, with all that it may be made of, the shape of its
# inputs and that of its condition.
KINDS = {
    "step": (lambda: FlowStep(4, Z, alpha=0.8), (2, 2, 3), (Z,)),
    "step, additive": (lambda: FlowStep(4, Z, transform="additive"), (2, 2, 3), (Z,)),
    "step, without z": (lambda: FlowStep(4), (2, 2, 3), None),
    "step, of a map": (lambda: FlowStep(4, Z), (2, 2, 3), MAP),
    "factor-out, alpha 1": (lambda: FactorOut(2, 4, Z), (2, 2, 6), (Z,)),
    "factor-out, additive": (lambda: FactorOut(2, 4, Z, transform="additive"), (2, 2, 6), (Z,)),
    "factor-out, without z": (lambda: FactorOut(2, 4), (2, 2, 6), None),
    "factor-out, additive, lu, without z": (
        lambda: FactorOut(2, 4, transform="additive", linear="lu"),
        (2, 2, 6),
        None,
    ),
    "factor-out, of a map": (lambda: FactorOut(2, 4, Z), (2, 2, 6), MAP),
    "prior": (lambda: PriorStep(4), (4,), None),
    "whitening": (lambda: ConditionalWhitening(5, Z), (2, 2, 3), (Z,)),
    "sigmoid": (Sigmoid, (2, 2, 3), None),
}

# Of what others above have most, too.
RARER = ("step, additive", "step, without z", "step, of a map", "factor-out, additive", "factor-out, without z")
SLOW = pytest.mark.slow


def programs(function, *arguments):
    """How many functions below a traced one are left to XLA, and how many are not, layer by layer."""
    library = function.get_concrete_function(*arguments).graph.as_graph_def().library.function
    compiled = [f.attr["_XlaMustCompile"].b for f in library if f.attr["_noinline"].b]
    return sum(compiled), len(compiled) - sum(compiled)


def assert_near(found, expected, tolerance=1e-5):
    """Asserts that tensors are equal within a part of the largest number of each."""
    for ours, theirs in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * float(tf.reduce_max(tf.abs(theirs))))


def made_of(layer, condition):
    """What a layer computes but for the sizes of numbers: by its own options, and in its couplings."""
    config = layer.get_config()
    own = type(layer).__name__, *(config.get(name) for name in ("transform", "linear", "step_layers"))
    return {(*own, condition and len(condition)), (config.get("transform"), config.get("alpha") == 1)}


class TestLayers:
    def test_kinds_are_those_of_all_presets(self):
        tried = {name: made_of(make(), condition) for name, (make, _, condition) in KINDS.items()}
        kinds = [kind for name in preset_names() for kind in kinds_of(load_preset(name).model)]
        found = set().union(*(made_of(kind.layer, kind.condition) for kind in kinds))
        # Packed factors are an option that no preset has.
        assert found == set().union(*(made for name, made in tried.items() if "lu" not in name))

    @pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if name in RARER else ()) for name in KINDS])
    def test_loss_and_gradients_are_those_of_tensorflow(self, name):
        make, shape, condition = KINDS[name]
        layer, batch = make(), 3
        layer.build((None, *shape), condition and (None, *condition))
        give_effect(layer)
        x = tf.random.stateless_normal([batch, *shape], [0, 1])
        z = condition and tf.random.stateless_normal([batch, *condition], [0, 2])
        weights = [tf.convert_to_tensor(variable) for variable in layer.trainable_variables]

        def loss_and_gradients(on):
            traces = Execution()

            @tf.function(autograph=False)
            def run(x, weights):
                mapping = list(zip(layer.trainable_variables, weights, strict=True))
                with keras.StatelessScope(state_mapping=mapping), jit_compiled(on), tf.GradientTape() as tape:
                    tape.watch([x, weights])
                    y, log_det = traces.run_layer(layer.forward_and_log_det, x, z)
                    loss = tf.reduce_sum(y * tf.sin(y)) - tf.reduce_sum(log_det)
                return y, log_det, tape.gradient(loss, [x, *weights])

            compiled, other = programs(run, x, weights)
            assert (compiled > 0 and other == 0) if on else compiled == 0
            return run(x, weights)

        assert_near(loss_and_gradients(True), loss_and_gradients(False))


class TestSwitch:
    def test_a_kind_is_compiled_once_however_many_layers_there_are(self):
        def count(steps):
            flow = DecoupledModel(dataclasses.replace(SMALLEST, steps=steps), jit_compile=True).flow
            run = tf.function(lambda x, z: flow.forward_and_log_det(x, z), autograph=False)
            return programs(run, tf.zeros([1, 4, 4, 3]), tf.zeros([1, 4]))

        assert count((1, 1)) == count((3, 2)) == (2, 0)


def test_compiled_model_brings_images_back():
    plain, compiled = fresh(SMALLEST), DecoupledModel(SMALLEST, jit_compile=True)
    compiled.set_weights(plain.get_weights())
    given = random_images(3, 4)
    codes = compiled.encode(given)
    assert_near(codes, plain.encode(given))
    np.testing.assert_array_equal(compiled.decode(*codes), given)
    np.testing.assert_array_equal(plain.decode(*codes), given)
