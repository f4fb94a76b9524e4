"""The plan of a model: its weights against the built model and the authors' code, and its calculated costs."""

import dataclasses
import json
import math

import pytest
from helpers.layers import THREE_LEVELS
from helpers.models import SMALL, TINY
from helpers.places import DATA
from helpers.variants import ODD, OF_CLASSES, VARIANTS

from benchmarks.training_cost import count_stored_bytes
from tfdecouple.config import preset_config
from tfdecouple.layers import Coupling
from tfdecouple.model import DecoupledModel
from tfdecouple.networks.architecture import Architecture, count_by_network
from tfdecouple.registry import LAYERS, TRANSFORMS

OF_FOUR_LEVELS = {"steps": (2, (1, 2), (3,), 1), "hidden_channels": (3, 4, 5, 6), "factors": (3, 2)}
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


def check_weights(config):
    """Asserts that the planned names and shapes are those of the model that is built."""
    model = DecoupledModel(config)
    assert Architecture(config).compute_weight_shapes() == {
        name: tuple(v.shape) for name, v in model.named_variables().items()
    }
    assert Architecture(config).count_parameters() == model.parameter_count()
    assert model.parameter_count()["total"] == sum(math.prod(v.shape) for v in model.trainable_variables)


REFERENCE = json.loads((DATA / "reference_parameter_counts.json").read_text())


class TestPlan:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_planned_weights_of_a_config_are_those_of_the_built_model(self, name):
        check_weights(CONFIGS[name])

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
