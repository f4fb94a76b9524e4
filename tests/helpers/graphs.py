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
    "alpha-0.8": TINY,
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
    """Returns {input name: array} for all functions that an export offers: `count` random images, codes or labels."""
    rng = np.random.default_rng(seed)
    images = random_images(count, config.image_shape, seed)
    draws = {
        "z": rng.standard_normal((count, config.latent_dim)),
        "v": rng.standard_normal((count, *config.image_shape)),
        "z_noise": rng.standard_normal((count, config.latent_dim)),
        "v_noise": rng.standard_normal((count, *config.image_shape)),
        "u_noise": (rng.standard_normal if config.has_dequantizer else rng.random)((count, *config.image_shape)),
        "direction": rng.standard_normal((count, config.latent_dim)),
        "temperature": np.linspace(0.3, 1.0, count),
        "amount": np.linspace(0.0, 2.0, count),
        "alpha": np.linspace(0.0, 1.0, count),
        "beta": np.linspace(0.9, 0.2, count),
    }
    pictures = {"images": images, "images_a": images, "images_b": images[::-1].copy()}
    labels = np.arange(count, dtype=np.int32) % max(config.classes, 1)
    labelled = {"labels": labels, "labels_a": labels, "labels_b": labels[::-1].copy()}
    given = {**pictures, **labelled, **{name: values.astype("float32") for name, values in draws.items()}}
    # An endpoint (an exported function, such as "encode") that a test adds can have inputs that are not listed above.
    for array in (array for entry in list_endpoints(config) for array in entry.inputs if array.name not in given):
        given[array.name] = images if array.holds == IMAGE else draw_values(array, rng, count)
    return given


def assert_same(found, right, n_bits=8, tolerance=TOLERANCE):
    """Asserts that two dicts of outputs agree: floats within `tolerance`, 99 % of pixels exactly, all within a bin."""
    assert set(found) == set(right)
    for output, values in right.items():
        ours, theirs = np.asarray(found[output], "float64"), np.asarray(values, "float64")
        assert ours.shape == theirs.shape, output
        assert np.ptp(theirs) > 0, f"{output} is the same everywhere, which shows nothing"
        difference = np.abs(ours - theirs)
        if np.asarray(values).dtype == np.uint8:
            assert difference.max() <= 256 // 2**n_bits and np.mean(difference > 0) < 0.01, output
        else:
            assert difference.max() < tolerance * np.abs(theirs).max(), output
