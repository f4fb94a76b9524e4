"""The smallest model configs by name, one for each config option; functions for their models, images and weights."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from helpers.models import give_effect, random_images
from tfdecouple.config import ModelConfig
from tfdecouple.model import DecoupledModel

# A config with two levels, the last of 2 x 2 pixels.
SMALLEST = ModelConfig(
    image_shape=(4, 4, 3),
    latent_dim=4,
    steps=(1, 1),
    hidden_channels=(4, 4),
    alpha=0.8,
    encoder_channels=(4,),
    encoder_out_channels=2,
    prior_steps=1,
    prior_hidden=4,
    prior_alpha=0.8,
)
# A config with an inner level, where channels leave the flow after a stage; the last level has 1 x 1 pixels.
STAGES = dataclasses.replace(SMALLEST, steps=(1, (1,), 1), hidden_channels=(4, 4, 4))
VARIANTS = {
    "coupling": SMALLEST,
    "none": dataclasses.replace(SMALLEST, conditioning="none"),
    "base": dataclasses.replace(SMALLEST, conditioning="base", base_hidden=5),
    "additive": dataclasses.replace(
        STAGES, transform="additive", multiscale_transform="additive", prior_transform="additive"
    ),
    "base-additive": dataclasses.replace(SMALLEST, conditioning="base", base_hidden=5, transform="additive"),
    "normal": dataclasses.replace(SMALLEST, prior="normal"),
    "alpha-1": dataclasses.replace(STAGES, alpha=1.0, prior_alpha=1.0),
    # A grey image is squeezed before the first level, so that the last level has 1 x 2 pixels.
    "grey": dataclasses.replace(SMALLEST, image_shape=(4, 8, 1)),
    "dequantization": dataclasses.replace(
        SMALLEST,
        dequantization="flow",
        dequantization_steps=(1, 1),
        dequantization_hidden_channels=(3, 4),
        dequantization_alpha=0.9,
        dequantization_encoder_channels=(3,),
        dequantization_map_channels=2,
    ),
}
# Configs by name of models that use class labels.
OF_CLASSES = {
    "classes": dataclasses.replace(SMALLEST, prior="classes", classes=3, class_probabilities=(1, 2, 5)),
    "prior-classes": dataclasses.replace(SMALLEST, classes=3, class_probabilities=(1, 2, 5)),
}


# A config whose options all differ from their defaults, except for options that exclude each other.
ODD = ModelConfig(
    image_shape=(8, 8, 3),
    n_bits=6,
    latent_dim=5,
    conditioning="base",
    steps=(1, (1,), 1),
    hidden_channels=(3, 4, 5),
    factors=(3,),
    transform="additive",
    multiscale_transform="additive",
    alpha=0.5,
    step_layers=("sinh_arcsinh",),
    encoder_channels=(3, 4),
    encoder_out_channels=3,
    prior_steps=1,
    prior_hidden=5,
    prior_transform="additive",
    prior_alpha=0.25,
    base_hidden=6,
    dequantization="flow",
    dequantization_steps=(1, (1,), 1),
    dequantization_hidden_channels=(3, 4, 5),
    dequantization_factors=(3,),
    dequantization_transform="additive",
    dequantization_alpha=0.75,
    dequantization_encoder_channels=(3,),
    dequantization_map_channels=2,
)


def fresh(config):
    """Returns a new initialised model; all its weights affect the results, and its z differs between images."""
    model = DecoupledModel(config)
    model.initialize(random_images(16, config.image_shape))
    if model.encoder is not None:
        give_effect(model.encoder.blocks[-1], scale=0.5)
        model.encoder.last.gain.assign_add(np.full(model.encoder.last.gain.shape, 0.5))
    if model.code_net is not None:
        model.code_net.embedding.assign(20 * model.code_net.embedding)
    return give_effect(model)


@functools.cache
def variant(name):
    """Returns the shared, initialised model of a name in VARIANTS or OF_CLASSES. Do not change the model."""
    return fresh({**VARIANTS, **OF_CLASSES}[name])


def images_of(model, count=3, seed=1):
    """Returns random images of the shape that a model takes, uint8 `[count, height, width, channels]`."""
    return random_images(count, model.config.image_shape, seed)


def read_weights(model):
    """Returns {name: array} of all weights of a model."""
    return {name: variable.numpy() for name, variable in model.named_variables().items()}


def has_weights(model, before):
    """Returns whether all weights of a model equal the arrays in `before`, which `read_weights` has returned."""
    return all(np.array_equal(value, before[name]) for name, value in read_weights(model).items())


def equal(a, b):
    """Asserts that two arrays have equal values."""
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def quantize(images, n_bits):
    """Returns 8-bit images quantised to `n_bits` bits: bin k becomes the value k * 256 / n_bins."""
    step = 256 // 2**n_bits
    return images // step * step
