"""The densities of a model: prior, posterior, likelihood, evidence lower bound; methods of `DecoupledModel`."""

import functools
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.arguments import as_images, as_labels, as_noise, as_z
from tfdecouple.model import objective
from tfdecouple.model.any_size import find_both_bins, fit_images, run_within_memory
from tfdecouple.model.objective import Elbo, Latents, evaluate_class_priors, negative_elbo, standard_normal_log_prob
from tfdecouple.numerics.arithmetic import get_sizes, multiply_sizes
from tfdecouple.numerics.kernels import use_kernels


def prior(model: Any) -> tfd.Distribution:
    """The prior p(z), a TFP distribution of event shape `[d_z]`.

    In a model with labels p(z) is the mixture of p(z|y) (`conditional_prior`) over all labels y, with the weights
    p(y).
    """
    model.require_latent("a prior over z", density=True)
    model.require_initialized()
    if model.prior_affine is None:
        return _make_prior(model, [], [])
    of_labels = _make_prior(model, [model.prior_affine.as_bijector()], [model.config.classes])
    weights = tfd.Categorical(logits=model.class_log_probabilities)
    return tfd.MixtureSameFamily(weights, of_labels, name="prior")


def conditional_prior(model: Any, labels: Any) -> tfd.Distribution:
    """Returns p(z|y) for labels y `[batch]`, a TFP distribution with batch shape `[batch]`, event shape `[d_z]`."""
    model.require_latent("a prior over z", density=True)
    model.require_classes()
    model.require_initialized()
    labels = as_labels(labels, None, model.config.classes, required=True)
    return _make_prior(model, [model.prior_affine.as_bijector(labels)], tf.shape(labels))


def _make_prior(model: Any, first: list[tfb.Bijector], batch: Any) -> tfd.Distribution:
    base = tfd.Sample(tfd.Normal(tf.zeros(batch), 1.0), [model.config.latent_dim])
    flow = [] if model.prior_flow is None else [model.prior_flow.as_bijector()]
    # `tfb.Chain` applies the last bijector of its list first.
    maps = [*flow, *first]
    return tfd.TransformedDistribution(base, tfb.Invert(tfb.Chain(maps)), name="prior") if maps else base


def posterior(model: Any, images: Any) -> tfd.Distribution:
    """Returns q(z|x), a diagonal Gaussian `[batch]` of event shape `[d_z]`, for uint8 images (paper equation 5)."""
    model.require_latent("a posterior over z", density=True)
    model.require_initialized()
    bins = model.quantizer.find_bins(fit_images(model.config, images).shrunk)
    mean, log_variance = model.encoder.run_inference(model.quantizer.place_at_edges(bins))
    return tfd.MultivariateNormalDiag(mean, tf.exp(log_variance / 2))


def likelihood(model: Any, z: Any = None) -> tfd.Distribution:
    """Returns p(x|z), a TFP distribution of x = 2*(k + u)/n_bins - 1 in [-1, 1), for bins k of pixels and noise u.

    The event shape is `[height, width, channels]`. `log_prob` also takes x with further leading dimensions.

    Args:
        z: global codes, float32 `[..., d_z]`, whose leading axes are the batch shape of the distribution; None for
            a model without z, whose likelihood is p(x).
    """
    model.require_initialized()
    z = as_z(z, model._d_z)
    batch = () if z is None else tf.shape(z)[:-1]
    base = tfd.Sample(tfd.Normal(tf.zeros(batch), tf.ones(batch)), model.config.image_shape)
    return tfd.TransformedDistribution(base, tfb.Invert(model.flow.as_bijector(condition=z)), name="likelihood")


def elbo(model: Any, images: Any, seed: Any = None, training: bool = False, labels: Any = None) -> Elbo:
    """Returns the terms of the negative evidence lower bound of each image, an upper bound of -log p(x).

    The bound is evaluated at one draw of z and of the dequantization noise. For an image with a label y it is a
    bound of -log p(x, y).

    Images may have another size than `config.image_shape`, as for `encode`. The result is still a bound, because
    q(z|x) may depend on x in any way, here through the resized image. The terms include the padding: a padded image
    is at most as probable as the image without padding. `bits_per_dim` divides the bits of the padded image by the
    number of colour values without padding.

    Args:
        images: uint8 images, `[batch, height, width, channels]`.
        seed: whole number or `[2]` integer tensor; None for a fresh seed (in a `tf.function`, a fresh one in each
            call).
        training: whether the caller's own loop trains on the bound; the encoder then normalises by the statistics
            of the batch and updates its moving statistics.
        labels: labels of the images, whole numbers `[batch]`, for a model with labels. If z is a function of the
            label, every image needs a label; otherwise None or -1 means no label.
    """
    model.require_initialized()
    shape = get_sizes(fit_images(model.config, images).padded)
    z_noise = tf.random.stateless_normal([shape[0], model.config.latent_dim], randomness.derive_seed(seed, "z"))
    u_noise = randomness.draw_pixel_noise(shape, randomness.derive_seed(seed, "u"), model.config.has_dequantizer)
    return model.elbo_from_noise(images, z_noise, u_noise, training, labels)


def elbo_from_noise(
    model: Any, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
) -> Elbo:
    """Returns the terms of the bound as `elbo` does, but for given noise, and even if the model is not initialised.

    `z_noise` is standard normal, float32 `[batch, d_z]`; a model without z, or whose z is a function of the label,
    ignores it. `u_noise` is the dequantization noise of the padded images, float32, as for `dequantize`. The other
    arguments are those of `elbo`.
    """
    return model.elbo_and_latents(images, z_noise, u_noise, training, labels)[0]


def elbo_and_latents(
    model: Any, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
) -> tuple[Elbo, Latents]:
    """Returns the terms of the bound, as `elbo_from_noise` does, and the `Latents` of the same draw."""
    fitted = fit_images(model.config, images)
    labels = as_labels(labels, get_sizes(fitted.padded)[0], model.config.classes, model.config.has_class_codes)
    shape = fitted.padded.shape
    u_noise = as_noise(u_noise, "u_noise", shape, uniform=not model.config.has_dequantizer)
    if model.encoder is not None:
        z_noise = as_noise(z_noise, "z_noise", [shape[0], model.config.latent_dim])
    # An empty batch has no statistics, so the encoder normalises as in evaluation.
    training = training and fitted.padded.shape[0] != 0

    def evaluate(images: tf.Tensor, encoder_images: tf.Tensor, *draws: Any, **options: Any) -> tuple[Elbo, Latents]:
        bins, encoder_bins = find_both_bins(model.quantizer.find_bins, images, encoder_images)
        return negative_elbo(model, bins, *draws[:2], labels=draws[2], encoder_bins=encoder_bins, **options)

    inputs = fitted.padded, fitted.shrunk, z_noise, u_noise, labels
    if training:
        # All activations are kept for the gradients of a user's training loop.
        mode = model.flow.runner.mode.replace(memory="keep")
        with use_kernels(mode.kernels):
            elbo, latents = evaluate(*inputs, training=True, runner=functools.partial(model.flow.runner, mode=mode))
    else:
        elbo, latents = run_within_memory(model.config, evaluate, *inputs)
    if fitted.size is None:
        return elbo, latents
    padding = multiply_sizes(get_sizes(fitted.padded)[1:3], tf.float32) / multiply_sizes(fitted.size, tf.float32)
    return elbo._replace(bits_per_dim=elbo.bits_per_dim * padding), latents


def dequantize(model: Any, images: Any, noise: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns u, the position of each pixel within its bin, drawn from q(u|x), and log q(u|x), `[batch]`, in nats.

    So x = 2*(k + u)/n_bins - 1 for a pixel in bin k. Images, noise and u are `[batch, height, width, channels]`,
    the images uint8. For a learned q(u|x) the noise is standard normal, and u lies in (0, 1) but float32 may round
    it to 0 or 1. Otherwise the noise is uniform in [0, 1), and u is the noise. Noise and weights get gradients.
    """
    model.require_initialized()
    bins = model.quantizer.find_bins(as_images(images, model.config.image_shape))
    noise = as_noise(noise, "noise", bins.shape, uniform=not model.config.has_dequantizer)
    return objective.dequantize(model, bins, noise)


def classify(model: Any, images: Any) -> tf.Tensor:
    """Returns log p(y|x) of each label y, float32 `[batch, classes]`: log p(x|y) p(y), normalised over the labels.

    If z is a function of the label, p(x|y) is the density at the bin centres of the pixels, computed by one pass of
    the flow for each label. Otherwise only the prior p(z|y) depends on the label, and is evaluated at the mean of
    q(z|x). `tf.argmax(model.classify(images), -1)` returns the most probable label of each image.
    """
    model.require_initialized()
    model.require_classes()
    bins = model.quantizer.find_bins(as_images(images, model.config.image_shape))
    return tf.math.log_softmax(model.evaluate_log_joint(bins))


def evaluate_log_joint(model: Any, bins: tf.Tensor) -> tf.Tensor:
    """Returns log p(x, y) of images, given as `bins`, for each label y, `[batch, classes]`, up to a constant."""
    if model.code_net is None:
        z = model.encoder.run_inference(model.quantizer.place_at_edges(bins))[0]
        return evaluate_class_priors(model, z)[1]
    x, log_probs = model.quantizer.place_at_centres(bins), []
    for code in tf.unstack(model.code_net.compute_codes()):
        v, log_det = model.flow.forward_and_log_det(x, tf.repeat(code[None], tf.shape(x)[0], 0))
        log_probs.append(standard_normal_log_prob(v) + log_det)
    return tf.stack(log_probs, -1) + model.class_log_probabilities
