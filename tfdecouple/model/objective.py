"""What training minimises: the negative evidence lower bound of an image, term by term (paper equation 2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from tfdecouple.model.quantizer import Quantizer
from tfdecouple.networks.class_layers import ClassAffine, ClassCodes
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder
from tfdecouple.networks.flow import Flow
from tfdecouple.networks.prior import PriorFlow
from tfdecouple.runtime.numerics import product, sizes, zero_per_image


class Elbo(NamedTuple):
    """The negative evidence lower bound, an upper bound of -log p(x), by its terms: each float32 `[batch]`.

    >>> from tfdecouple import DecoupledModel, ModelConfig
    >>> config = ModelConfig(image_shape=(4, 4, 3), conditioning="none", steps=(1, 1), hidden_channels=(4, 4))
    >>> model = DecoupledModel(config)
    >>> images = tf.zeros([2, 4, 4, 3], tf.uint8)
    >>> model.initialize(images)
    >>> elbo = model.elbo(images, seed=0)
    >>> elbo.bits_per_dim.shape.as_list(), elbo.kl.numpy().tolist()
    ([2], [0.0, 0.0])

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
    """What the bound is taken at, at one draw of z and of the dequantization noise.

    Attributes:
        prior_noise: what the prior's flow makes of z, standard normal under the model, float32 `[batch, d_z]`; None for
            a model without z, and where z is a function of the label. Of a prior that knows labels it is by the label,
            or by the most probable one where there is none.
        log_prior: log p(z) in nats, float32 `[batch]`; 0 for a model without z. With the label y it is log p(z, y), or
            log p(y) where z is a function of it.
        v: float32 `[batch, height, width, channels]`, standard normal under the model.
    """

    prior_noise: tf.Tensor | None
    log_prior: tf.Tensor
    v: tf.Tensor


def negative_elbo(
    levels: tf.Tensor,
    z_noise: tf.Tensor,
    u_noise: tf.Tensor,
    *,
    quantizer: Quantizer,
    flow: Flow,
    encoder: Encoder | None,
    prior_flow: PriorFlow | None,
    dequantizer: Dequantizer | None = None,
    labels: tf.Tensor | None = None,
    class_codes: ClassCodes | None = None,
    prior_affine: ClassAffine | None = None,
    class_log_probabilities: tf.Tensor | None = None,
    training: bool,
) -> tuple[Elbo, Latents]:
    """Returns the negative bound at given draws of z, reparametrised, and of x within the bins of the pixels.

    With it come the latents that it was taken at, for whoever asks more of them than their density.

    Args:
        levels: of pixels, float32 `[batch, height, width, channels]`.
        z_noise: standard normal, float32 `[batch, d_z]`; ignored without an encoder.
        u_noise: float32 of the shape of levels, as for `dequantize`.
        quantizer: of these levels.
        flow: from x and z to v.
        encoder: of q(z|x) (paper equation 5); None for a model without z.
        prior_flow: from z to standard normal noise; None where p(z) is standard normal.
        dequantizer: of q(u|x); None where u is uniform.
        labels: of the images, int32 `[batch]`; needed with `class_codes`, else -1 or None for none.
        class_codes: z as a function of the label, in the place of encoder and prior; None where there is none.
        prior_affine: of a prior over z that knows labels; None where it knows none.
        class_log_probabilities: log p(y), `[classes]`, for either.
        training: whether the encoders normalise by the statistics of the batch.
    """
    z, prior_noise, log_prior = None, None, zero_per_image(levels)
    kl = log_prior
    if encoder is not None:
        inputs = quantizer.edges(levels)
        mean, log_variance = encoder(inputs, training=True) if training else encoder.infer(inputs)
        z = mean + tf.exp(log_variance / 2) * z_noise
        log_posterior = -0.5 * tf.reduce_sum(log_variance + tf.square(z_noise) + math.log(2 * math.pi), -1)
        prior_noise, log_prior = _prior(prior_flow, prior_affine, class_log_probabilities, z, labels)
        kl = log_posterior - log_prior
    elif class_codes is not None:
        z, log_prior = class_codes(labels), tf.gather(class_log_probabilities, labels)
        kl = -log_prior
    u, dequantization = dequantize(levels, u_noise, quantizer=quantizer, dequantizer=dequantizer, training=training)
    v, log_det = flow.forward_and_log_det(quantizer.within(levels, u), z)
    reconstruction = -standard_normal_log_prob(v) - log_det
    nats = reconstruction + kl + dequantization
    bits = quantizer.bits_per_dim(nats, math.prod(levels.shape[1:]))
    return Elbo(reconstruction, kl, dequantization, bits), Latents(prior_noise, log_prior, v)


def dequantize(
    levels: tf.Tensor, u_noise: tf.Tensor, *, quantizer: Quantizer, dequantizer: Dequantizer | None, training: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns u, the place of x within the bins of the pixels, and log q(u|x), `[batch]`, in nats.

    Args:
        levels: of pixels, float32 `[batch, height, width, channels]`.
        u_noise: float32 of the shape of levels: standard normal for a dequantizer; without one u itself, uniform in
            [0, 1), whose log density is 0.
        quantizer: of these levels.
        dequantizer: of q(u|x), reparametrised; None where u is uniform.
        training: as for `negative_elbo`.
    """
    if dequantizer is None:
        return u_noise, zero_per_image(levels)
    u_noise = tf.convert_to_tensor(u_noise, levels.dtype)
    u, log_det = dequantizer.call(quantizer.edges(levels), u_noise, training)
    return u, standard_normal_log_prob(u_noise) - log_det


def prior_of_each_class(
    prior_flow: PriorFlow | None, prior_affine: ClassAffine, class_log_probabilities: tf.Tensor, z: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what the prior makes of z by each label y.

    Args:
        prior_flow: None where there is none.
        prior_affine: that stands before it.
        class_log_probabilities: log p(y), `[classes]`.
        z: `[batch, d_z]`.

    Returns:
        The standard normal noise, `[batch, classes, d_z]`, and log p(z, y), `[batch, classes]`.
    """
    moved, log_det = prior_affine(z)
    classes, latent_dim = moved.shape[1:]
    noise, log_prob = _prior(prior_flow, None, None, tf.reshape(moved, [-1, latent_dim]), None)
    log_joint = tf.reshape(log_prob, [-1, classes]) + log_det + class_log_probabilities
    return tf.reshape(noise, [-1, classes, latent_dim]), log_joint


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


def _prior(
    prior_flow: PriorFlow | None,
    prior_affine: ClassAffine | None,
    class_log_probabilities: tf.Tensor | None,
    z: tf.Tensor,
    labels: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the standard normal noise behind z, and log p(z), or log p(z, y) of those with a label."""
    if prior_affine is not None:
        return by_label(*prior_of_each_class(prior_flow, prior_affine, class_log_probabilities, z), labels)
    if prior_flow is None:
        return z, standard_normal_log_prob(z)
    noise, log_det = prior_flow.forward_and_log_det(z)
    return noise, standard_normal_log_prob(noise) + log_det


def standard_normal_log_prob(x: tf.Tensor) -> tf.Tensor:
    """Returns log N(x; 0, I) of each entry of the batch, `[batch]`, for x `[batch, ...]`."""
    axes: list[int] = list(range(1, len(x.shape)))
    dimensions = product(sizes(x)[1:], x.dtype)
    return -0.5 * (tf.reduce_sum(tf.square(x), axes) + dimensions * math.log(2 * math.pi))
