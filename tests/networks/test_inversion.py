"""Tests of the backward pass by inversion: gradients equal to those of stored activations, and the error probe."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY, give_effect
from helpers.traces import run_eagerly
from tensorflow_probability import bijectors as tfb

from tfdecouple.layers import Coupling
from tfdecouple.model.gradient import INVERSION_BOUND
from tfdecouple.networks.flow import Flow
from tfdecouple.runtime import execution, run_mode
from tfdecouple.runtime.run_mode import RunMode
from tfdecouple.transforms import TRANSFORMS, Transform

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


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_flow_by_inversion_equal_those_of_stored_activations(kind):
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
def test_gradients_by_inversion_in_float32_stay_within_the_bound(alpha, eager):
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


def test_inversion_stores_no_map_between_the_steps_of_a_stage():
    depth = 3
    flow, x, z = built("float32", conditioning="none", steps=(1, depth), hidden_channels=(4, 4))
    graph = function_of(flow).get_concrete_function("invert", x, z).graph
    calls = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
    forward, backward = ([op for op in calls if (len(op.outputs) == 2) == is_forward] for is_forward in (True, False))
    assert len(forward) == len(backward) == 1 + depth
    maps = [output for op in forward for output in op.outputs if len(output.shape) == 4]
    kept = [each for each in maps if set(each.consumers()) & set(backward)]
    # The outputs of the two stages.
    assert len(maps) == 1 + depth and len(kept) == 2


def test_error_probe_reports_inexact_inversion(eager):
    flow, x, z = built("float32", conditioning="none", **TWO_LEVELS)
    matrix, gradients = flow.levels[0][0].steps[0].sequence[1].kernel, function_of(flow)
    u, values, v = np.linalg.svd(matrix.numpy())
    for smallest, is_lost in ((1.0, False), (1e-2, False), (1e-6, True)):
        matrix.assign(u * [*values[:-1], smallest] @ v)
        loss, (_, _, probe, *_) = gradients("invert", x, z)
        assert np.isfinite(loss) and (float(probe) > INVERSION_BOUND["float32"]) == is_lost


def test_error_probe_reports_the_worst_image_of_all_shards(monkeypatch, eager):
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


def test_gradients_of_a_coupling_with_a_bijector_of_tfp_by_inversion_are_right(monkeypatch):
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
