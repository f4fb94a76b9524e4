"""Small models, one for each config option that changes an export, as Keras models and folded networks."""

import dataclasses
import functools
import random

import numpy as np
import tensorflow as tf

from export.endpoints import IMAGE, list_endpoints
from export.exported_model import ExportedModel
from export.verification.vectors import draw_values
from helpers import variants
from helpers.models import TINY, give_effect, random_images
from helpers.variants import ODD, OF_CLASSES, STAGES, fresh
from tfdecouple.registry import LAYERS

# Largest allowed difference between an output of an export and of the Keras model, divided by the output's largest
# value. The measured differences are about 5e-7.
TOLERANCE = 1e-5

WITH_STEP_LAYERS = {"steps": (1, (1, 1, 1), 2), "step_layers": tuple(LAYERS), "multiscale_transform": "additive"}
# {name: config of a tested model}. Feature maps of TINY have odd channel counts (3, 9) and even ones (12, 24).
VARIANTS = {
    "none": dataclasses.replace(STAGES, conditioning="none"),
    "colour map": variants.VARIANTS["colour-map"],
    "normal prior": variants.VARIANTS["normal"],
    "combined": dataclasses.replace(TINY, latent_dim=5, n_bits=5, alpha=1.0, prior_alpha=1.0, **WITH_STEP_LAYERS),
    "dequantization": variants.VARIANTS["dequantization"],
    "classes": OF_CLASSES["classes"],
    "prior of classes": OF_CLASSES["prior-classes"],
    "odd": ODD,
}


@functools.cache
def get_model(name):
    """Returns the Keras model with the config VARIANTS[name], made once; all its weights affect its results."""
    random.seed(0)
    model = fresh(VARIANTS[name])
    encoders = [] if model.encoder is None else [model.encoder]
    if model.dequantizer is not None:
        give_effect(model.dequantizer, scale=0.3)
        encoders.append(model.dequantizer.encoder)
    # Exports fold batch normalisation into weights; with its initial mean 0 and variance 1 this would change nothing.
    for block in (block for encoder in encoders for block in encoder.blocks):
        for norm in (block.norm_1, block.norm_2, *block.shortcut[1:]):
            norm.moving_mean.assign(np.linspace(-0.3, 0.4, norm.moving_mean.shape[0]))
            norm.moving_variance.assign(np.linspace(0.5, 2.0, norm.moving_variance.shape[0]))
    return model


@functools.cache
def get_exported_model(name, channels_first=False):
    """Returns the folded networks of the model VARIANTS[name], made once. Do not change them."""
    other = get_exported_model(name) if channels_first else None
    return ExportedModel(get_model(name), channels_first, other=other)


def call_endpoint(exported, endpoint, inputs):
    """Returns {output name: array} of an endpoint's folded graph for `inputs`, of which it takes those that it has."""
    arrays, names = exported.collect_arrays(), [array.name for array in endpoint.inputs]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        placed = {name: tf.compat.v1.placeholder(inputs[name].dtype, [None, *inputs[name].shape[1:]]) for name in names}
        outputs = endpoint.answer(exported.make_answers(lambda name: tf.constant(arrays[name])), placed)
        return session.run(outputs, {tensor: inputs[name] for name, tensor in placed.items()})


def make_inputs(config, count=5, seed=1):
    """Returns {input name: array} of all endpoints of a model: `count` random images, codes, noise or labels."""
    rng, images, inputs = np.random.default_rng(seed), random_images(count, config.image_shape, seed), {}
    for array in (array for endpoint in list_endpoints(config) for array in endpoint.inputs):
        values = images if array.holds == IMAGE else draw_values(array, rng, count)
        inputs[array.name] = values[::-1].copy() if array.name.endswith("_b") else values
    return inputs


def assert_same(found, right):
    """Asserts that two dicts of outputs agree: floats within `TOLERANCE`, 99 % of pixels exactly, all within 1."""
    assert set(found) == set(right)
    for output, values in right.items():
        ours, theirs = np.asarray(found[output], "float64"), np.asarray(values, "float64")
        assert ours.shape == theirs.shape, output
        assert np.ptp(theirs) > 0, f"{output} is the same everywhere, which shows nothing"
        difference = np.abs(ours - theirs)
        if np.asarray(values).dtype == np.uint8:
            assert difference.max() <= 1 and np.mean(difference > 0) < 0.01, output
        else:
            assert difference.max() < TOLERANCE * np.abs(theirs).max(), output
