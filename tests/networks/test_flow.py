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
from tensorflow_probability import bijectors as tfb

from tfdecouple.errors import UserError
from tfdecouple.layers import Coupling, InvertibleSequence
from tfdecouple.model.gradient import INVERSION_BOUND
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.runtime import convolution, execution, run_mode
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode
from tfdecouple.transforms import TRANSFORMS, Transform


@functools.cache
def tiny_flow():
    """Returns the flow of TINY in float64, an input, a condition and the output."""
    rng, layer = np.random.default_rng(1), Flow(TINY, dtype="float64")
    layer.build()
    give_effect(layer)
    x, z = rng.uniform(-1, 1, (BATCH, *TINY.image_shape)), rng.standard_normal((BATCH, TINY.latent_dim))
    return layer, x, z, layer.forward_and_log_det(x, z)[0]


def make_flow(*steps):
    """Returns a flow of two levels with so many steps, whose layers run through traced functions."""
    flow = Flow(dataclasses.replace(STAGES, steps=steps, hidden_channels=(4, 4)))
    Execution(flow)
    flow.build()
    return give_effect(flow)


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


SMALL = dataclasses.replace(TINY, image_shape=(4, 4, 3), steps=(1, (1, 1), 1), factors=(3,), encoder_channels=(4,))
TWO_LEVELS = {"steps": (1, 1), "hidden_channels": (4, 4)}
# Every kind of conditioning and transform.
KINDS = {
    "coupling": {"alpha": 0.5, "steps": (1, (1,), 1)},
    "base, additive": {"conditioning": "base", "transform": "additive", **TWO_LEVELS},
}


def built(dtype="float64", **options):
    """A flow whose every weight has an effect, an input and z."""
    config = dataclasses.replace(SMALL, **options)
    flow = Flow(config, dtype=dtype)
    flow.build()
    execution.Execution(flow)
    give_effect(flow)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((3, *config.image_shape)), dtype)
    z = tf.constant(rng.standard_normal((3, config.latent_dim)), dtype)
    return flow, x, z


def function_of(flow):
    """A function of mode, x and z: the loss, and its gradients for x, z, the probe and the weights."""
    weights = [variable.value for variable in flow.trainable_variables]

    @tf.function(autograph=False)
    def gradients(mode, x, z):
        probe = tf.zeros([])
        with RunMode(mode, probe=probe).apply():
            with tf.GradientTape() as tape:
                tape.watch([x, z, probe])
                v, log_det = flow.forward_and_log_det(x, z)
                loss = tf.reduce_sum(v**2 * tf.linspace(tf.ones([], v.dtype), 2, 3)) - tf.reduce_sum(tf.sin(log_det))
            return loss, tape.gradient(loss, [x, z, probe, *weights], unconnected_gradients="zero")

    return gradients


class TestFlow:
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
    def test_layer_of_a_flow_reaches_only_entries_of_v_that_have_not_left(self, level, stage, pick, changed, eager):
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
    def test_flow_refuses_shapes_that_it_cannot_squeeze(self, shape, direction, eager):
        layer, _, z, _ = tiny_flow()
        with pytest.raises(UserError, match="it needs"):
            getattr(layer, direction)(np.zeros(shape), z)

    @pytest.mark.parametrize("dropped", [0, 4])
    def test_factor_out_refuses_to_drop_no_or_all_channels(self, dropped):
        with pytest.raises(UserError, match="of 4 channels"):
            FactorOut(dropped, {"hidden": 4}).forward_and_log_det(np.ones((1, 2, 2, 4)))

    def test_steps_of_a_kind_share_one_trace_for_each_kind_of_batch_and_keep_their_weights(self, monkeypatch):
        traces, original = [], FlowStep.run_forward
        monkeypatch.setattr(
            FlowStep, "run_forward", lambda *given: traces.append(given[1].shape[0]) or original(*given)
        )
        layer, rng = make_flow(2, 3), np.random.default_rng(0)
        for count in (1, 3, 2, 5, 1):
            x, z = rng.standard_normal((count, 4, 4, 3)), rng.standard_normal((count, 4))
            v = layer.forward_and_log_det(x, z)[0]
        # The first count of images has traces of its own; the second ones are for any count.
        assert traces == [1] * 2 + [None] * 2
        with run_eagerly():
            np.testing.assert_allclose(v, layer.forward_and_log_det(x, z)[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
    def test_values_that_replace_weights_reach_the_traces_of_a_flow(self, method):
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

    def test_recomputed_maps_give_equal_gradients_to_the_bit(self):
        gradients = gradients_of_couplings()
        plain, again = (tf.function(gradients, autograph=False)(mode) for mode in ("keep", "recompute"))
        for ours, theirs in zip(again, plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_inversion_runs_a_coupling_net_once_for_the_inverse_and_the_gradients(self, monkeypatch):
        # With oneDNN, the only forward convolutions in the backward pass are those that are computed again.
        monkeypatch.setattr(convolution, "is_onednn_on", lambda: True)
        graph = tf.function(gradients_of_couplings(), autograph=False)
        library = graph.get_concrete_function("invert").graph.as_graph_def().library.function
        bodies = [collections.Counter(node.op for node in needed(each)) for each in library]
        # Both couplings run through the same two functions.
        (forward,) = (body for body in bodies if body["Conv2D"] and not body["Conv2DBackpropFilter"])
        (backward,) = (body for body in bodies if body["Conv2DBackpropFilter"])
        assert backward["Conv2D"] == forward["Conv2D"] > 0 and backward["Elu"] == forward["Elu"] > 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients_of_a_flow_by_inversion_equal_those_of_stored_activations(self, kind):
        flow, x, z = built(**KINDS[kind])
        gradients = function_of(flow)
        # Without a mode each layer computes all by itself.
        with run_eagerly():
            right, kept = gradients(None, x, z)
        loss, inverted = gradients("invert", x, z)
        np.testing.assert_allclose(loss, right, rtol=1e-12)
        names = ["x", "z", "probe", *(variable.path for variable in flow.trainable_variables)]
        for name, ours, theirs in zip(names, inverted, kept, strict=True):
            if name == "probe":
                assert float(theirs) == 0 < float(ours) < 1e-12
                continue
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max(), err_msg=name)
            assert np.any(theirs != 0), name

    @pytest.mark.parametrize("alpha", [pytest.param(0.5, marks=pytest.mark.slow), 1.0])
    def test_gradients_by_inversion_in_float32_stay_within_the_bound(self, alpha, eager):
        flow, x, z = built("float32", alpha=alpha, conditioning="none", **TWO_LEVELS)
        gradients = function_of(flow)
        for _ in range(10):
            _, (_, _, _, *found) = gradients("keep", x, z)
            for variable, gradient in zip(flow.trainable_variables, found, strict=True):
                variable.assign_sub(0.03 * np.sign(gradient))
        (_, (_, _, _, *kept)), (_, (_, _, probe, *inverted)) = (gradients(mode, x, z) for mode in ("keep", "invert"))
        assert 0 < float(probe) < INVERSION_BOUND["float32"] / 10
        for variable, ours, theirs in zip(flow.trainable_variables, inverted, kept, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max(), err_msg=variable.path)

    def test_inversion_stores_no_map_between_the_steps_of_a_stage(self):
        depth = 3
        flow, x, z = built("float32", conditioning="none", steps=(1, depth), hidden_channels=(4, 4))
        graph = function_of(flow).get_concrete_function("invert", x, z).graph
        calls = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
        forward, backward = (
            [op for op in calls if (len(op.outputs) == 2) == is_forward] for is_forward in (True, False)
        )
        assert len(forward) == len(backward) == 1 + depth
        maps = [output for op in forward for output in op.outputs if len(output.shape) == 4]
        kept = [each for each in maps if set(each.consumers()) & set(backward)]
        # The outputs of the two stages.
        assert len(maps) == 1 + depth and len(kept) == 2

    def test_error_probe_reports_inexact_inversion(self, eager):
        flow, x, z = built("float32", conditioning="none", **TWO_LEVELS)
        matrix, gradients = flow.levels[0][0].steps[0].sequence[1].kernel, function_of(flow)
        u, values, v = np.linalg.svd(matrix.numpy())
        for smallest, is_lost in ((1.0, False), (1e-2, False), (1e-6, True)):
            matrix.assign(u * [*values[:-1], smallest] @ v)
            loss, (_, _, probe, *_) = gradients("invert", x, z)
            assert np.isfinite(loss) and (float(probe) > INVERSION_BOUND["float32"]) == is_lost

    def test_error_probe_reports_the_worst_image_of_all_shards(self, monkeypatch, eager):
        monkeypatch.setattr(run_mode, "count_shards", lambda: 2)
        # A value of each image and stage that does not depend on rounding.
        monkeypatch.setattr(
            execution, "measure_inversion_error", lambda _, stored: tf.cast(stored[:, 0, 0, 0] ** 2, tf.float32)
        )
        flow, x, z = built(conditioning="none", **TWO_LEVELS)
        gradients = function_of(flow)
        of_each = [float(gradients("invert", x[n : n + 1], z[n : n + 1])[1][2]) for n in range(len(x))]
        assert min(of_each) < 0.9 * max(of_each)
        assert float(gradients("invert", x, z)[1][2]) == pytest.approx(max(of_each), rel=1e-6)

    def test_gradients_of_a_coupling_with_a_bijector_of_tfp_by_inversion_are_right(self, monkeypatch):
        class Skewed(Transform):
            name = "skewed"
            parameters = 2

            def bijector(self, raw, alpha):
                return tfb.SinhArcsinh(tf.tanh(raw[0]), tf.exp(alpha * tf.tanh(raw[1])))

        monkeypatch.setitem(TRANSFORMS, "skewed", Skewed())
        layer = Coupling(hidden=4, transform="skewed", alpha=0.5, dtype="float64")
        # An input, and the gradients with respect to the output and its log-determinant.
        shapes = ((2, 4, 4, 4), (2, 4, 4, 4), (2,))
        x, *of = (tf.constant(np.random.default_rng(n).standard_normal(shape)) for n, shape in enumerate(shapes))
        layer.forward_and_log_det(x)
        give_effect(layer, scale=0.5)
        weights = [variable.value for variable in layer.trainable_variables]

        @tf.function(autograph=False)
        def both():
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = layer.forward_and_log_det(x)
            return [x, *tape.gradient(outputs, [x, *weights], output_gradients=of)], layer.inverse_and_gradients(
                outputs[0], None, *of
            )

        right, (back, of_x, _, of_weights) = both()
        for ours, theirs in zip([back, of_x, *of_weights], right, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)
