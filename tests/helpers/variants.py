"""Tiny model configs by name, one for each option of a model, and functions that make and compare their models."""

import dataclasses
import functools

import keras
import numpy as np

from helpers.models import SMALL, give_effect, random_images
from tfdecouple.config import ModelConfig
from tfdecouple.model import DecoupledModel

# A learned dequantisation of two levels, and of three, in which channels leave the flow.
DEQUANTIZATION = {"dequantization": "flow", "dequantization_steps": (1, 1), "dequantization_hidden_channels": (3, 4)}
DEQUANTIZATION |= {"dequantization_encoder_channels": (3,), "dequantization_map_channels": 2}
DEQUANTIZATION_OF_THREE_LEVELS = {"dequantization_steps": (1, (1,), 1), "dequantization_hidden_channels": (3, 4, 5)}
DEQUANTIZATION_OF_THREE_LEVELS = {**DEQUANTIZATION, **DEQUANTIZATION_OF_THREE_LEVELS, "dequantization_alpha": 0.7}
# A config with two levels; feature maps of the last level have 2 x 2 pixels.
SMALLEST = dataclasses.replace(SMALL, image_shape=(4, 4, 3), hidden_channels=(4, 4), prior_hidden=4)
# A config with three levels; in the inner one, channels leave the flow. The last level's maps have 1 x 1 pixels.
STAGES = dataclasses.replace(SMALLEST, steps=(1, (1,), 1), hidden_channels=(4, 4, 4))
VARIANTS = {
    "coupling": SMALLEST,
    "none": dataclasses.replace(SMALLEST, conditioning="none"),
    "base": dataclasses.replace(SMALLEST, conditioning="base", base_hidden=5),
    "additive": dataclasses.replace(
        STAGES, transform="additive", multiscale_transform="additive", prior_transform="additive"
    ),
    "base-additive": dataclasses.replace(SMALLEST, conditioning="base", base_hidden=5, transform="additive"),
    "colour-map": dataclasses.replace(SMALLEST, colour_map=True, latent_dim=10),
    "normal": dataclasses.replace(SMALLEST, prior="normal"),
    "alpha-1": dataclasses.replace(STAGES, alpha=1.0, prior_alpha=1.0),
    # Grey images are squeezed (2 x 2 pixels become 4 channels) before the first level; the last has 1 x 2 pixels.
    "grey": dataclasses.replace(SMALLEST, image_shape=(4, 8, 1)),
    "dequantization": dataclasses.replace(SMALLEST, **DEQUANTIZATION, dequantization_alpha=0.9),
}
# {name: config of a model that uses class labels}.
OF_CLASSES = {
    "classes": dataclasses.replace(SMALLEST, prior="classes", classes=3, class_probabilities=(1, 2, 5)),
    "prior-classes": dataclasses.replace(SMALLEST, classes=3, class_probabilities=(1, 2, 5)),
}

# A config with as many options as possible at other values than their defaults; some options exclude each other.
ODD = ModelConfig(
    image_shape=(8, 8, 3), n_bits=6, latent_dim=5, conditioning="base", base_hidden=6, step_layers=("actnorm",),
    steps=(1, (1,), 1), hidden_channels=(3, 4, 5), factors=(3,), alpha=0.5, encoder_channels=(3, 4),
    transform="additive", multiscale_transform="additive", encoder_out_channels=3,
    prior_steps=1, prior_hidden=5, prior_transform="additive", prior_alpha=0.25,
    **DEQUANTIZATION_OF_THREE_LEVELS, dequantization_factors=(3,), dequantization_transform="additive",
)  # fmt: skip


def fresh(config):
    """Returns a new initialised model, perturbed so that each weight affects its results and z depends on the image."""
    model = DecoupledModel(config)
    model.initialize(random_images(16, config.image_shape))
    if model.encoder is not None:
        give_effect(model.encoder.blocks[-1], scale=0.5)
        model.encoder.last_gain.assign_add(np.full(model.encoder.last_gain.shape, 0.5))
    if model.code_net is not None:
        model.code_net.embedding.assign(20 * model.code_net.embedding)
    return give_effect(model)


def compile_model(optimizer=None, config=SMALLEST, start=True, **options):
    """Returns a model compiled for `fit`, always with the same weights; initialised and perturbed if `start`."""
    keras.utils.set_random_seed(1)
    model = DecoupledModel(config)
    if start:
        model.initialize(random_images(20, 4))
        give_effect(model)
    # Without moments, whose update takes an eager step as long as all else.
    model.compile(optimizer or keras.optimizers.SGD(1e-6), **options)
    return model


@functools.cache
def variant(name):
    """Returns an initialised model of the config `name` in VARIANTS or OF_CLASSES. Tests share it: never change it."""
    return fresh({**VARIANTS, **OF_CLASSES}[name])


def images_of(model, count=3, seed=1):
    """Returns random images in the shape of `model`'s images, uint8 `[count, height, width, channels]`."""
    return random_images(count, model.config.image_shape, seed)


def read_weights(model):
    """Returns {name: array} of all weights of a `DecoupledModel`, copied to the host."""
    return {name: variable.numpy() for name, variable in model.named_variables().items()}


def has_weights(model, before):
    """Returns whether all weights of a model equal `before`, {name: array} from `read_weights`."""
    return all(np.array_equal(value, before[name]) for name, value in read_weights(model).items())


def equal(a, b):
    """Asserts that two arrays or tensors have equal values."""
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def quantize(images, n_bits):
    """Returns uint8 images rounded down to the lowest value of each pixel's bin, one of 2**n_bits bins."""
    step = 256 // 2**n_bits
    return images // step * step
