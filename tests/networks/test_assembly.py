import collections
import dataclasses
import json
import math
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import THREE_LEVELS, build_layer
from helpers.models import SMALL, TINY, assert_all_close, give_effect, random_images, visit_layers_with
from helpers.places import DATA
from helpers.variants import ODD, OF_CLASSES, SMALLEST, VARIANTS, equal, fresh, has_weights, images_of, read_weights

from benchmarks.training_cost import count_products, count_stored_bytes
from tfdecouple import randomness
from tfdecouple.config import preset_config
from tfdecouple.errors import NotInitializedError
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.execution.runner import Traced
from tfdecouple.layers import ActNorm, Coupling
from tfdecouple.model import DecoupledModel
from tfdecouple.model.initialization import diagnose_model
from tfdecouple.networks.architecture import Architecture, count_by_network
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import BatchNorm, ResNetBlock
from tfdecouple.numerics.kernels import use_kernels
from tfdecouple.registry import LAYERS

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
        # Keras draws the seeds of a new model from this seed.
        random.seed(0)
        model.initialized.assign(True)
        model.initialize(random_images(16, 4), force=True)
        assert has_weights(model, first)
        model.initialize(random_images(16, 4, seed=9), force=True)
        assert not has_weights(model, first)

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
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert type(again) is DecoupledModel and again.config == config
        assert list(read_weights(again)) == list(read_weights(model)) and has_weights(again, read_weights(model))
        images = images_of(model)
        for ours, theirs in zip(model(images), again(images), strict=True):
            equal(ours, theirs)
        equal(again.decode(*again.encode(images)), model.quantizer.quantize_pixels(images))

    @pytest.mark.parametrize("network", ["flow", "prior_flow"])
    def test_diagnose_finds_the_smallest_scale_and_the_worst_matrix(self, network):
        model = DecoupledModel(dataclasses.replace(SMALLEST, alpha=1.0, prior_alpha=1.0))
        model.initialize(random_images(16, 4))
        step = model.flow.levels[0][0].layers[0] if network == "flow" else model.prior_flow.sequence[0]
        bias = step.sequence[2].net.last_bias
        bias.assign(np.where(np.arange(bias.shape[0]) >= bias.shape[0] // 2, -10.0, 0.0))
        kernel = step.sequence[1].kernel
        kernel.assign(np.diag([50.0] + [1.0] * (kernel.shape[0] - 1)))
        signs = diagnose_model(model, random_images(4, 4))
        assert signs["smallest_scale"] == pytest.approx(2 / (1 + math.exp(10)), rel=1e-4)
        assert signs["worst_condition"] == pytest.approx(50, rel=1e-4)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


class TestNetworks:
    @pytest.mark.parametrize("transposed", [False, True])
    def test_gradient_of_a_1x1_kernel_in_the_encoder_has_no_stride(self, transposed):
        """With strides, oneDNN reads beyond its memory if the count of images is odd."""
        block = build_layer(ResNetBlock(4, 2, transposed), (None, 4, 4, 3))

        @tf.function
        def gradients(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(block(x))
            return tape.gradient(loss, [weight.value for weight in block.trainable_weights])

        graph = gradients.get_concrete_function(tf.TensorSpec([3, 4, 4, 3])).graph
        strides = collections.defaultdict(set)
        for operation in graph.get_operations():
            if operation.type == "Conv2DBackpropFilter":
                strides[tuple(operation.outputs[0].shape[:2])].add(tuple(operation.get_attr("strides")))
        assert strides[1, 1] == {(1, 1, 1, 1)} and len(strides[3, 3]) == 2

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("shards", [[5], [2, 3], [1, 1, 3]])
    def test_batch_normalisation_in_shards_equals_that_of_keras(self, training, shards):
        ours, theirs = BatchNorm(), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        weights = np.random.default_rng(1).uniform(0.5, 1.5, (4, 3))
        for layer in (ours, theirs):
            build_layer(layer, (None, 4, 4, 3)).set_weights(list(weights))
        x, upstream = tf.constant(noise(5, 4, 4, 3) + 2), noise(5, 4, 4, 3)

        def with_gradients(layer, run):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = run()
                loss = tf.reduce_sum(y * upstream)
            return [y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])]

        gradients = with_gradients(ours, lambda: tf.concat(ours.normalize(tf.split(x, shards), training), 0))
        expected = with_gradients(theirs, lambda: theirs(x, training=training))
        assert_all_close(gradients + ours.get_weights(), expected + theirs.get_weights(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("training", [False, True])
    def test_dequantizer_computes_equal_noise_in_shards(self, training):
        layer, mode = Dequantizer(VARIANTS["dequantization"]), RunMode(shards=2)
        layer.build()
        give_effect(layer)
        x, u_noise = noise(2, 3, 4, 4, 3)
        whole = layer(x, u_noise, training=training)
        with use_kernels(mode.kernels):
            parts = layer(x, u_noise, training=training, runner=Traced(mode))
        assert_all_close(parts, whole, rtol=1e-4, atol=1e-5)

    def test_dequantizer_starts_near_the_uniform_distribution(self):
        layer, u_noise = Dequantizer(VARIANTS["dequantization"]), noise(500, 4, 4, 3)
        layer.build()
        layer.flow.initialize_from_noise(randomness.make_seed(0))
        u, log_det = layer(np.zeros((500, 4, 4, 3), "float32"), u_noise)
        log_q = -0.5 * (np.square(u_noise) + np.log(2 * np.pi)).sum((1, 2, 3)) - np.asarray(log_det)
        # By quadrature: 0.00951 nats a number; noise of standard deviation 1 would give 0.193.
        assert 0.0095 - 0.003 < log_q.mean() / 48 < 0.0095 + 0.003
        assert abs(np.mean(u) - 0.5) < 0.01 and abs(np.var(u) - 1 / 12) < 0.005


OF_FOUR_LEVELS = {"steps": (1, (1, 2), (1,), 1), "hidden_channels": (3, 4, 5, 6), "factors": (3, 2)}
# One config for each option of a model, with odd counts of channels, several stages and levels.
CONFIGS = {
    **VARIANTS,
    **OF_CLASSES,
    "odd": ODD,
    "dequantization of three levels": THREE_LEVELS,
    "step layers": dataclasses.replace(SMALL, step_layers=tuple(LAYERS), latent_dim=7),
    "thirds": dataclasses.replace(TINY, image_shape=(16, 16, 3), prior_steps=3, **OF_FOUR_LEVELS),
    "seven channels": dataclasses.replace(TINY, image_shape=(4, 12, 7), conditioning="base"),
}


REFERENCE = json.loads((DATA / "reference_parameter_counts.json").read_text())


class TestPlan:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_planned_weights_of_a_config_are_those_of_the_built_model(self, name):
        config, model = CONFIGS[name], DecoupledModel(CONFIGS[name])
        assert Architecture(config).compute_weight_shapes() == {
            name: tuple(v.shape) for name, v in model.named_variables().items()
        }
        assert Architecture(config).count_parameters() == model.parameter_count()
        assert model.parameter_count()["total"] == sum(math.prod(v.shape) for v in model.trainable_variables)

    @pytest.mark.parametrize("preset", REFERENCE)
    def test_parameter_counts_of_presets_equal_those_of_the_authors_code(self, preset):
        config, expected = preset_config(preset).model, REFERENCE[preset]
        networks = ("flow", "encoder", "prior", "class_codes", "dequantizer", "total")
        assert Architecture(config).count_parameters() == {
            name: expected[name] for name in networks if name in expected
        }
        shapes = Architecture(config).compute_weight_shapes()
        for part, count in expected.get("dequantizer parts", {}).items():
            part_shapes = {name: shape for name, shape in shapes.items() if name.startswith(f"dequantizer/{part}/")}
            assert count_by_network(part_shapes)["total"] == count
        sizes = {name: math.prod(shape) for name, shape in shapes.items() if name.startswith("flow/")}
        for level, count in enumerate(expected["levels"]):
            assert sum(size for name, size in sizes.items() if name.startswith(f"flow/level_{level}_")) == count
        for layer, weight, key in (
            ("actnorm", "/log_scale", "actnorms"),
            ("linear", "/kernel", "linear_maps"),
            ("coupling", "/net/last_gain", "couplings"),
        ):
            layer_sizes = {name: size for name, size in sizes.items() if name.split("/")[2].startswith(layer)}
            assert [sum(name.endswith(weight) for name in layer_sizes), sum(layer_sizes.values())] == expected[key]

    def test_calculated_cost_of_a_coupling_equals_a_count_by_hand(self):
        shapes = (None, 2, 2, 3), (None, 3)

        def count_bytes(alpha, **options):
            return count_stored_bytes(Coupling(8, 3, alpha=alpha), *shapes, **options)

        # At each of 4 positions 9*2*8 + 8*8 + 9*8*2, and 3*8 once.
        assert count_products(Coupling(8, 3), *shapes) == 4 * (144 + 64 + 144) + 24
        # The net's inputs of 2 + 8 + 8 numbers, and three or four numbers for the scaled channel.
        assert count_bytes(1.0) == 4 * 4 * (18 + 3)
        assert count_bytes(0.5, net_bytes=2) == 4 * (2 * 18 + 4 * 4)
        assert count_bytes(1.0, memory="recompute") == 4 * 4 * (2 + 3)
