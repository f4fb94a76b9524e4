"""What training minimises: the negative evidence lower bound of an image, term by term (paper equation 2)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf

from tfdecouple.runtime.numerics import product, sizes, zero_per_image


class Elbo(NamedTuple):
    """The negative evidence lower bound, an upper bound of -log p(x), by its terms: each float32 `[batch]`.

    >>> elbo = Elbo(*tf.zeros([4, 2]))
    >>> elbo.bits_per_dim.shape.as_list()
    [2]

    Attributes:
        reconstruction: -log p(x|z) in nats.
        kl: log q(z|x) - log p(z) in nats, at one draw of z; 0 for a model without z. With the label y of an image it is
            log q(z|x) - log p(z, y), and where z is a function of the label -log p(y): the bound is of -log p(x, y).
        dequantization: log q(u|x) in nats; 0 for uniform noise.
        bits_per_dim: their sum in bits per colour value of the image, for pixels 0..2**n_bits - 1.
    """

    reconstruction: tf.Tensor
    kl: tf.Tensor
    dequantization: tf.Tensor
    bits_per_dim: tf.Tensor


class Latents(NamedTuple):
    """The latents of one draw of z and of the dequantization noise, at which a bound is taken.

    Attributes:
        prior_noise: the noise that the prior's flow makes of z, standard normal under the model, float32
            `[batch, d_z]`; None for a model without z, and where z is a function of the label. A prior that knows
            labels makes it by the label of the image, or by the most probable one where there is none.
        log_prior: log p(z) in nats, float32 `[batch]`; 0 for a model without z. With the label y it is log p(z, y), or
            log p(y) where z is a function of it.
        v: float32 `[batch, height, width, channels]`, standard normal under the model.
    """

    prior_noise: tf.Tensor | None
    log_prior: tf.Tensor
    v: tf.Tensor


def negative_elbo(
    networks: Any,
    levels: tf.Tensor,
    z_noise: tf.Tensor,
    u_noise: tf.Tensor,
    *,
    labels: tf.Tensor | None = None,
    encoder_levels: tf.Tensor | None = None,
    training: bool = False,
) -> tuple[Elbo, Latents]:
    """Returns the negative bound at one draw of z and of x within the bins of the pixels, and the latents of that draw.

    Args:
        networks: of a model, as `Networks` has them in attributes.
        levels: pixel levels, float32 `[batch, height, width, channels]`.
        z_noise: standard normal, float32 `[batch, d_z]`; ignored by a model without an encoder.
        u_noise: as for `dequantize`.
        labels: of the images, int32 `[batch]`; -1 or None for no label, unless z is a function of the label.
        encoder_levels: pixel levels for the encoder of z, of the model's size; None for `levels`.
        training: whether the encoders normalise by the statistics of the batch.
    """
    quantizer, encoder = networks.quantizer, networks.encoder
    z, prior_noise, log_prior = None, None, zero_per_image(levels)
    kl = log_prior
    if encoder is not None:
        inputs = quantizer.edges(levels if encoder_levels is None else encoder_levels)
        mean, log_variance = encoder(inputs, training=True) if training else encoder.infer(inputs)
        z = mean + tf.exp(log_variance / 2) * z_noise
        log_posterior = -0.5 * tf.reduce_sum(log_variance + tf.square(z_noise) + math.log(2 * math.pi), -1)
        prior_noise, log_prior = _evaluate_prior(networks, z, labels)
        kl = log_posterior - log_prior
    elif networks.code_net is not None:
        z, log_prior = networks.code_net(labels), tf.gather(networks.class_log_probabilities, labels)
        kl = -log_prior
    u, dequantization = dequantize(networks, levels, u_noise, training)
    v, log_det = networks.flow.forward_and_log_det(quantizer.within(levels, u), z)
    reconstruction = -standard_normal_log_prob(v) - log_det
    nats = reconstruction + kl + dequantization
    bits = quantizer.bits_per_dim(nats, product(sizes(levels)[1:], levels.dtype))
    return Elbo(reconstruction, kl, dequantization, bits), Latents(prior_noise, log_prior, v)


def dequantize(
    networks: Any, levels: tf.Tensor, u_noise: tf.Tensor, training: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns u, the places of x within the bins of the pixels, and log q(u|x), `[batch]`, in nats.

    Args:
        networks: of a model.
        levels: pixel levels, float32 `[batch, height, width, channels]`.
        u_noise: float32 of the shape of levels: standard normal for a learned q(u|x), which is reparametrised;
            elsewhere u itself, uniform in [0, 1), whose log density is 0.
        training: as for `negative_elbo`.
    """
    if networks.dequantizer is None:
        return u_noise, zero_per_image(levels)
    u_noise = tf.convert_to_tensor(u_noise, levels.dtype)
    u, log_det = networks.dequantizer.call(networks.quantizer.edges(levels), u_noise, training)
    return u, standard_normal_log_prob(u_noise) - log_det


def _evaluate_prior(networks: Any, z: tf.Tensor, labels: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the standard normal noise that the prior's flow makes of z, and log p(z), or log p(z, y) with a label."""
    if networks.prior_affine is not None:
        return by_label(*prior_of_each_class(networks, z), labels)
    return _flow_prior(networks, z)


def prior_of_each_class(networks: Any, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the noise that the prior of each label y makes of z, and log p(z, y).

    Args:
        networks: of a model whose prior knows labels.
        z: `[batch, d_z]`.

    Returns:
        The standard normal noise, `[batch, classes, d_z]`, and log p(z, y), `[batch, classes]`.
    """
    shifted, log_det = networks.prior_affine(z)
    classes, latent_dim = shifted.shape[1:]
    noise, log_prob = _flow_prior(networks, tf.reshape(shifted, [-1, latent_dim]))
    log_joint = tf.reshape(log_prob, [-1, classes]) + log_det + networks.class_log_probabilities
    return tf.reshape(noise, [-1, classes, latent_dim]), log_joint


def _flow_prior(networks: Any, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if networks.prior_flow is None:
        return z, standard_normal_log_prob(z)
    noise, log_det = networks.prior_flow.forward_and_log_det(z)
    return noise, standard_normal_log_prob(noise) + log_det


def by_label(noise: tf.Tensor, log_joint: tf.Tensor, labels: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the noise of the prior behind z by its label, and log p(z, y); without a label those of the mixture.

    Args:
        noise: by each label, `[batch, classes, d_z]`, as `prior_of_each_class` returns it.
        log_joint: log p(z, y), `[batch, classes]`, likewise.
        labels: int32 `[batch]`, -1 for none; None where none is known.

    Returns:
        The noise, `[batch, d_z]`, by the most probable label where there is none, and log p(z, y) or log p(z).
    """
    if labels is None:
        chosen, log_prior = tf.argmax(log_joint, -1, tf.int32), tf.reduce_logsumexp(log_joint, -1)
        return tf.gather(noise, chosen, batch_dims=1), log_prior
    known = labels >= 0
    chosen = tf.where(known, labels, tf.argmax(log_joint, -1, tf.int32))
    log_prior = tf.where(known, tf.gather(log_joint, chosen, batch_dims=1), tf.reduce_logsumexp(log_joint, -1))
    return tf.gather(noise, chosen, batch_dims=1), log_prior


def standard_normal_log_prob(x: tf.Tensor) -> tf.Tensor:
    """Returns log N(x; 0, I) of each entry of the batch, `[batch]`, for x `[batch, ...]`."""
    axes: list[int] = list(range(1, len(x.shape)))
    dimensions = product(sizes(x)[1:], x.dtype)
    return -0.5 * (tf.reduce_sum(tf.square(x), axes) + dimensions * math.log(2 * math.pi))
