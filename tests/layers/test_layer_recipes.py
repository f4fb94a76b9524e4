"""The recipes of docs/extending.md for a layer of each step, a conditioner and a prior: trained, inverted, exported."""

import contextlib
import dataclasses
import pkgutil
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import assert_invertible
from helpers.models import random_images
from helpers.recipes import read_recipe
from helpers.runs import write_run
from helpers.variants import SMALLEST
from tensorflow_probability import distributions as tfd

from export.exported_model import ExportedModel
from export.pipeline import ExportConfig, export
from tfdecouple.config import CONDITIONERS, PRIORS, STEP_LAYERS
from tfdecouple.layers import Coupling
from tfdecouple.model import DecoupledModel
from tfdecouple.model.objective import map_noise_to_z
from tfdecouple.networks.architecture import compute_weight_shapes, count_multiply_adds, count_parameters
from tfdecouple.runs.opened_run import load_model

# A function of this file runs a few times.
pytestmark = pytest.mark.usefixtures("eager_file")
IMAGES = random_images(16, 4)


@contextlib.contextmanager
def registered(recipe_name, registry, registry_name):
    """Makes the module of a recipe, and its line of a registry; yields the new name."""
    code, _, line = read_recipe(recipe_name).partition(f"# in `{registry_name}`\n")
    ((name, place),) = eval("{" + line + "}").items()
    module = types.ModuleType(place.partition(":")[0])
    exec(compile(code, "recipe", "exec", dont_inherit=True), vars(module))
    assert name not in registry
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(registry, name, place)
        yield name


@pytest.fixture(scope="module")
def name():
    with registered("layer", STEP_LAYERS, "STEP_LAYERS") as name:
        yield name


@pytest.fixture(scope="module")
def conditioner():
    with registered("conditioner", CONDITIONERS, "CONDITIONERS") as name:
        yield name


@pytest.fixture(scope="module")
def trained(name, conditioner, eager_file):
    """A model that has both, the layer behind one that comes along, after some updates, and their losses."""
    steps = {"step_layers": ("sinh_arcsinh", name), "conditioner": conditioner}
    model = DecoupledModel(dataclasses.replace(SMALLEST, alpha=0.5, **steps))
    model.initialize(IMAGES, seed=0)
    z_noise = tf.random.stateless_normal([16, 4], [0, 1])
    u_noise = tf.random.stateless_uniform([16, 4, 4, 3], [0, 2])
    weights = [variable.value for variable in model.trainable_variables]

    def step():
        with tf.GradientTape() as tape:
            terms = model.bound(IMAGES, noise=(z_noise, u_noise), training=True)[:3]
            loss = tf.add_n([tf.reduce_mean(term) for term in terms])
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights, unconnected_gradients="zero"), 1.0)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(0.05 * gradient)
        return loss

    return model, [float(step()) for _ in range(6)]


class TestRecipe:
    def test_prior_of_the_recipe_is_a_learned_gaussian_that_is_planned_sampled_trained_and_folded(self):
        with registered("prior", PRIORS, "PRIORS") as prior:
            model = DecoupledModel(dataclasses.replace(SMALLEST, prior=prior))
            model.initialize(IMAGES, seed=0)
            assert model.parameter_count() == count_parameters(model.config)
            shift, log_scale = (model.named_variables()[f"prior_flow/{name}"] for name in ("shift", "log_scale"))
            before = model.bound(IMAGES, seed=0).bits_per_dim
            shift.assign([0.5, 0, 0, 0]), log_scale.assign([0, 0, 0, 1])
            z = model.encode(IMAGES).z
            right = tf.reduce_sum(tfd.Normal(-shift, tf.exp(-log_scale)).log_prob(z), -1)
            np.testing.assert_allclose(model.prior().log_prob(z), right, rtol=1e-4)
            np.testing.assert_allclose(map_noise_to_z(model, tf.zeros([1, 4]))[0], -shift, atol=1e-6)
            assert np.abs(model.bound(IMAGES, seed=0).bits_per_dim - before).max() > 1e-3
            np.testing.assert_array_equal(model.decode(*model.encode(IMAGES)), IMAGES)
            model.compile("adam")
            model.train_on_batch(IMAGES)
            assert shift.numpy()[1] != 0
            exported = ExportedModel(model)
            assert {"prior_flow/shift", "prior_flow/log_scale"} <= {*exported.weights}
            assert [*exported.find_faults()] == []

    def test_layer_and_conditioner_of_recipes_are_counted_trained_and_exact(self, name, trained):
        model, losses = trained
        shapes = compute_weight_shapes(model.config)
        assert shapes == {path: tuple(value.shape) for path, value in model.named_variables().items()}
        assert shapes[f"flow/level_0_part_0_step_0/{name}/axis"] == (3,)
        assert model.parameter_count() == count_parameters(model.config)
        assert np.isfinite(losses).all() and losses[-1] < losses[0]
        values = [value.numpy() for path, value in model.named_variables().items() if f"/{name}/" in path]
        # That of the last step turns what is standard normal, which no direction suits better than another.
        assert len(values) == 2 and np.all(values[0] != 0)
        np.testing.assert_array_equal(model.decode(*model.encode(IMAGES)), IMAGES)

    def test_conditioner_of_the_recipe_is_in_every_coupling_and_its_cost_is_counted(self, conditioner, trained):
        model, _ = trained
        kind = pkgutil.resolve_name(CONDITIONERS[conditioner])
        nets = [layer.net for layer in model.flow._flatten_layers() if isinstance(layer, Coupling)]
        assert nets and all(type(net) is kind for net in nets)
        first = nets[0]
        # 5x5 and 3x3 convolutions at each of 16 places, and z once.
        adds = 16 * (25 * 2 * first.hidden + 9 * first.hidden * first.outputs) + 4 * first.hidden
        assert first.cost((None, 4, 4, 2), (None, 4)).multiply_adds == adds
        usual = dataclasses.replace(model.config, conditioner="convolutional")
        assert count_multiply_adds(model.config) != count_multiply_adds(usual)

    def test_layer_of_the_recipe_inverts_with_the_log_det_of_its_jacobian(self, name):
        layer = pkgutil.resolve_name(STEP_LAYERS[name])(dtype="float64")
        layer.build((None, 2, 2, 4))
        rng = np.random.default_rng(0)
        for variable in layer.trainable_variables:
            variable.assign_add(rng.standard_normal(variable.shape))
        x = tf.constant(rng.standard_normal((2, 2, 2, 4)))
        assert np.abs(assert_invertible(layer, x)[0] - x).max() > 0.1

    @pytest.mark.slow
    @pytest.mark.usefixtures("traced")
    def test_run_with_layers_of_recipes_loads_and_its_export_passes_verification(self, trained, tmp_path, forked):
        model, _ = trained
        run = write_run(tmp_path / "run", model)
        np.testing.assert_array_equal(load_model(run).encode(IMAGES).v, model.encode(IMAGES).v)
        # Both ways through the flow, and the log-determinant; what the others add knows no layer of a step.
        request = ExportConfig(run=run, to=tmp_path / "to", endpoints=("encode", "decode", "score"))
        export(request, report=str)
        assert (tmp_path / "to" / "onnx" / "decoder.onnx").is_file()
