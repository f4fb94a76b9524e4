"""The whole flow as it is used: layers through traced functions, and what its backward pass keeps."""

from __future__ import annotations

import collections
import dataclasses
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import CONDITION
from helpers.models import give_effect
from helpers.places import ROOT
from helpers.variants import STAGES

from tfdecouple.layers import Coupling, InvertibleSequence
from tfdecouple.networks.flow import Flow, FlowStep
from tfdecouple.runtime import convolution
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode

sys.path.insert(0, str(ROOT))


def make_flow(*steps):
    """Returns a flow of two levels with so many steps, whose layers run through traced functions."""
    flow = Flow(dataclasses.replace(STAGES, steps=steps, hidden_channels=(4, 4)))
    Execution(flow)
    return flow


class TestPrograms:
    """The whole flow as it is used: every layer through a traced function."""

    def test_a_deeper_flow_needs_no_more_traces(self, monkeypatch):
        traces = []
        original = FlowStep.run_forward

        def counted(self, x, condition):
            traces.append(self.name)
            return original(self, x, condition)

        monkeypatch.setattr(FlowStep, "run_forward", counted)
        layer = make_flow(2, 3)
        layer.forward_and_log_det(np.zeros((1, 4, 4, 3)), np.zeros((1, 4)))
        assert len(traces) == 2

    def test_two_traces_do_for_batches_of_all_sizes(self, monkeypatch):
        traces = []
        original = FlowStep.run_forward
        monkeypatch.setattr(
            FlowStep, "run_forward", lambda *given: traces.append(given[1].shape[0]) or original(*given)
        )
        layer = make_flow(1, 1)
        found = [layer.forward_and_log_det(np.zeros((n, 4, 4, 3)), np.zeros((n, 4)))[0] for n in (1, 3, 2, 5, 1)]
        assert traces == [1] * 2 + [None] * 2 and [v.shape[0] for v in found] == [1, 3, 2, 5, 1]

    @pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
    def test_values_that_replace_weights_reach_traced_functions(self, method):
        layer = make_flow(1, 1)
        x, z = np.ones((1, 4, 4, 3), "float32"), np.ones((1, 4), "float32")
        layer.build()
        give_effect(layer)
        run = getattr(layer, method)
        before = run(x, z)
        bias = layer.levels[0][0].steps[0].sequence[0].bias
        others = [(bias, bias + 0.5)]
        with keras.StatelessScope(state_mapping=others):
            replaced = run(x, z)
        np.testing.assert_array_equal(run(x, z)[0], before[0])
        bias.assign(bias + 0.5)
        expected = run(x, z)
        assert np.abs(expected[0] - before[0]).max() > 1e-3
        for ours, theirs in zip(replaced, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_computing_maps_again_gives_the_same_gradients_to_the_bit(self):
        gradients = gradients_of_couplings()
        plain, again = (tf.function(gradients, autograph=False)(on) for on in ("keep", "recompute"))
        for ours, theirs in zip(again, plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_inverting_runs_a_net_once_for_the_inverse_and_the_gradients(self, monkeypatch):
        # With oneDNN, the backward pass has no forward convolutions but those that are computed again.
        monkeypatch.setattr(convolution, "is_onednn_on", lambda: True)
        graph = tf.function(gradients_of_couplings(), autograph=False)
        library = graph.get_concrete_function("invert").graph.as_graph_def().library.function
        bodies = [collections.Counter(node.op for node in needed(each)) for each in library]
        # Either coupling goes through the same two functions.
        (forward,) = (body for body in bodies if body["Conv2D"] and not body["Conv2DBackpropFilter"])
        (backward,) = (body for body in bodies if body["Conv2DBackpropFilter"])
        assert backward["Conv2D"] == forward["Conv2D"] > 0 and backward["Elu"] == forward["Elu"] > 0


class Couplings(InvertibleSequence):
    """Two couplings of one kind: the least whose layers are traced functions within a step of training."""

    def __init__(self):
        super().__init__()
        Execution(self)
        self.sequence = [Coupling(hidden=4, condition_size=CONDITION, name=name) for name in ("first", "second")]


def gradients_of_couplings():
    """Returns a function of the mode, which returns a loss and its gradients for all weights."""
    layer = Couplings()
    x = tf.random.stateless_normal((2, 4, 4, 4), [0, 1])
    z = tf.random.stateless_normal((2, CONDITION), [0, 2])
    layer.build(x.shape)
    give_effect(layer)
    weights = [variable.value for variable in layer.trainable_variables]

    def gradients(mode):
        with RunMode(mode).apply(), tf.GradientTape() as tape:
            v, log_det = layer.forward_and_log_det(x, z)
            loss = tf.reduce_sum(v**2) - tf.reduce_sum(log_det)
        return [loss, *tape.gradient(loss, weights)]

    return gradients


def needed(function):
    """The operations of a function on which its results depend."""
    nodes = {node.name: node for node in function.node_def}
    waiting, found = list(function.ret.values()), {}
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name not in found:
            found[name] = nodes[name]
            waiting += nodes[name].input
    return found.values()
