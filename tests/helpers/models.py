"""Tiny model configs, random images, functions that perturb weights, and functions on gradients and Jacobians."""

import dataclasses
import math

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdecouple.config import ModelConfig

# The smallest config with every part of a model: three levels, the inner one with two stages, and odd channel counts.
TINY = ModelConfig(
    image_shape=(8, 8, 3), latent_dim=4, steps=(1, (1, 1), 1), hidden_channels=(4, 6, 6), alpha=0.8,
    encoder_channels=(4, 6), encoder_out_channels=2, prior_steps=1, prior_hidden=6, prior_alpha=0.8,
)  # fmt: skip

# A config with only two levels, for tests of training runs, which spend most of their time on tracing.
SMALL = dataclasses.replace(TINY, steps=(1, 1), hidden_channels=(4, 6), encoder_channels=(4,))

# Assignments for the command-line option --set that make the model and the data set of a preset small.
SMALL_SETTINGS = ["model.image_shape=[8,8,3]", "model.steps=[1,1]", "model.hidden_channels=[4,4]", "model.latent_dim=4"]
SMALL_SETTINGS += ["model.encoder_channels=[4]", "training.init_images=8", "data.photograph_crops=64"]

# The model config that TensorFlow traces fastest, for tests in which only files and processes matter.
LEAST = ModelConfig(image_shape=(8, 8, 3), conditioning="none", steps=(1, 1), hidden_channels=(2, 2), alpha=0.8)


def give_effect(layer, seed=0, scale=0.1):
    """Adds noise to the trainable weights of a layer or model, because couplings start as identity; returns `layer`."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign_add((scale * rng.standard_normal(tuple(variable.shape))).astype(variable.dtype))
    return layer


def strengthen_z(model):
    """Multiplies the weights that compute or apply z by 8, so that z affects decoded pixels; returns `model`."""
    for variable in model.trainable_variables:
        if "condition_kernel" in variable.path or variable.path.endswith("encoder/last_gain"):
            variable.assign(8 * variable)
    return model


def random_images(count=4, size=8, seed=0):
    """Returns uniform noise, uint8 `[count, size, size, 3]`; `size` can also be (height, width, channels)."""
    shape = (size, size, 3) if isinstance(size, int) else size
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def save_images(folder, images):
    """Writes `images`, {path below `folder`, such as "test/cat/1.png": pixels}, as image files; returns `folder`."""
    for name, pixels in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def assert_gradients_reach_weights(layer, loss):
    """Asserts that every trainable weight of a layer or model has a finite, nonzero gradient of the scalar `loss()`."""
    with tf.GradientTape() as tape:
        value = loss()
    variables = layer.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(value, [v.value for v in variables]), strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), variable.path


def assert_all_close(ours, theirs, rtol=1e-7, atol=0.0):
    """Asserts that two nests have equally many arrays or variables, and close values (equal ones with `rtol=0`)."""
    for index, pair in enumerate(zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True)):
        np.testing.assert_allclose(*map(np.array, pair), rtol=rtol, atol=atol, err_msg=f"array {index}")


def jacobian_log_det(forward, x, condition=None):
    """Returns log |det dy/dx| for each example x, `[batch]`, by automatic differentiation; `forward` returns (y, ...).

    An example with n values is repeated n times. The gradient of value k of the output for copy k is row k of the
    Jacobian, so that one backward pass gives all rows.
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
    """Runs a flow on `x`; calls `look(layer, input, condition)` before each layer in it; returns the flow's output."""

    def visit(leaf, h, z):
        look(leaf, h, z)
        return leaf.forward_and_log_det(h, z)[0]

    return network.visit_layers(x, condition, visit)
