"""The colour map: its numbers, its matrices, and the start of a model that has one."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SMALL
from helpers.refusals import message_of

from tfdecouple.config import ModelConfig
from tfdecouple.errors import ConfigError
from tfdecouple.layers.colour_map import make_colour_matrices, map_colours, measure_colours
from tfdecouple.model import DecoupledModel

CONFIG = dataclasses.replace(SMALL, colour_map=True, latent_dim=9)


def make_photographs(count, channels=3):
    """Returns noise around a colour and a contrast of each image's own, uint8 `[count, 8, 8, channels]`."""
    rng = np.random.default_rng(0)
    colours, spread = rng.uniform(90, 160, (count, 1, 1, channels)), rng.uniform(5, 25, (count, 1, 1, channels))
    return (colours + spread * rng.standard_normal((count, 8, 8, channels))).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_measured_colours_give_matrices_to_mean_0_and_covariance_1(channels):
    x = tf.constant(make_photographs(4, channels) / 128.0 - 1)
    matrix, inverse, shift, log_det = make_colour_matrices(measure_colours(x), channels)
    y = map_colours(x - shift[:, None, None], matrix)
    np.testing.assert_allclose(map_colours(y, inverse) + shift[:, None, None], x, atol=1e-12)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], atol=1e-12)
    for image in tf.reshape(y, [4, 64, channels]).numpy():
        np.testing.assert_allclose(image.mean(0), 0, atol=1e-12)
        # The variance that `measure_colours` adds makes the variances of y a little smaller than 1.
        np.testing.assert_allclose(np.cov(image.T, ddof=0), np.eye(channels), atol=0.2)


def test_untrained_model_with_colour_map_switches_mean_and_contrast_of_colours():
    model, images = DecoupledModel(CONFIG), make_photographs(32)
    model.initialize(images)
    np.testing.assert_allclose(np.std(model.encode(images).z, 0), 1, atol=0.01)
    result = np.asarray(model.switch(images[:16], images[16:])[0], float)
    for moment in (np.mean, np.std):
        of_z, of_result = moment(images[:16], (1, 2)), moment(result, (1, 2))
        # Images are encoded half a bin brighter than they are measured, which contrast multiplies.
        np.testing.assert_allclose(of_result, of_z, atol=3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_dim": 8}, "model.latent_dim is 8"),
        ({"conditioning": "base"}, "'base'"),
        ({"prior": "classes", "classes": 3}, "'classes'"),
    ],
)
def test_config_refuses_a_colour_map_that_no_z_can_carry(changes, named):
    assert named in message_of(ConfigError, lambda: dataclasses.replace(CONFIG, **changes))


def test_colour_map_of_grey_images_needs_two_numbers_of_z():
    assert ModelConfig(image_shape=(8, 8, 1), latent_dim=2, steps=(1, 1), hidden_channels=(4, 4), colour_map=True)
