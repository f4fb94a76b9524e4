"""Tests of interop.wolf on a class-conditional checkpoint, and on one with variational dequantisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.traces import run_eagerly
from helpers.wolf import Reference, assert_refused

from tfdecouple.config import ModelConfig
from tfdecouple.interop.wolf import assign_weights, read_state_dict, translate_config
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import load_model

CLASSES, DEQUANTIZER = Reference("wolf_small_cat"), Reference("wolf_small_var")


def compute_with_classes(model):
    given = CLASSES.given
    noise = given["dequantization_noise"]
    codes = model.encode(CLASSES.images, CLASSES.arrays["labels"])
    elbo = model.elbo_from_noise(CLASSES.images, tf.zeros([2, 0]), noise, labels=CLASSES.arrays["labels"])
    v, log_det = model.flow.forward_and_log_det(
        model.quantizer.place_in_bins(model.quantizer.find_bins(CLASSES.images), noise), codes.z
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


def compute_with_dequantizer(model):
    given = DEQUANTIZER.given
    noise, z = given["dequantization_normal_noise"], given["z"]
    levels = model.quantizer.find_bins(DEQUANTIZER.images)
    u, log_q = model.dequantize(DEQUANTIZER.images, noise)
    v, log_det = model.flow.forward_and_log_det(model.quantizer.place_in_bins(levels, given["dequantization_noise"]), z)
    posterior, elbo = (
        model.posterior(DEQUANTIZER.images),
        model.elbo_from_noise(DEQUANTIZER.images, given["posterior_noise"], noise),
    )
    nats = elbo.reconstruction + elbo.kl + elbo.dequantization
    np.testing.assert_allclose(model.nats_to_bits_per_dim(nats), elbo.bits_per_dim, rtol=1e-6)
    np.testing.assert_allclose(elbo.dequantization, log_q, rtol=1e-6)
    return {
        "dequantization_map": model.dequantizer.encoder.run_inference(model.quantizer.place_at_edges(levels)),
        "dequantization_noise": u,
        "log_q_u": log_q,
        "posterior_mean": posterior.mean(),
        "posterior_log_variance": 2 * tf.math.log(posterior.stddev()),
        "z": posterior.mean() + posterior.stddev() * given["posterior_noise"],
        "log_posterior_z": posterior.log_prob(z),
        "log_prior_z": model.prior.log_prob(z),
        "kl": elbo.kl,
        "v": v,
        "log_det": log_det,
        "log_likelihood_x_given_z": -elbo.reconstruction,
        "bits_per_dim": elbo.bits_per_dim,
        "v_bin_centre": model.encode(DEQUANTIZER.images).v,
        "decoded": model.flow.inverse_and_log_det(given["v_input"], given["z_input"])[0],
    }


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What this project computes where the reference computed `reference.npz`, by reference."""
    folder = tmp_path_factory.mktemp("wolf")
    CLASSES.imported(folder / "classes")
    with run_eagerly():
        return {
            CLASSES: compute_with_classes(load_model(folder / "classes")),
            DEQUANTIZER: compute_with_dequantizer(DEQUANTIZER.imported(folder / "dequantizer")),
        }


@pytest.mark.parametrize(
    ("reference", "name"), [(each, name) for each in (CLASSES, DEQUANTIZER) for name in each.results]
)
def test_variant_computes_the_result_of_the_reference_code(computed, reference, name):
    reference.assert_computed(computed[reference], name)


FLOW = ModelConfig(
    image_shape=(32, 32, 3), latent_dim=8, steps=(1, (1, 1), (1, 1), 1), hidden_channels=(8, 16, 16, 16), factors=(4, 4)
)
CONFIGS = {
    CLASSES: dataclasses.replace(FLOW, prior="classes", classes=10),
    DEQUANTIZER: dataclasses.replace(
        FLOW,
        encoder_channels=(8, 12, 12),
        encoder_out_channels=4,
        prior_hidden=16,
        dequantization="flow",
        dequantization_steps=(1, 2),
        dequantization_hidden_channels=(8, 16),
        dequantization_factors=(4,),
        dequantization_encoder_channels=(6, 10),
        dequantization_map_channels=4,
    ),
}


@pytest.mark.parametrize("reference", CONFIGS)
def test_config_of_a_variant_is_that_of_the_checkpoint(reference):
    assert translate_config(reference.config, image_shape=(32, 32, 3)) == CONFIGS[reference]


@pytest.mark.parametrize("given", ["probs", "logits"])
def test_class_codes_and_unequal_probabilities_are_imported(given):
    rng = np.random.default_rng(1)
    shares = rng.uniform(0.2, 3, 7)
    numbers = shares if given == "probs" else np.log(shares) + 5
    edited = CLASSES.edited({"discriminator.num_events": 7, f"discriminator.{given}": numbers.tolist()})
    model = DecoupledModel(translate_config(edited, image_shape=(32, 32, 3)))
    state = read_state_dict(CLASSES.folder / "model.npz")
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
def test_unsupported_option_of_classes_is_named(changes, words):
    assert_refused(CLASSES.edited({f"discriminator.{name}": value for name, value in changes.items()}), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder.type": "local_resnet_gn"}, ["dequantizer.encoder.type", "'local_resnet_gn'"]),
        ({"flow.h_type": "global_linear"}, ["dequantizer.flow.h_type", "'global_linear'"]),
        ({"flow.inverse": True}, ["dequantizer.flow.inverse", "True"]),
        ({"flow.alpha": 1.5}, ["impossible", "dequantization_alpha"]),
        (
            {"flow.levels": 3, "flow.num_steps": [1, [1], 1], "flow.hidden_channels": 8, "flow.factors": [2]}
            | {"flow.prior_transform": "additive"},
            ["dequantizer.flow.prior_transform", "'additive'"],
        ),
    ],
)
def test_unsupported_option_of_dequantisation_is_named(changes, words):
    assert_refused(DEQUANTIZER.edited({f"dequantizer.{name}": value for name, value in changes.items()}), words)
