"""The objective of training: the negative evidence lower bound (paper equation 2), term by term."""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple.config import ModelConfig
from tfdecouple.layers.base import Runner
from tfdecouple.model.base_model import BaseModel
from tfdecouple.numerics.arithmetic import get_sizes, make_zero_log_det, multiply_sizes


class BoundTerms(NamedTuple):
    """The terms of the negative evidence lower bound, an upper bound of -log p(x); each term is float32 `[batch]`.

    >>> bound = BoundTerms(*tf.zeros([4, 2]))
    >>> bound.bits_per_dim.shape.as_list()
    [2]

    Attributes:
        reconstruction: -log p(x|z) in nats.
        kl: log q(z|x) - log p(z) in nats, at one draw of z; 0 for a model without z. For an image with a label y this
            term is log q(z|x) - log p(z, y), or -log p(y) if z is a function of y. The sum of terms then bounds -log
            p(x, y).
        dequantization: log q(u|x) in nats; 0 for uniform noise.
        bits_per_dim: sum of the three terms in bits per colour value of the image, for pixels in 2**n_bits bins.
    """

    reconstruction: tf.Tensor
    kl: tf.Tensor
    dequantization: tf.Tensor
    bits_per_dim: tf.Tensor


class Latents(NamedTuple):
    """The latents at which the bound of an image was evaluated, for one draw of z and of the dequantization noise.

    Attributes:
        prior_noise: output of the prior flow for z, standard normal under the model, float32 `[batch, d_z]`; None for a
            model without z, or if z is a function of the label. A model with labels first shifts and scales z by the
            image's label, or by the most probable label if the image has no label.
        log_prior: log p(z) in nats, float32 `[batch]`; 0 for a model without z. For an image with a label y this is log
            p(z, y), or log p(y) if z is a function of y.
        v: local code, standard normal under the model, float32 `[batch, height, width, channels]`.
    """

    prior_noise: tf.Tensor | None
    log_prior: tf.Tensor
    v: tf.Tensor


def evaluate_bound(
    networks: BaseModel,
    bins: tf.Tensor,
    z_noise: tf.Tensor,
    u_noise: tf.Tensor,
    *,
    labels: tf.Tensor | None = None,
    encoder_bins: tf.Tensor | None = None,
    training: bool = False,
    runner: Runner | None = None,
) -> tuple[BoundTerms, Latents]:
    """Returns the terms of the negative bound for one draw of z and of x within the bins, and the latents of the draw.

    Args:
        networks: a model, or an object with the same attributes for its networks, such as `encoder` and `flow`.
        bins: bins of the pixels, float32 `[batch, height, width, channels]`.
        z_noise: standard normal noise, float32 `[batch, d_z]`; ignored by a model without an encoder.
        u_noise: dequantization noise of the shape of `bins`: standard normal for a learned q(u|x), otherwise uniform in
            [0, 1).
        labels: labels of the images, int32 `[batch]`; -1 or None for no label. If z is a function of the label, every
            image must have one.
        encoder_bins: bins of the same images resized to the model's image size, for the encoder; None for `bins`.
        training: whether the encoders normalise by the statistics of the batch.
        runner: a function that runs the networks, such as `Traced()`; None for each network's own runner.
    """
    quantizer, encoder = networks.quantizer, networks.encoder
    z, prior_noise, log_prior = None, None, make_zero_log_det(bins)
    kl = log_prior
    if encoder is not None:
        inputs = quantizer.place_at_edges(bins if encoder_bins is None else encoder_bins)
        mean, log_variance = encoder(inputs, training=True) if training else encoder.run_inference(inputs, runner)
        z = mean + tf.exp(log_variance / 2) * z_noise
        log_posterior = -0.5 * tf.reduce_sum(log_variance + tf.square(z_noise) + math.log(2 * math.pi), -1)
        if networks.prior_affine is None:
            prior_noise, log_det = _map_to_prior_noise(networks, z, runner)
            log_prior = standard_normal_log_prob(prior_noise) + log_det
        else:
            prior_noise, log_prior = select_prior_by_label(*evaluate_label_priors(networks, z, runner), labels)
        kl = log_posterior - log_prior
    elif networks.code_net is not None:
        z = networks.code_net(labels)
        log_prior = tf.gather(compute_label_log_probabilities(networks.config), labels)
        kl = -log_prior
    u, dequantization = dequantize(networks, bins, u_noise, training, runner)
    v, log_det = networks.flow.forward_and_log_det(quantizer.place_in_bins(bins, u), z, runner)
    reconstruction = -standard_normal_log_prob(v) - log_det
    nats = reconstruction + kl + dequantization
    bits = quantizer.convert_to_bits_per_dim(nats, multiply_sizes(get_sizes(bins)[1:], bins.dtype))
    return BoundTerms(reconstruction, kl, dequantization, bits), Latents(prior_noise, log_prior, v)


def dequantize(
    networks: BaseModel, bins: tf.Tensor, u_noise: tf.Tensor, training: bool = False, runner: Runner | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns u, the positions of x within the bins of the pixels, and log q(u|x), `[batch]`, in nats.

    `bins`, `u_noise` and u have one shape, `[batch, height, width, channels]`. A learned q(u|x) maps standard normal
    noise to u; otherwise the noise is uniform in [0, 1) with log-density 0, and u is the noise. The other arguments are
    those of `evaluate_bound`.
    """
    if networks.dequantizer is None:
        return u_noise, make_zero_log_det(bins)
    u_noise = tf.convert_to_tensor(u_noise, bins.dtype)
    u, log_det = networks.dequantizer.call(networks.quantizer.place_at_edges(bins), u_noise, training, runner)
    return u, standard_normal_log_prob(u_noise) - log_det


def evaluate_label_priors(
    networks: BaseModel, z: tf.Tensor, runner: Runner | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the prior flow's outputs, `[batch, classes, d_z]`, and log p(z, y), `[batch, classes]`.

    `runner` runs the prior flow, as in `evaluate_bound`.
    """
    assert networks.prior_affine is not None
    shifted, log_det = networks.prior_affine(z)
    classes, latent_dim = shifted.shape[1:]
    noise, change = _map_to_prior_noise(networks, tf.reshape(shifted, [-1, latent_dim]), runner)
    log_prob = tf.reshape(standard_normal_log_prob(noise) + change, [-1, classes])
    log_joint = log_prob + log_det + compute_label_log_probabilities(networks.config)
    return tf.reshape(noise, [-1, classes, latent_dim]), log_joint


def _map_to_prior_noise(networks: BaseModel, z: tf.Tensor, runner: Runner | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the prior flow's output for z, standard normal noise, and log-determinants; without a flow z and 0."""
    return (z, 0.0) if networks.prior_flow is None else networks.prior_flow.forward_and_log_det(z, None, runner)


def map_noise_to_z(networks: BaseModel, noise: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
    """Returns draws of z from the prior, `[batch, d_z]`, for standard normal noise `[batch, d_z]`.

    A model with labels needs labels, int32 `[batch]`; if z is a function of the label, the noise is ignored.
    """
    if networks.code_net is not None:
        return networks.code_net(labels)
    z = noise if networks.prior_flow is None else networks.prior_flow.inverse_and_log_det(noise)[0]
    return z if networks.prior_affine is None else networks.prior_affine.invert_for_labels(z, labels)


def compute_label_log_probabilities(config: ModelConfig) -> tf.Tensor:
    """Returns log p(y) of each label y, float32 `[classes]`, which the config's `class_probabilities` fix."""
    shares = np.asarray(config.label_shares, np.float64)
    return tf.constant(np.log(shares / shares.sum()), tf.float32)


def evaluate_log_joint(networks: BaseModel, bins: tf.Tensor) -> tf.Tensor:
    """Returns log p(x, y) of images, given as `bins`, for each label y, `[batch, classes]`, up to a constant."""
    if networks.code_net is None:
        assert networks.encoder is not None
        z = networks.encoder.run_inference(networks.quantizer.place_at_edges(bins))[0]
        return evaluate_label_priors(networks, z)[1]
    x, log_probs = networks.quantizer.place_at_centres(bins), []
    for code in tf.unstack(networks.code_net.compute_codes()):
        v, log_det = networks.flow.forward_and_log_det(x, tf.repeat(code[None], tf.shape(x)[0], 0))
        log_probs.append(standard_normal_log_prob(v) + log_det)
    return tf.stack(log_probs, -1) + compute_label_log_probabilities(networks.config)


def select_prior_by_label(
    noise: tf.Tensor, log_joint: tf.Tensor, labels: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the output of the prior flow for each image's label, `[batch, d_z]`, and log p(z, y), `[batch]`.

    The arguments `noise` and `log_joint` are results of `evaluate_label_priors`. An image without a label (-1, or None
    for all images) gets the output for the image's most probable label, and log p(z).
    """
    # A gather of the entries would have a gradient with int32 indices, with which TensorFlow computes on a GPU's host.
    numbers = tf.constant(list(range(log_joint.shape[-1])), tf.int64)
    log_prior = tf.reduce_logsumexp(log_joint, -1)
    is_chosen = tf.equal(tf.argmax(log_joint, -1)[:, None], numbers)
    if labels is not None:
        given = tf.cast(labels, tf.int64)[:, None]
        is_chosen = tf.where(given >= 0, tf.equal(given, numbers), is_chosen)
        log_prior = tf.where(given[:, 0] >= 0, tf.reduce_sum(tf.where(is_chosen, log_joint, 0.0), -1), log_prior)
    return tf.reduce_sum(tf.where(is_chosen[..., None], noise, 0.0), 1), log_prior


def standard_normal_log_prob(x: tf.Tensor) -> tf.Tensor:
    """Returns the standard normal log-density, `[batch]` in nats, of each image or vector in x `[batch, ...]`."""
    axes: list[int] = list(range(1, len(x.shape)))
    dimensions = multiply_sizes(get_sizes(x)[1:], x.dtype)
    return -0.5 * (tf.reduce_sum(tf.square(x), axes) + dimensions * math.log(2 * math.pi))
