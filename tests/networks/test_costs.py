"""What training costs, by calculation: against numbers worked out by hand, the flow itself, and what presets state."""

import dataclasses
import math
import re
import sys

import pytest
from helpers.places import ROOT

from tfdecouple.config import load_preset, preset_names
from tfdecouple.layers import Coupling
from tfdecouple.networks.architecture import FLOAT32, count_multiply_adds

sys.path.insert(0, str(ROOT))

from benchmarks.training_cost import count_activation_bytes, count_stored_bytes  # noqa: E402


def test_cost_of_a_coupling_equals_a_count_by_hand():
    def cost(alpha):
        return Coupling(8, 3, alpha=alpha).cost((None, 2, 2, 3), (None, 3))

    # At each of 4 positions 9*2*8 + 8*8 + 9*8*2, and 3*8 once.
    assert cost(1.0).multiply_adds == 4 * (144 + 64 + 144) + 24
    # The net's inputs of 2 + 8 + 8 numbers, and three or four numbers for the scaled channel.
    assert count_stored_bytes(cost(1.0), net_bytes=4, memory="keep") == 4 * 4 * (18 + 3)
    assert count_stored_bytes(cost(0.5), net_bytes=2, memory="keep") == 4 * (2 * 18 + 4 * 4)
    assert count_stored_bytes(cost(1.0), net_bytes=4, memory="recompute") == 4 * 4 * (2 + 3)


# Images in the split train of the paper's data sets in TFDS.
TRAINING_IMAGES = {"cifar10": 50_000, "downsampled_imagenet/64x64": 1_281_149, "lsun/bedroom": 3_033_042}
TRAINING_IMAGES["celeb_a_hq/256"] = 30_000


@pytest.mark.parametrize("preset", [n for n in preset_names() if "Estimate, not measured" in load_preset(n).notes])
def test_costs_stated_in_presets_are_those_calculated(preset):
    config = load_preset(preset)
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


def count_stored_numbers(layer, x_shape, condition_size, memory):
    """How many numbers of an image TensorFlow stores for a layer's backward pass, without weights and copies."""
    import tensorflow as tf

    from tfdecouple.layers.base import substitute_weights
    from tfdecouple.runtime.run_mode import RunMode

    def run(weights, x, condition):
        with substitute_weights(zip(layer.variables, weights, strict=True)), RunMode(memory).apply():
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


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_calculated_memory_of_a_step_is_what_tensorflow_stores(memory, alpha):
    """At most that is held, and little less: of a transform whole numbers are counted."""
    from tfdecouple.networks.flow import FlowStep

    config = dataclasses.replace(load_preset("quickstart").model, alpha=alpha)
    stage = next(stage for level in config.levels for stage in level if stage.channels % 2 == 0)
    couplings = {"hidden": stage.hidden, "condition_size": config.latent_dim, "alpha": alpha}
    layer = FlowStep({**couplings, "transform": config.transform})
    shape, condition_shape = [2, stage.height, stage.width, stage.channels], (None, config.latent_dim)
    layer.build(shape, condition_shape)
    found = FLOAT32 * count_stored_numbers(layer, shape, config.latent_dim, memory)
    assert 0.9 <= found / count_stored_bytes(layer.cost(shape, condition_shape), FLOAT32, memory) <= 1
