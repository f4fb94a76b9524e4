"""The plan of a model: its weights against the built model and the authors' code, and its calculated costs."""

import dataclasses
import json
import math
import re

import keras
import pytest
import tensorflow as tf
from helpers.layers import THREE_LEVELS
from helpers.models import SMALL, TINY
from helpers.places import DATA
from helpers.variants import ODD, OF_CLASSES, VARIANTS
from keras.src.backend.common import global_state

from benchmarks.training_cost import count_activation_bytes, count_stored_bytes
from tfdecouple.config import STEP_LAYERS, preset_config, preset_names
from tfdecouple.layers import Coupling
from tfdecouple.model import DecoupledModel
from tfdecouple.networks.architecture import (
    FLOAT32,
    compute_weight_shapes,
    count_by_network,
    count_multiply_adds,
    count_parameters,
)
from tfdecouple.networks.flow import FlowStep
from tfdecouple.numerics.kernels import use_kernels
from tfdecouple.runtime.execution import substitute_weights
from tfdecouple.runtime.run_mode import RunMode
from tfdecouple.transforms import TRANSFORMS

OF_FOUR_LEVELS = {"steps": (2, (1, 2), (3,), 1), "hidden_channels": (3, 4, 5, 6), "factors": (3, 2)}
# One config for each option of a model, with odd counts of channels, several stages and levels.
CONFIGS = {
    **VARIANTS,
    **OF_CLASSES,
    "odd": ODD,
    "dequantization of three levels": THREE_LEVELS,
    "step layers": dataclasses.replace(SMALL, step_layers=tuple(STEP_LAYERS), latent_dim=7),
    "thirds": dataclasses.replace(TINY, image_shape=(16, 16, 3), prior_steps=3, **OF_FOUR_LEVELS),
    "seven channels": dataclasses.replace(TINY, image_shape=(4, 12, 7), conditioning="base"),
}


def check_weights(config):
    """Asserts that the planned names and shapes are those of the model that is built."""
    model = DecoupledModel(config)
    assert compute_weight_shapes(config) == {name: tuple(v.shape) for name, v in model.named_variables().items()}
    assert count_parameters(config) == model.parameter_count()
    assert model.parameter_count()["total"] == sum(math.prod(v.shape) for v in model.trainable_variables)


@pytest.fixture
def without_values():
    """Weights are made without their values, which take seconds and hundreds of megabytes of a large preset."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    # The next scope that ends would compute them.
    global_state.set_global_attribute("uninitialized_variables", [])


# The configs above have all options; these presets are built fast.
QUICK = ("quickstart", "cifar10_classes", "cifar10_glow_var")
PRESETS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in preset_names()]
# Presets whose notes state calculated costs.
ESTIMATED = [name for name in preset_names() if "Estimate, not measured" in preset_config(name).notes]

REFERENCE = json.loads((DATA / "reference_parameter_counts.json").read_text())

# Images in the split train of the paper's data sets in TFDS.
TRAINING_IMAGES = {"cifar10": 50_000, "downsampled_imagenet/64x64": 1_281_149, "lsun/bedroom": 3_033_042}
TRAINING_IMAGES["celeb_a_hq/256"] = 30_000


def count_stored_numbers(layer, x_shape, condition_size, memory):
    """Returns how many numbers of an image TensorFlow stores for a layer's backward pass, but weights and copies."""

    def run(weights, x, condition):
        with substitute_weights(zip(layer.variables, weights, strict=True)), use_kernels(RunMode(memory).kernels):
            return layer.forward_and_log_det(x, condition)

    given = [tf.TensorSpec(weight.shape) for weight in layer.variables], tf.TensorSpec(x_shape)
    program = tf.function(run, autograph=False)
    traced = program.get_concrete_function(*given, tf.TensorSpec([x_shape[0], condition_size]))
    forward, _ = traced._delayed_rewrite_functions.forward_backward()

    def made_by(tensor):
        while tensor.op.type in ("Identity", "IdentityN", "Reshape"):
            tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
        return tensor

    stored = {made.ref(): made for made in map(made_by, forward.graph.outputs[2:])}.values()
    # Weights are arguments; a map may be stored as a vector of all its numbers.
    sizes = [made.shape.num_elements() for made in stored if made.op.type != "Placeholder" or made.shape == x_shape]
    return sum(size for size in sizes if size % math.prod(x_shape[:3]) == 0) // x_shape[0]


class TestPlan:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_planned_weights_of_a_config_are_those_of_the_built_model(self, name):
        check_weights(CONFIGS[name])

    @pytest.mark.parametrize("name", PRESETS)
    def test_planned_weights_of_a_preset_are_those_of_the_built_model(self, name, without_values):
        check_weights(preset_config(name).model)

    @pytest.mark.parametrize("preset", REFERENCE)
    def test_parameter_counts_of_presets_equal_those_of_the_authors_code(self, preset):
        config, expected = preset_config(preset).model, REFERENCE[preset]
        networks = ("flow", "encoder", "prior", "class_codes", "dequantizer", "total")
        assert count_parameters(config) == {name: expected[name] for name in networks if name in expected}
        shapes = compute_weight_shapes(config)
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

    def test_cost_of_a_coupling_equals_a_count_by_hand(self):
        def cost(alpha):
            return Coupling(8, 3, alpha=alpha).cost((None, 2, 2, 3), (None, 3))

        # At each of 4 positions 9*2*8 + 8*8 + 9*8*2, and 3*8 once.
        assert cost(1.0).multiply_adds == 4 * (144 + 64 + 144) + 24
        # The net's inputs of 2 + 8 + 8 numbers, and three or four numbers for the scaled channel.
        assert count_stored_bytes(cost(1.0), net_bytes=4, memory="keep") == 4 * 4 * (18 + 3)
        assert count_stored_bytes(cost(0.5), net_bytes=2, memory="keep") == 4 * (2 * 18 + 4 * 4)
        assert count_stored_bytes(cost(1.0), net_bytes=4, memory="recompute") == 4 * 4 * (2 + 3)
        # A transform without a count of its own counts x, and each parameter twice.
        assert TRANSFORMS["affine"]._replace(activations=None).count_activations(0.5) == 5

    @pytest.mark.parametrize("preset", ESTIMATED)
    def test_costs_stated_in_presets_are_those_calculated(self, preset):
        config = preset_config(preset)
        training = config.training

        def stated(pattern):
            return float(re.search(pattern, config.notes)[1].replace(",", ""))

        multiply_adds = count_multiply_adds(config.model)
        assert stated(r"([\d.]+) G per training image") == pytest.approx(3 * multiply_adds / 1e9, rel=3e-3)
        assert stated(r"updates of ([\d,]+) images") == training.batch_size
        operations = 2 * 3 * multiply_adds * training.steps * training.batch_size
        assert stated(r"images is ([\d.]+e\d+) floating-point") == pytest.approx(operations, rel=0.02)
        assert stated(r"about (\d+) days of one A100 in float32") == pytest.approx(operations / 5.85e12 / 86400, abs=1)
        assert stated(r"or (\d+) with TF32") == pytest.approx(operations / 46.8e12 / 86400, abs=1)
        train = TRAINING_IMAGES[config.data.source] - config.data.validation_examples
        if config.data.source == "celeb_a_hq/256":
            # The data set has only one split, which also gives the test images.
            train -= config.data.validation_examples
        epochs = training.steps / (train // training.batch_size)
        assert stated(r"([\d,]+) epochs of") == pytest.approx(epochs, rel=0.01)
        gigabytes = count_activation_bytes(config.model, memory=training.memory) / 1e9
        assert stated(r"need about ([\d.]+) GB per image") == pytest.approx(gigabytes, rel=0.1)
        assert stated(r"training.micro_batches=(\d+) means") == training.micro_batches
        on_each = training.batch_size // training.micro_batches // 8
        assert stated(r"means about ([\d.]+) GB on each of 8 GPUs") == pytest.approx(on_each * gigabytes, rel=0.1)

    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    @pytest.mark.parametrize("memory", ["keep", "recompute"])
    def test_calculated_memory_of_a_flow_step_is_what_tensorflow_stores(self, memory, alpha):
        """The calculation rounds the numbers of a transform up."""
        config = dataclasses.replace(preset_config("quickstart").model, alpha=alpha)
        stage = next(stage for level in config.levels for stage in level if stage.channels % 2 == 0)
        couplings = {"hidden": stage.hidden, "condition_size": config.latent_dim, "alpha": alpha}
        layer = FlowStep({**couplings, "transform": config.transform})
        shape, condition_shape = [2, stage.height, stage.width, stage.channels], (None, config.latent_dim)
        layer.build(shape, condition_shape)
        calculated = FLOAT32 * count_stored_numbers(layer, shape, config.latent_dim, memory)
        assert 0.9 <= calculated / count_stored_bytes(layer.cost(shape, condition_shape), FLOAT32, memory) <= 1
