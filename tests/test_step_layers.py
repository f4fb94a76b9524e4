"""The recipe of docs/design.md for a layer of each step, followed by registration: trained, inverted and exported."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import jacobian_log_det, random_images
from helpers.recipes import recipe
from helpers.runs import write_run
from helpers.variants import SMALLEST

from export.pipeline import Request, export
from tfdecouple import step_layers
from tfdecouple.architecture import plan
from tfdecouple.layers import RegisteredLayer
from tfdecouple.model import DecoupledModel
from tfdecouple.parameters import count_parameters
from tfdecouple.runs import load_model

# A function of this file runs a few times.
pytestmark = pytest.mark.usefixtures("eager_file")
IMAGES = random_images(16, 4)


@pytest.fixture(scope="module")
def name():
    """The name of the layer of the recipe, which follows `step_layers.py` as a part of it would."""
    before = dict(step_layers.STEP_LAYERS)
    written = dict(vars(step_layers))
    layer, _, line = recipe("layer").partition("# in `STEP_LAYERS`\n")
    exec(compile(layer, "recipe", "exec", dont_inherit=True, flags=annotations.compiler_flag), written)
    (new,) = eval(line, written)
    assert new.name not in before
    step_layers.STEP_LAYERS[new.name] = new
    yield new.name
    del step_layers.STEP_LAYERS[new.name]


@pytest.fixture(scope="module")
def trained(name, eager_file):
    """A model that has it behind one that comes along, after some updates, and their losses."""
    model = DecoupledModel(dataclasses.replace(SMALLEST, alpha=0.5, step_layers=("sinh_arcsinh", name)))
    model.initialize(IMAGES, seed=0)
    z_noise = tf.random.stateless_normal([16, 4], [0, 1])
    u_noise = tf.random.stateless_uniform([16, 4, 4, 3], [0, 2])
    weights = [variable.value for variable in model.trainable_variables]

    def step():
        with tf.GradientTape() as tape:
            terms = model.elbo_from_noise(IMAGES, z_noise, u_noise, training=True)[:3]
            loss = tf.add_n([tf.reduce_mean(term) for term in terms])
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights, unconnected_gradients="zero"), 1.0)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(0.05 * gradient)
        return loss

    return model, [float(step()) for _ in range(6)]


def test_it_is_planned_counted_and_trained(name, trained):
    model, losses = trained
    assert plan(model.config).weights()[f"flow/level_0_part_0_step_0/{name}/axis"] == (3,)
    assert model.parameter_count() == count_parameters(model.config)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    own = [value.numpy() for path, value in model.named_variables().items() if f"/{name}/" in path]
    # That of the last step turns what is standard normal, which no direction suits better than another.
    assert len(own) == 2 and np.all(own[0] != 0)


def test_images_come_back_through_it(trained):
    model, _ = trained
    np.testing.assert_array_equal(model.decode(*model.encode(IMAGES)), IMAGES)


def test_it_is_invertible_with_the_log_determinant_of_its_jacobian(name):
    layer = RegisteredLayer(name, dtype="float64")
    layer.build((None, 2, 2, 4))
    rng = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign_add(rng.standard_normal(variable.shape))
    x = tf.constant(rng.standard_normal((2, 2, 2, 4)))
    y, log_det = layer.forward_and_log_det(x)
    assert np.abs(y - x).max() > 0.1
    np.testing.assert_allclose(log_det, jacobian_log_det(layer.forward_and_log_det, x), atol=1e-9)
    np.testing.assert_allclose(layer.inverse_and_log_det(y)[0], x, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_run_with_it_loads_and_passes_the_gate(trained, tmp_path, forked):
    model, _ = trained
    run = write_run(tmp_path / "run", model)
    np.testing.assert_array_equal(load_model(run).encode(IMAGES).v, model.encode(IMAGES).v)
    # Both ways through the flow, and the log-determinant; what the others add knows no layer of a step.
    request = Request(run=run, to=tmp_path / "to", endpoints=("encode", "decode", "score"))
    export(request, say=str)
    assert (tmp_path / "to" / "onnx" / "decoder.onnx").is_file()
