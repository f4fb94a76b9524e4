"""Tests of interop.wolf on a class-conditional checkpoint: the reference's numbers, other classes, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from helpers.traces import run_eagerly
from helpers.wolf import Reference, assert_refused

from tfdecouple.config import ModelConfig
from tfdecouple.interop.wolf import assign_weights, read_state_dict, translate_config
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import load_model

REFERENCE = Reference("wolf_small_cat")
IMAGES, LABELS = REFERENCE.images, REFERENCE.arrays["labels"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wolf") / "run"
    REFERENCE.imported(folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def computed(model):
    """What this project computes where the reference computed `reference.npz`."""
    with run_eagerly():
        return compute(model)


def compute(model):
    given = REFERENCE.given
    noise = given["dequantization_noise"]
    codes = model.encode(IMAGES, LABELS)
    elbo = model.elbo_from_noise(IMAGES, tf.zeros([2, 0]), noise, labels=LABELS)
    v, log_det = model.flow.forward_and_log_det(
        model.quantizer.place_in_bins(model.quantizer.find_bins(IMAGES), noise), codes.z
    )
    return {
        "class_codes": model.class_codes,
        "class_log_probabilities": model.class_log_probabilities,
        "z": codes.z,
        "kl": elbo.kl,
        "v": v,
        "log_det": log_det,
        "log_likelihood_x_given_z": -elbo.reconstruction,
        "bits_per_dim": elbo.bits_per_dim,
        "v_bin_centre": codes.v,
        "decoded": model.flow.inverse_and_log_det(given["v_input"], given["z_input"])[0],
    }


@pytest.mark.parametrize("name", REFERENCE.results)
def test_result_is_the_references(computed, name):
    REFERENCE.assert_computed(computed, name)


def test_config_is_that_of_the_reference():
    assert translate_config(REFERENCE.config, image_shape=(32, 32, 3)) == ModelConfig(
        image_shape=(32, 32, 3),
        latent_dim=8,
        steps=(1, (1, 1), (1, 1), 1),
        hidden_channels=(8, 16, 16, 16),
        factors=(4, 4),
        prior="classes",
        classes=10,
    )


def edited(**changes):
    """The reference's config with values of its discriminator changed."""
    return REFERENCE.edited({f"discriminator.{name}": value for name, value in changes.items()})


@pytest.mark.parametrize("given", ["probs", "logits"])
def test_other_classes_with_unequal_probabilities(given):
    rng = np.random.default_rng(1)
    shares = rng.uniform(0.2, 3, 7)
    numbers = shares if given == "probs" else np.log(shares) + 5
    model = DecoupledModel(translate_config(edited(num_events=7, **{given: numbers.tolist()}), image_shape=(32, 32, 3)))
    state = read_state_dict(REFERENCE.folder / "model.npz")
    state["discriminator.embed.weight"] = rng.standard_normal((7, 8)).astype("f4")
    assign_weights(model, state)
    expected = np.log(shares / shares.sum())
    np.testing.assert_allclose(model.class_log_probabilities, expected, rtol=1e-6)

    def layer(x, number):
        return (
            x @ state[f"discriminator.net.{number}.weight"].astype("f8").T + state[f"discriminator.net.{number}.bias"]
        )

    def elu(x):
        return np.where(x > 0, x, np.expm1(x))

    codes = layer(elu(layer(elu(layer(state["discriminator.embed.weight"].astype("f8"), 0)), 2)), 4)
    np.testing.assert_allclose(model.class_codes, codes, atol=1e-6 * np.abs(codes).max())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 9}, ["generator.flow.h_channels", "8", "9"]),
        ({"probs": [1.0, 2.0]}, ["impossible", "model.class_probabilities has 2"]),
        ({"probs": [1.0], "logits": [0.0]}, ["probs", "logits"]),
        ({"logits": [-1e9] + [0.0] * 9}, ["impossible", "above 0"]),
        ({"type": "mixture"}, ["discriminator.type", "categorical"]),
    ],
)
def test_what_this_project_does_not_have_is_named(changes, words):
    assert_refused(edited(**changes), words)
