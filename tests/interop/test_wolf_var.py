"""Tests of interop.wolf on a checkpoint with variational dequantisation: the reference's numbers, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from helpers.traces import run_eagerly
from helpers.wolf import Reference, assert_refused

from tfdecouple.config import ModelConfig
from tfdecouple.interop.wolf import translate_config

REFERENCE = Reference("wolf_small_var")
IMAGES = REFERENCE.images


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What this project computes where the reference computed `reference.npz`."""
    with run_eagerly():
        return compute(REFERENCE.imported(tmp_path_factory.mktemp("wolf") / "run"))


def compute(model):
    given = REFERENCE.given
    noise, z = given["dequantization_normal_noise"], given["z"]
    levels = model.quantizer.find_bins(IMAGES)
    u, log_q = model.dequantize(IMAGES, noise)
    v, log_det = model.flow.forward_and_log_det(model.quantizer.place_in_bins(levels, given["dequantization_noise"]), z)
    posterior, elbo = model.posterior(IMAGES), model.elbo_from_noise(IMAGES, given["posterior_noise"], noise)
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
        "v_bin_centre": model.encode(IMAGES).v,
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
        encoder_channels=(8, 12, 12),
        encoder_out_channels=4,
        prior_hidden=16,
        dequantization="flow",
        dequantization_steps=(1, 2),
        dequantization_hidden_channels=(8, 16),
        dequantization_factors=(4,),
        dequantization_encoder_channels=(6, 10),
        dequantization_map_channels=4,
    )


def edited(changes):
    """The reference's config with values of its dequantizer changed, `{dotted name: value}`."""
    return REFERENCE.edited({f"dequantizer.{name}": value for name, value in changes.items()})


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
def test_what_this_project_does_not_have_is_named(changes, words):
    assert_refused(edited(changes), words)
