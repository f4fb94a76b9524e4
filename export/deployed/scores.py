"""Densities and scores of the deployed model: the bound and its terms, and how probable each label is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import tensorflow as tf

from export.deployed.deployed_model import DeployedModel
from tfdecouple.model.objective import by_label
from tfdecouple.model.outlier_scores import shell, typicality


def score(deployed: DeployedModel, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the scores of `outliers.OutlierScores` that the model has, each `[batch]`, by name.

    Args:
        deployed: the model.
        inputs: "images", "u_noise", and where the model knows them "z_noise" and "labels", as of the endpoint.
    """
    levels, labels = deployed.levels_of(inputs["images"]), inputs.get("labels")
    z, kl = None, None
    of_z, latents = {}, []
    if deployed.config.has_class_codes:
        z, classes = deployed.code(levels, labels), deployed.classes
        assert classes is not None
        kl = -classes.of(classes.log_probabilities, labels)
    if deployed.config.has_encoder:
        mean, log_variance = deployed.posterior(levels)
        noise = inputs["z_noise"]
        z = mean + tf.exp(log_variance / 2) * noise
        constant = deployed.config.latent_dim * math.log(2 * math.pi)
        if deployed.classes is None:
            prior_noise, log_det = deployed.prior_forward_and_log_det(z)
            # log q(z|x) - log p(z); the constants of the two Gaussians cancel.
            kl = 0.5 * tf.reduce_sum(tf.square(prior_noise) - tf.square(noise) - log_variance, -1) - log_det
            of_z["prior_nats"] = 0.5 * (tf.reduce_sum(tf.square(prior_noise), -1) + constant) - log_det
        else:
            prior_noise, log_prior = by_label(*deployed.prior_of_each_class(z), labels)
            kl = -0.5 * (tf.reduce_sum(tf.square(noise) + log_variance, -1) + constant) - log_prior
            of_z["prior_nats"] = -log_prior
        latents.append(prior_noise)
    u, log_q = deployed.to_inside(inputs["u_noise"]), None
    if deployed.dequantizer is not None:
        noise = u
        u, log_det = deployed.dequantize_and_log_det(levels, noise)
        log_q = _normal_log_density(noise) - log_det
    v, log_det = deployed.flow_forward_and_log_det(deployed.flow_input(levels, u), z)
    nats = -_normal_log_density(v) - log_det
    for term in (kl, log_q):
        if term is not None:
            nats += term
    return {
        "bits_per_dim": deployed.quantizer.bits_per_dim(nats, math.prod(deployed.config.image_shape)),
        **of_z,
        "shell": shell(v),
        "typicality": typicality([*latents, *deployed.flow.parts(v)]),
    }


def label_log_probabilities(deployed: DeployedModel, images: tf.Tensor) -> tf.Tensor:
    """Returns log p(y|x) of each label, `[batch, classes]`, of uint8 images."""
    levels = deployed.levels_of(images)
    if not deployed.config.has_class_codes:
        log_joint = deployed.prior_of_each_class(deployed.code(levels, None))[1]
        return tf.math.log_softmax(log_joint)
    classes = deployed.classes
    assert classes is not None
    # All labels in one pass, or the graph would grow with their number.
    count, batch = deployed.config.classes, tf.shape(levels)[0]
    x = tf.tile(deployed.flow_input(levels), [count, 1, 1, 1])
    z = tf.repeat(tf.convert_to_tensor(classes.codes), tf.fill([count], batch), 0)
    v, log_det = deployed.flow_forward_and_log_det(x, tf.ensure_shape(z, [None, deployed.config.latent_dim]))
    log_density = _normal_log_density(v) + log_det
    log_joint = tf.transpose(tf.reshape(log_density, [count, batch])) + classes.log_probabilities
    return tf.math.log_softmax(tf.ensure_shape(log_joint, [None, count]))


def _normal_log_density(x: tf.Tensor) -> tf.Tensor:
    """Returns log N(x; 0, I) of images, `[batch]`; as the objective's, whose constant is made in the graph."""
    return -0.5 * (tf.reduce_sum(tf.square(x), [1, 2, 3]) + math.prod(x.shape[1:]) * math.log(2 * math.pi))
