import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY, assert_all_close, give_effect

from tfdecouple.errors import UserError
from tfdecouple.execution import run_mode, runner
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.execution.runner import run_functions_eagerly
from tfdecouple.model.training_step import INVERSION_BOUND
from tfdecouple.networks.flow import Flow, FlowStep

TWO_LEVELS = {"image_shape": (4, 4, 3), "steps": (1, 1), "hidden_channels": (4, 4)}
WITHOUT_Z = {**TWO_LEVELS, "conditioning": "none"}
# Every kind of conditioning and transform.
KINDS = {
    "coupling": {"image_shape": (4, 4, 3), "alpha": 0.5, "steps": (1, (1,), 1), "factors": (3,)},
    "base, additive": {"conditioning": "base", "transform": "additive", **TWO_LEVELS},
}


def make_flow(dtype="float64", **options):
    """Returns a flow whose layers run through traces and whose every weight has an effect, three inputs, and z."""
    config, rng = dataclasses.replace(TINY, **options), np.random.default_rng(0)
    flow = Flow(config, dtype=dtype)
    flow.build()
    flow.runner = runner.Traced()
    shapes = (3, *config.image_shape), (3, config.latent_dim)
    return give_effect(flow), *(tf.constant(rng.standard_normal(shape), dtype) for shape in shapes)


def list_users(tensor):
    """Returns the set of operations that read a tensor or a copy of it."""
    users = set(tensor.consumers())
    return users.union(*(list_users(op.outputs[0]) for op in users if op.type == "Identity"))


def make_gradients(flow):
    """Returns a function of mode, x and z: the loss; gradients for x and z, the inversion error, those for weights."""
    weights = [variable.value for variable in flow.trainable_variables]

    @tf.function(autograph=False)
    def gradients(mode, x, z):
        probe = tf.zeros([x.shape[0]])
        # Without a mode, TensorFlow's operations compute the layers.
        runner = mode and functools.partial(flow.runner, mode=RunMode(mode), probe=probe)
        with tf.GradientTape() as tape:
            tape.watch([x, z, probe])
            v, log_det = flow.forward_and_log_det(x, z, runner)
            loss = tf.reduce_sum(v**2 * tf.linspace(tf.ones([], v.dtype), 2, 3)) - tf.reduce_sum(tf.sin(log_det))
        x_slope, z_slope, errors, *slopes = tape.gradient(loss, [x, z, probe, *weights], unconnected_gradients="zero")
        return loss, [x_slope, z_slope, tf.reduce_max(errors), *slopes]

    return gradients


@pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
def test_flow_refuses_shapes_that_it_cannot_squeeze(direction, eager):
    flow, _, z = make_flow()
    for shape in [(3, 8, 8, 1), (3, 6, 8, 3), (8, 8, 3), (3, 192)]:
        with pytest.raises(UserError, match="it needs"):
            getattr(flow, direction)(np.zeros(shape), z)


class TestTraces:
    def test_steps_of_a_kind_share_one_trace_for_each_kind_of_batch_and_keep_their_weights(self, monkeypatch):
        traces, run = [], FlowStep.run_forward
        monkeypatch.setattr(FlowStep, "run_forward", lambda *given: traces.append(given[2].shape[0]) or run(*given))
        flow, x, z = make_flow("float32", **{**TWO_LEVELS, "steps": (1, 2)})
        for count in (1, 3, 2, 1):
            v = flow.forward_and_log_det(x[:count], z[:count])[0]
        # The first count of images has traces of its own; the second ones are for any count.
        assert traces == [1] * 2 + [None] * 2
        with run_functions_eagerly():
            np.testing.assert_allclose(v, flow.forward_and_log_det(x[:1], z[:1])[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
    def test_values_that_replace_weights_reach_the_traces_of_a_flow(self, method):
        flow, x, z = make_flow(**TWO_LEVELS)
        run, bias = getattr(flow, method), flow.levels[0][0].layers[0].sequence[0].bias
        before = run(x, z)
        with keras.StatelessScope(state_mapping=[(bias, bias + 0.5)]):
            replaced = run(x, z)
        np.testing.assert_array_equal(run(x, z)[0], before[0])
        bias.assign(bias + 0.5)
        expected = run(x, z)
        assert np.abs(expected[0] - before[0]).max() > 1e-3
        assert_all_close(replaced, expected)


class TestGradients:
    def test_recomputed_maps_give_equal_gradients_to_the_bit(self):
        flow, x, z = make_flow("float32", **TWO_LEVELS)
        gradients = make_gradients(flow)
        assert_all_close(gradients("keep", x, z), gradients("recompute", x, z), rtol=0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients_of_a_flow_by_inversion_equal_those_of_stored_activations(self, kind, eager):
        flow, x, z = make_flow(**KINDS[kind])
        gradients = make_gradients(flow)
        (right, kept), (loss, inverted) = gradients(None, x, z), gradients("invert", x, z)
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
        flow, x, z = make_flow("float32", alpha=alpha, **WITHOUT_Z)
        gradients = make_gradients(flow)
        for _ in range(10):
            _, (_, _, _, *slopes) = gradients("keep", x, z)
            for variable, gradient in zip(flow.trainable_variables, slopes, strict=True):
                variable.assign_sub(0.03 * np.sign(gradient))
        (_, (_, _, _, *kept)), (_, (_, _, probe, *inverted)) = (gradients(mode, x, z) for mode in ("keep", "invert"))
        assert 0 < float(probe) < INVERSION_BOUND["float32"] / 10
        for variable, ours, theirs in zip(flow.trainable_variables, inverted, kept, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max(), err_msg=variable.path)

    def test_inversion_stores_no_map_between_the_steps_of_a_stage(self):
        depth = 3
        flow, x, z = make_flow("float32", **{**WITHOUT_Z, "steps": (1, depth)})
        graph = make_gradients(flow).get_concrete_function("invert", x, z).graph
        calls = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
        forward, backward = ([op for op in calls if (len(op.outputs) == 2) == first] for first in (True, False))
        assert len(forward) == len(backward) == 1 + depth
        maps = [output for op in forward for output in op.outputs if len(output.shape) == 4]
        kept = [output for output in maps if list_users(output) & set(backward)]
        # The outputs of the two stages.
        assert len(maps) == 1 + depth and len(kept) == 2

    def test_error_probe_reports_the_worst_image_of_all_shards(self, monkeypatch, eager):
        monkeypatch.setattr(run_mode, "count_shards", lambda: 2)
        # A value of each image and stage that does not depend on rounding.
        monkeypatch.setattr(
            runner, "measure_inversion_error", lambda _, stored: tf.cast(stored[:, 0, 0, 0] ** 2, tf.float32)
        )
        flow, x, z = make_flow(**WITHOUT_Z)
        gradients = make_gradients(flow)
        of_each = [float(gradients("invert", x[n : n + 1], z[n : n + 1])[1][2]) for n in range(len(x))]
        assert min(of_each) < 0.9 * max(of_each)
        assert float(gradients("invert", x, z)[1][2]) == pytest.approx(max(of_each), rel=1e-6)
