"""Tests of the plan of a model: its weights are those of the built model and of the authors' code."""

import dataclasses
import json
import math

import keras
import pytest
from helpers.layers import THREE_LEVELS
from helpers.models import SMALL, TINY
from helpers.places import DATA
from helpers.variants import ODD, OF_CLASSES, VARIANTS
from keras.src.backend.common import global_state

from tfdecouple.config import STEP_LAYERS, load_preset, preset_names
from tfdecouple.model import DecoupledModel
from tfdecouple.networks.architecture import compute_weight_shapes, count_by_network, count_parameters

# One config for each option of a model, with odd counts of channels, several stages and levels.
CONFIGS = {
    **VARIANTS,
    **OF_CLASSES,
    "odd": ODD,
    "dequantization of three levels": THREE_LEVELS,
    "step layers": dataclasses.replace(SMALL, step_layers=tuple(STEP_LAYERS), latent_dim=7),
    "thirds": dataclasses.replace(
        TINY,
        image_shape=(16, 16, 3),
        steps=(2, (1, 2), (3,), 1),
        hidden_channels=(3, 4, 5, 6),
        factors=(3, 2),
        prior_steps=3,
    ),
    "seven channels": dataclasses.replace(TINY, image_shape=(4, 12, 7), conditioning="base"),
}


def check_weights(config):
    """Asserts that the planned names and shapes are those of the model that is built."""
    model = DecoupledModel(config)
    assert compute_weight_shapes(config) == {name: tuple(v.shape) for name, v in model.named_variables().items()}
    assert count_parameters(config) == model.parameter_count()
    assert model.parameter_count()["total"] == sum(math.prod(v.shape) for v in model.trainable_variables)


@pytest.mark.parametrize("name", CONFIGS)
def test_planned_weights_of_a_config_are_those_of_the_built_model(name):
    check_weights(CONFIGS[name])


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


@pytest.mark.parametrize("name", PRESETS)
def test_planned_weights_of_a_preset_are_those_of_the_built_model(name, without_values):
    check_weights(load_preset(name).model)


REFERENCE = json.loads((DATA / "reference_parameter_counts.json").read_text())


@pytest.mark.parametrize("preset", REFERENCE)
def test_parameter_counts_of_presets_equal_those_of_the_authors_code(preset):
    config, expected = load_preset(preset).model, REFERENCE[preset]
    networks = ("flow", "encoder", "prior", "class_codes", "dequantizer", "total")
    assert count_parameters(config) == {name: expected[name] for name in networks if name in expected}
    shapes = compute_weight_shapes(config)
    for part, count in expected.get("dequantizer parts", {}).items():
        own = {name: shape for name, shape in shapes.items() if name.startswith(f"dequantizer/{part}/")}
        assert count_by_network(own)["total"] == count
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if name.startswith("flow/")}
    for level, count in enumerate(expected["levels"]):
        assert sum(size for name, size in sizes.items() if name.startswith(f"flow/level_{level}_")) == count
    for layer, one, key in (
        ("actnorm", "/log_scale", "actnorms"),
        ("linear", "/kernel", "linear_maps"),
        ("coupling", "/net/last_gain", "couplings"),
    ):
        mine = {name: size for name, size in sizes.items() if name.split("/")[2].startswith(layer)}
        assert [sum(name.endswith(one) for name in mine), sum(mine.values())] == expected[key]
