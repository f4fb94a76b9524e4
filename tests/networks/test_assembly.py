import dataclasses
import math
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import give_effect, random_images, visit_layers_with
from helpers.variants import ODD, SMALLEST, VARIANTS, equal, fresh, has_weights, images_of, quantize, read_weights

from tfdecouple import randomness
from tfdecouple.errors import NotInitializedError
from tfdecouple.layers import ActNorm
from tfdecouple.model import DecoupledModel
from tfdecouple.model.initialization import diagnose_model
from tfdecouple.networks.architecture import make_networks

pytestmark = pytest.mark.usefixtures("eager")

USES = {
    "encode": lambda model, images: model.encode(images),
    "call": lambda model, images: model(images),
    "decode": lambda model, images: model.decode(np.zeros((3, 4)), np.zeros(images.shape)),
    "sample": lambda model, images: model.sample(2),
    "bound": lambda model, images: model.bound(images),
    "posterior": lambda model, images: model.posterior(images).mean(),
    "likelihood": lambda model, images: model.likelihood(np.zeros((3, 4))).log_prob(np.zeros(images.shape, "f4")),
    "switch": lambda model, images: model.switch(images, images),
    "interpolate": lambda model, images: model.interpolate(images, images, [0], [0]),
}


class TestModel:
    @pytest.mark.parametrize("name", ["coupling", "none", "additive"])
    def test_initialize_gives_every_actnorm_outputs_of_mean_0_and_deviation_1(self, name):
        config = VARIANTS[name]
        model, images = DecoupledModel(config), random_images(32, 4)
        give_effect(model)
        model.initialize(images, seed=3)
        norms = []

        def look(leaf, x, z):
            if isinstance(leaf, ActNorm):
                y = np.reshape(leaf.forward_and_log_det(x)[0], [-1, x.shape[-1]])
                np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
                np.testing.assert_allclose(y.std(0, ddof=1), 1, atol=1e-3)
                norms.append(leaf)

        z = None
        if config.has_latent:
            z = tf.random.stateless_normal([32, 4], randomness.derive_seed(3, "initialize"))
            visit_layers_with(model.prior_flow, z, None, look)
        visit_layers_with(model.flow, 2 * images.astype("float32") / 256 - 1, z, look)
        assert len(norms) == sum(name.endswith("/log_scale") for name in model.named_variables())

    def test_initialize_gives_equal_weights_for_equal_images_alone(self):
        model = DecoupledModel(SMALLEST)
        model.initialize(random_images(16, 4))
        first = read_weights(model)
        for variable in model.variables:
            variable.assign(tf.zeros_like(variable))
        # Whose seeds Keras draws for a new model.
        random.seed(0)
        model.initialized.assign(True)
        model.initialize(random_images(16, 4), force=True)
        assert has_weights(model, first)
        model.initialize(random_images(16, 4, seed=9), force=True)
        assert not has_weights(model, first)

    def test_weights_of_a_model_ignore_networks_that_are_never_built(self):
        keras.utils.set_random_seed(0)
        expected = read_weights(DecoupledModel(VARIANTS["dequantization"]))
        keras.utils.set_random_seed(0)
        make_networks(VARIANTS["dequantization"])
        assert has_weights(DecoupledModel(VARIANTS["dequantization"]), expected)

    @pytest.mark.parametrize(("name", "value"), [("coupling", 0), ("coupling", 255), ("colour-map", 99)])
    def test_constant_images_initialise_a_finite_and_exact_model(self, name, value):
        model, images = DecoupledModel(VARIANTS[name]), np.full((4, 4, 4, 3), value, "uint8")
        model.initialize(images)
        assert all(np.all(np.isfinite(array)) for array in read_weights(model).values())
        both = np.concatenate([images, random_images(2, 4)])
        equal(model.decode(*model.encode(both, verify=True)), both)

    def test_use_of_an_uninitialised_model_is_refused_and_changes_nothing(self):
        model = DecoupledModel(SMALLEST)
        before = read_weights(model)
        for use, call in USES.items():
            with pytest.raises(NotInitializedError) as caught:
                call(model, images_of(model))
            # Keras adds lines of its own to the error of a call of the model itself.
            assert "initialize" in str(caught.value) and ("\n" not in str(caught.value) or use == "call"), use
        assert has_weights(model, before) and not before["initialized"]

    @pytest.mark.parametrize("config", [ODD, VARIANTS["none"]])
    def test_keras_file_of_a_model_keeps_config_weights_and_results(self, config, tmp_path):
        model = fresh(config)
        path = tmp_path / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path)
        assert type(again) is DecoupledModel and again.config == config
        assert list(read_weights(again)) == list(read_weights(model)) and has_weights(again, read_weights(model))
        assert bool(again.initialized.value)
        images = images_of(model)
        for ours, theirs in zip(tf.nest.flatten(model(images)), tf.nest.flatten(again(images)), strict=True):
            equal(ours, theirs)
        equal(again.decode(*again.encode(images)), quantize(images, config.n_bits))
        equal(model.sample(2, seed=1), again.sample(2, seed=1))

    def test_keras_file_of_an_uninitialised_model_stays_uninitialised(self, tmp_path):
        model = DecoupledModel(SMALLEST)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert has_weights(again, read_weights(model))
        with pytest.raises(NotInitializedError):
            again.sample(1)

    def test_names_of_weights_depend_on_the_config_alone(self):
        model = DecoupledModel(SMALLEST)
        names = list(model.named_variables())
        assert list(DecoupledModel(SMALLEST, name="other").named_variables()) == names
        assert len(set(names)) == len(names) == len(model.variables)
        assert "flow/level_0_part_0_step_0/actnorm_1/bias" in names and "initialized" in names

    @pytest.mark.parametrize("network", ["flow", "prior_flow"])
    def test_diagnose_finds_the_smallest_scale_and_the_worst_matrix(self, network):
        model = DecoupledModel(dataclasses.replace(SMALLEST, alpha=1.0, prior_alpha=1.0))
        model.initialize(random_images(16, 4))
        step = model.flow.levels[0][0].steps[0] if network == "flow" else model.prior_flow.sequence[0]
        bias = step.sequence[2].net.last.bias
        bias.assign(np.where(np.arange(bias.shape[0]) >= bias.shape[0] // 2, -10.0, 0.0))
        kernel = step.sequence[1].kernel
        kernel.assign(np.diag([50.0] + [1.0] * (kernel.shape[0] - 1)))
        signs = diagnose_model(model, random_images(4, 4))
        assert signs["smallest_scale"] == pytest.approx(2 / (1 + math.exp(10)), rel=1e-4)
        assert signs["worst_condition"] == pytest.approx(50, rel=1e-4)
