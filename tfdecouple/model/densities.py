"""The densities of a model: prior, posterior, likelihood, evidence lower bound, and scores that follow from them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.arguments import ArrayLike, as_images, as_labels, as_noise, as_z
from tfdecouple.errors import UserError
from tfdecouple.layers.base import disable_autograph
from tfdecouple.model.any_size import find_both_bins
from tfdecouple.model.base_model import BaseModel, require_initialized
from tfdecouple.model.objective import (
    BoundTerms,
    Latents,
    compute_label_log_probabilities,
    evaluate_bound,
    evaluate_log_joint,
)
from tfdecouple.model.outlier_scores import OutlierScores, score_latents
from tfdecouple.numerics.arithmetic import get_sizes, multiply_sizes
from tfdecouple.numerics.kernels import use_kernels


@disable_autograph
class Densities(BaseModel):
    """The methods that compute densities of images and of codes."""

    def prior(self, labels: ArrayLike | None = None) -> tfd.Distribution:
        """Returns the prior p(z), a TFP distribution of event shape `[d_z]`; for labels y p(z|y), of batch shape `[n]`.

        Without `labels`, the p(z) of a model with labels is the mixture of p(z|y) over all labels y, weighted by p(y).

        Args:
            labels: whole numbers `[n]`, labels of the model; None for p(z).
        """
        self._require_latent("a prior over z", density=True)
        require_initialized(self)
        if labels is not None:
            labels = as_labels(labels, None, self.config.classes, required=True)
        if self.prior_affine is None:
            return self._make_prior([], [])
        if labels is not None:
            return self._make_prior([self.prior_affine.as_bijector(labels)], tf.shape(labels))
        of_labels = self._make_prior([self.prior_affine.as_bijector()], [self.config.classes])
        weights = tfd.Categorical(logits=compute_label_log_probabilities(self.config))
        return tfd.MixtureSameFamily(weights, of_labels, name="prior")

    def _make_prior(self, first: list[tfb.Bijector], batch: tf.Tensor | Sequence[int]) -> tfd.Distribution:
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), 1.0), [self.config.latent_dim])
        flow = [] if self.prior_flow is None else [self.prior_flow.as_bijector()]
        # `tfb.Chain` applies the last bijector of its list first.
        maps = [*flow, *first]
        return tfd.TransformedDistribution(base, tfb.Invert(tfb.Chain(maps)), name="prior") if maps else base

    def posterior(self, images: ArrayLike) -> tfd.Distribution:
        """Returns q(z|x), a diagonal Gaussian `[batch]` of event shape `[d_z]`, for uint8 images (paper equation 5)."""
        self._require_latent("a posterior over z", density=True)
        require_initialized(self)
        bins = self.quantizer.find_bins(self.any_size.fit_images(images).shrunk)
        assert self.encoder is not None
        mean, log_variance = self.encoder.run_inference(self.quantizer.place_at_edges(bins))
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_variance / 2))

    def likelihood(self, z: ArrayLike | None = None) -> tfd.Distribution:
        """Returns p(x|z), a TFP distribution of x = 2*(k + u)/n_bins - 1 in [-1, 1), for bins k of pixels and noise u.

        The event shape is `[height, width, channels]`. `log_prob` also takes x with further leading dimensions.

        Args:
            z: global codes, float32 `[..., d_z]`, whose leading axes are the batch shape of the distribution; None for
                a model without z, whose likelihood is p(x).
        """
        require_initialized(self)
        z = as_z(z, self._d_z)
        batch = () if z is None else tf.shape(z)[:-1]
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), tf.ones(batch)), self.config.image_shape)
        return tfd.TransformedDistribution(base, tfb.Invert(self.flow.as_bijector(condition=z)), name="likelihood")

    def bound(
        self,
        images: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        seed: randomness.Seed = None,
        noise: tuple[ArrayLike, ArrayLike] | None = None,
        training: bool = False,
    ) -> BoundTerms:
        """Returns the terms of the negative evidence lower bound of each image, an upper bound of -log p(x).

        The bound is evaluated at one draw of z and of the dequantization noise. For an image with a label y it is a
        bound of -log p(x, y).

        Images may have another size than `config.image_shape`, as for `encode`. The result is still a bound, because
        q(z|x) may depend on x in any way, here through the resized image. The terms include the padding: a padded image
        is at most as probable as the image without padding. `bits_per_dim` divides the bits of the padded image by the
        number of colour values without padding.

        Args:
            images: uint8 images, `[batch, height, width, channels]`.
            labels: labels of the images, whole numbers `[batch]`, for a model with labels. If z is a function of the
                label, every image needs a label; otherwise None or -1 means no label.
            seed: whole number or `[2]` integer tensor; None for a fresh seed (in a `tf.function`, a fresh one in each
                call).
            noise: the noise of z and of the dequantization, instead of a seed: standard normal, float32 `[batch, d_z]`,
                which a model without an encoder ignores; and float32 of the shape of the padded images, standard normal
                for a learned q(u|x), otherwise uniform in [0, 1).
            training: whether the caller's own loop trains on the bound; the encoder then normalises by the statistics
                of the batch and updates its moving statistics.
        """
        return self._evaluate_bound(images, labels, seed, noise, training)[0]

    def outlier_scores(
        self,
        images: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        seed: randomness.Seed = None,
        noise: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> OutlierScores:
        """Returns scores of how unlike the training data each image is, computed with the bound at one draw of noise.

        If z is a function of the label and no labels are given, each image is scored with its most probable label. The
        arguments are those of `bound`.

        >>> from tfdecouple import DecoupledModel, ModelConfig
        >>> config = ModelConfig(image_shape=(4, 4, 3), conditioning="none", steps=(1, 1), hidden_channels=(4, 4))
        >>> model, images = DecoupledModel(config), tf.zeros([2, 4, 4, 3], tf.uint8)
        >>> model.initialize(images)
        >>> model.outlier_scores(images, seed=0).shell.shape.as_list()
        [2]
        """
        if labels is None and self.config.has_label_codes:
            labels = tf.argmax(self.classify(images), -1, tf.int32)
        return score_latents(self.flow, *self._evaluate_bound(images, labels, seed, noise))

    def _evaluate_bound(
        self,
        images: ArrayLike,
        labels: ArrayLike | None,
        seed: randomness.Seed,
        noise: tuple[ArrayLike, ArrayLike] | None,
        training: bool = False,
    ) -> tuple[BoundTerms, Latents]:
        """Returns the terms of the bound, as `bound` does, and the `Latents` of the same draw."""
        require_initialized(self)
        fitted = self.any_size.fit_images(images)
        shape, config = get_sizes(fitted.padded), self.config
        labels = as_labels(labels, shape[0], config.classes, config.has_label_codes)
        if noise is None:
            z_noise = tf.random.stateless_normal([shape[0], config.latent_dim], randomness.derive_seed(seed, "z"))
            u_noise = randomness.draw_pixel_noise(shape, randomness.derive_seed(seed, "u"), config.has_dequantizer)
        else:
            z_noise, u_noise = noise
            u_noise = as_noise(u_noise, "u_noise", fitted.padded.shape, uniform=not config.has_dequantizer)
            if self.encoder is not None:
                z_noise = as_noise(z_noise, "z_noise", [fitted.padded.shape[0], config.latent_dim])

        def evaluate(
            images: tf.Tensor, encoder_images: tf.Tensor, *draws: tf.Tensor, **options: Any
        ) -> tuple[BoundTerms, Latents]:
            bins, encoder_bins = find_both_bins(self.quantizer.find_bins, images, encoder_images)
            return evaluate_bound(self, bins, *draws[:2], labels=draws[2], encoder_bins=encoder_bins, **options)

        inputs = fitted.padded, fitted.shrunk, z_noise, u_noise, labels
        # An empty batch has no statistics, so the encoder normalises as in evaluation.
        if training and fitted.padded.shape[0] != 0:
            # All activations are kept for the gradients of a user's training loop.
            mode = dataclasses.replace(self.flow.runner.mode, memory="keep")
            with use_kernels(mode.kernels):
                bound, latents = evaluate(*inputs, training=True, runner=functools.partial(self.flow.runner, mode=mode))
        else:
            bound, latents = self.any_size.run_within_memory(evaluate, *inputs)
        if fitted.padded is fitted.shrunk:
            return bound, latents
        padding = multiply_sizes(shape[1:3], tf.float32) / multiply_sizes(fitted.size, tf.float32)
        return bound._replace(bits_per_dim=bound.bits_per_dim * padding), latents

    def classify(self, images: ArrayLike) -> tf.Tensor:
        """Returns log p(y|x) of each label y, float32 `[batch, classes]`: log p(x|y) p(y), normalised over the labels.

        If z is a function of the label, p(x|y) is the density at the bin centres of the pixels, computed by one pass of
        the flow for each label. Otherwise only the prior p(z|y) depends on the label, and is evaluated at the mean of
        q(z|x). `tf.argmax(self.classify(images), -1)` returns the most probable label of each image.
        """
        require_initialized(self)
        if not self.config.has_labels:
            raise UserError("this model has no labels (model.classes is 0)")
        bins = self.quantizer.find_bins(as_images(images, self.config.image_shape))
        return tf.math.log_softmax(evaluate_log_joint(self, bins))
