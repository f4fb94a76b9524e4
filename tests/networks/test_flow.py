"""The flow: which entries of v a layer reaches, shapes that are refused, traces, and what a backward pass computes."""

import collections
import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import BATCH, CONDITION
from helpers.models import TINY, give_effect
from helpers.traces import run_eagerly
from helpers.variants import STAGES

from tfdecouple.errors import UserError
from tfdecouple.layers import Coupling, InvertibleSequence
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.runtime import convolution
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode


@functools.cache
def tiny_flow():
    """Returns the flow of TINY in float64, an input, a condition and the output."""
    rng, layer = np.random.default_rng(1), Flow(TINY, dtype="float64")
    layer.build()
    give_effect(layer)
    x, z = rng.uniform(-1, 1, (BATCH, *TINY.image_shape)), rng.standard_normal((BATCH, TINY.latent_dim))
    return layer, x, z, layer.forward_and_log_det(x, z)[0]


@pytest.mark.parametrize(
    ("level", "stage", "pick", "changed"),
    [
        # The channels that leave first stand last, at the resolution of their level.
        (1, 0, lambda stage: stage.factor_out.actnorm, range(9, 12)),
        (1, 1, lambda stage: stage.factor_out.actnorm, range(6, 9)),
        (2, 0, lambda stage: stage.steps[0].sequence[0], range(0, 6)),
        (1, 1, lambda stage: stage.steps[0].sequence[0], range(0, 9)),
    ],
)
def test_layer_of_a_flow_reaches_only_entries_of_v_that_have_not_left(level, stage, pick, changed, eager):
    layer, x, z, before = tiny_flow()
    bias = pick(layer.levels[level][stage]).bias
    kept = bias.numpy()
    bias.assign(kept + 0.1)
    after = layer.forward_and_log_det(x, z)[0]
    bias.assign(kept)
    difference = np.abs(tf.nn.space_to_depth(after - before, 2)).max((0, 1, 2))
    assert np.flatnonzero(difference > 1e-12).tolist() == list(changed)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 6, 8, 3), (8, 8, 3), (2, 192)])
@pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
def test_flow_refuses_shapes_that_it_cannot_squeeze(shape, direction, eager):
    layer, _, z, _ = tiny_flow()
    with pytest.raises(UserError, match="it needs"):
        getattr(layer, direction)(np.zeros(shape), z)


@pytest.mark.parametrize("dropped", [0, 4])
def test_factor_out_must_keep_and_drop_something(dropped):
    with pytest.raises(UserError, match="of 4 channels"):
        FactorOut(dropped, {"hidden": 4}).forward_and_log_det(np.ones((1, 2, 2, 4)))


def make_flow(*steps):
    """Returns a flow of two levels with so many steps, whose layers run through traced functions."""
    flow = Flow(dataclasses.replace(STAGES, steps=steps, hidden_channels=(4, 4)))
    Execution(flow)
    flow.build()
    return give_effect(flow)


def test_steps_of_a_kind_share_one_trace_for_each_kind_of_batch_and_keep_their_weights(monkeypatch):
    traces, original = [], FlowStep.run_forward
    monkeypatch.setattr(FlowStep, "run_forward", lambda *given: traces.append(given[1].shape[0]) or original(*given))
    layer, rng = make_flow(2, 3), np.random.default_rng(0)
    for count in (1, 3, 2, 5, 1):
        x, z = rng.standard_normal((count, 4, 4, 3)), rng.standard_normal((count, 4))
        v = layer.forward_and_log_det(x, z)[0]
    # The first count of images has traces of its own; the second ones are for any count.
    assert traces == [1] * 2 + [None] * 2
    with run_eagerly():
        np.testing.assert_allclose(v, layer.forward_and_log_det(x, z)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
def test_values_that_replace_weights_reach_traced_functions(method):
    layer = make_flow(1, 1)
    run, given = getattr(layer, method), (np.ones((1, 4, 4, 3), "float32"), np.ones((1, 4), "float32"))
    before = run(*given)
    bias = layer.levels[0][0].steps[0].sequence[0].bias
    with keras.StatelessScope(state_mapping=[(bias, bias + 0.5)]):
        replaced = run(*given)
    np.testing.assert_array_equal(run(*given)[0], before[0])
    bias.assign(bias + 0.5)
    expected = run(*given)
    assert np.abs(expected[0] - before[0]).max() > 1e-3
    for ours, theirs in zip(replaced, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


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


def test_recomputed_maps_give_the_same_gradients_to_the_bit():
    gradients = gradients_of_couplings()
    plain, again = (tf.function(gradients, autograph=False)(mode) for mode in ("keep", "recompute"))
    for ours, theirs in zip(again, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_inverting_runs_a_net_once_for_the_inverse_and_the_gradients(monkeypatch):
    # With oneDNN, the only forward convolutions in the backward pass are those that are computed again.
    monkeypatch.setattr(convolution, "is_onednn_on", lambda: True)
    graph = tf.function(gradients_of_couplings(), autograph=False)
    library = graph.get_concrete_function("invert").graph.as_graph_def().library.function
    bodies = [collections.Counter(node.op for node in needed(each)) for each in library]
    # Both couplings run through the same two functions.
    (forward,) = (body for body in bodies if body["Conv2D"] and not body["Conv2DBackpropFilter"])
    (backward,) = (body for body in bodies if body["Conv2DBackpropFilter"])
    assert backward["Conv2D"] == forward["Conv2D"] > 0 and backward["Elu"] == forward["Elu"] > 0


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
