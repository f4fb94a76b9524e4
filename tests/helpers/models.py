"""Tiny model configs, random images, functions that perturb weights, and checks of gradients and Jacobians."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfdecouple.config import ModelConfig

# The smallest config with all parts: three levels, two stages in the inner level, odd channel counts (3 and 9).
TINY = ModelConfig(
    image_shape=(8, 8, 3),
    latent_dim=4,
    steps=(1, (1, 1), 1),
    hidden_channels=(4, 6, 6),
    alpha=0.8,
    encoder_channels=(4, 6),
    encoder_out_channels=2,
    prior_steps=1,
    prior_hidden=6,
    prior_alpha=0.8,
)


# A config with only two levels, for tests of training runs, which spend most of their time on tracing.
SMALL = ModelConfig(
    image_shape=(8, 8, 3),
    latent_dim=4,
    steps=(1, 1),
    hidden_channels=(4, 6),
    alpha=0.8,
    encoder_channels=(4,),
    encoder_out_channels=2,
    prior_steps=1,
    prior_hidden=6,
    prior_alpha=0.8,
)

# Assignments for --set that make a preset's model small and the preset's data set short.
SMALL_SETTINGS = [
    "model.image_shape=[8,8,3]",
    "model.steps=[1,1]",
    "model.hidden_channels=[4,4]",
    "model.encoder_channels=[4]",
    "model.latent_dim=4",
    "training.init_images=8",
    "data.photograph_crops=64",
]

# The config that is traced fastest, for tests that concern only files and processes.
LEAST = ModelConfig(image_shape=(8, 8, 3), conditioning="none", steps=(1, 1), hidden_channels=(2, 2), alpha=0.8)


def give_effect(layer, seed=0, scale=0.1):
    """Adds noise to a layer's or model's trainable weights, as couplings start as the identity; returns `layer`."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign_add((scale * rng.standard_normal(tuple(variable.shape))).astype(variable.dtype))
    return layer


def strengthen_z(model):
    """Multiplies the weights that make and use z by 8, so that z changes the decoded pixels; returns the model."""
    for variable in model.trainable_variables:
        if "condition_kernel" in variable.path or variable.path.endswith("encoder/last_gain"):
            variable.assign(8 * variable)
    return model


def random_images(count=4, size=8, seed=0):
    """Returns images of uniform noise, uint8 `[count, size, size, 3]`; `size` is a side or a whole image shape."""
    shape = (size, size, 3) if isinstance(size, int) else size
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def assert_gradients_reach_weights(layer, loss):
    """Asserts that the gradient of `loss()` reaches every trainable weight of a layer or model."""
    with tf.GradientTape() as tape:
        value = loss()
    variables = layer.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(value, [v.value for v in variables]), strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), variable.path


def negative_log_likelihood(layer, x, condition):
    """Returns -log p(x), summed over the batch and up to a constant, if `layer` maps x to N(0, I); a scalar."""
    y, log_det = layer.forward_and_log_det(x, condition)
    return tf.reduce_sum(tf.square(y)) / 2 - tf.reduce_sum(log_det)


def jacobian_log_det(forward, x, condition=None):
    """Returns log |det dy/dx| for each entry of the batch x, `[batch]`, by automatic differentiation.

    Each entry of the batch is repeated, a copy for each output number. The gradient of output k of copy k is row k of
    the Jacobian, so that one backward pass gives all rows.
    """
    size = math.prod(x.shape[1:])
    copies = tf.repeat(x, size, 0)
    with tf.GradientTape() as tape:
        tape.watch(copies)
        y = forward(copies, None if condition is None else tf.repeat(condition, size, 0))[0]
    chosen = tf.tile(tf.eye(size, dtype=y.dtype), [x.shape[0], 1])
    rows = tape.gradient(y, copies, tf.reshape(chosen, tf.shape(y)))
    return np.linalg.slogdet(np.reshape(rows, [x.shape[0], size, size]))[1]


def visit_layers_with(network, x, condition, look):
    """Runs an invertible network and returns its output; calls `look(layer, x, condition)` before each inner layer."""

    def visit(leaf, h, z):
        look(leaf, h, z)
        return leaf.forward_and_log_det(h, z)[0]

    return network.visit_layers(x, condition, visit)
