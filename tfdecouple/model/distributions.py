"""The distributions of the model: p(z), q(z|x), p(x|z) and q(u|x), and the bound that they give together."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.arguments import as_images, as_labels, as_pixel_noise, as_z
from tfdecouple.errors import UserError
from tfdecouple.model.networks import Networks
from tfdecouple.model.objective import (
    Elbo,
    Latents,
    dequantize,
    negative_elbo,
    prior_of_each_class,
    standard_normal_log_prob,
)
from tfdecouple.runtime.autograph import unconverted
from tfdecouple.runtime.rematerialization import backward_memory, backward_mode
from tfdecouple.runtime.shapes import sizes


@unconverted
class Distributions(Networks):
    """The networks, as the distributions that they parametrise.

    Args:
        config: the architecture, or its plain dict.
        **kwargs: of `Networks`.

    >>> from tfdecouple import DecoupledModel
    >>> from tfdecouple.config import ModelConfig
    >>> model = DecoupledModel(ModelConfig(
    ...     image_size=8, latent_dim=4, steps=(1, 1), hidden_channels=(4, 4), encoder_channels=(4,), prior_hidden=4
    ... ))
    >>> model.initialize(tf.zeros([2, 8, 8, 3], tf.uint8))
    >>> z = model.prior.sample(5, seed=0)
    >>> z.shape.as_list(), model.likelihood(z).batch_shape.as_list()
    ([5, 4], [5])
    """

    @property
    def prior(self) -> tfd.Distribution:
        """p(z): a distribution over z `[d_z]`, float32.

        Of a model that knows labels it is the mixture over them, whose parts are `prior_of`.

        Raises:
            UserError: for a model without z, or whose z is a function of the label.
            NotInitializedError: for a model without weights.
        """
        self._require_latent("a prior over z", density=True)
        self.require_initialized()
        if self.prior_affine is None:
            return self._prior_behind([], [])
        of_labels = self._prior_behind([self.prior_affine.as_bijector()], [self.config.classes])
        weights = tfd.Categorical(logits=self.class_log_probabilities)
        return tfd.MixtureSameFamily(weights, of_labels, name="prior")

    def prior_of(self, labels: Any) -> tfd.Distribution:
        """p(z|y), the prior over z of labels.

        Args:
            labels: whole numbers `[batch]`.

        Returns:
            A distribution of batch shape `[batch]` and event shape `[d_z]`.

        Raises:
            UserError: for a model whose prior knows no labels.
            DataError: for an unknown label.
            NotInitializedError: for a model without weights.
        """
        self._require_latent("a prior over z", density=True)
        self._require_classes()
        self.require_initialized()
        labels = as_labels(labels, None, self.config.classes, required=True)
        assert self.prior_affine is not None and labels is not None
        return self._prior_behind([self.prior_affine.as_bijector(labels)], tf.shape(labels))

    def _prior_behind(self, first: list[tfb.Bijector], batch: Any) -> tfd.Distribution:
        """Returns the distribution of z, of this batch shape, that `first` and then the prior's flow make normal."""
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), 1.0), [self.config.latent_dim])
        flow = [] if self.prior_flow is None else [self.prior_flow.as_bijector()]
        # Of a chain the last one comes first.
        maps = [*flow, *first]
        return tfd.TransformedDistribution(base, tfb.Invert(tfb.Chain(maps)), name="prior") if maps else base

    def posterior(self, images: Any) -> tfd.Distribution:
        """q(z|x), a diagonal Gaussian over z (paper equation 5).

        Args:
            images: uint8 `[batch, height, width, channels]`.

        Returns:
            A distribution of batch shape `[batch]` and event shape `[d_z]`.

        Raises:
            UserError: for a model without z, or whose z is a function of the label.
            DataError: for images of another shape or type.
            NotInitializedError: for a model without weights.
        """
        self._require_latent("a posterior over z", density=True)
        self.require_initialized()
        assert self.encoder is not None
        mean, log_variance = self.encoder.infer(self.quantizer.edges(self._checked_levels(images)))
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_variance / 2))

    def likelihood(self, z: Any = None) -> tfd.Distribution:
        """p(x|z), a density over x in [-1, 1), x = 2*(k + u)/n_bins - 1 for level k and noise u.

        Args:
            z: float32 `[..., d_z]`; None for a model without z, whose likelihood is p(x).

        Returns:
            A distribution whose batch shape is that of z and whose event shape is `[height, width, channels]`. Its
            `log_prob` takes leading sample dimensions.

        Raises:
            UserError: where z is missing or superfluous.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        z = as_z(z, self._d_z)
        batch = () if z is None else tf.shape(z)[:-1]
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), tf.ones(batch)), self.config.image_shape)
        return tfd.TransformedDistribution(base, tfb.Invert(self.flow.as_bijector(condition=z)), name="likelihood")

    def elbo(self, images: Any, seed: Any = None, training: bool = False, labels: Any = None) -> Elbo:
        """Returns the negative evidence lower bound of each image, an upper bound of -log p(x), by its terms.

        It is taken at one draw of z and of the dequantization noise. With the label y of an image it is a bound of
        -log p(x, y).

        Args:
            images: uint8 `[batch, height, width, channels]`.
            seed: whole number or `[2]` integer tensor; None draws a fresh one, in a `tf.function` at each of its calls.
            training: whether to train on it, in a loop of one's own: the encoder then normalises by the statistics of
                the batch and moves its averages of them, by which it normalises afterwards.
            labels: of the images, whole numbers `[batch]`, for a model that knows labels. Where z is a function of the
                label all must be given; elsewhere None or -1 stands for none.

        Raises:
            DataError: for images of another shape or type, or for missing or unknown labels.
            UserError: for another seed.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        levels = self._checked_levels(images)
        batch = tf.shape(levels)[0]
        z_noise = randomness.normal([batch, self.config.latent_dim], randomness.fold(seed, "z"))
        u_noise = randomness.pixel_noise(tf.shape(levels), randomness.fold(seed, "u"), self.config.has_dequantizer)
        return self.elbo_from_noise(images, z_noise, u_noise, training, labels)

    def elbo_from_noise(
        self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
    ) -> Elbo:
        """As `elbo`, with given noise and without looking whether the model is initialised.

        Args:
            images: uint8 `[batch, height, width, channels]`.
            z_noise: standard normal, float32 `[batch, d_z]`; ignored without z, or where it is a function of the label.
            u_noise: float32 of the shape of images, as for `dequantize`.
            training: whether the encoders normalise by the statistics of the batch.
            labels: as for `elbo`.
        """
        return self.elbo_and_latents(images, z_noise, u_noise, training, labels)[0]

    def elbo_and_latents(
        self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
    ) -> tuple[Elbo, Latents]:
        """As `elbo_from_noise`, with the latents that the bound was taken at."""
        levels = self._checked_levels(images)
        labels = self._labels_of(labels, levels)
        if levels.shape[0] == 0:
            noise = tf.zeros([0, self.config.latent_dim]) if self.config.has_encoder else None
            return Elbo(*[tf.zeros([0])] * 4), Latents(noise, tf.zeros([0]), tf.zeros_like(levels))
        # A loop of a user's own announces no backward pass, but will take one.
        announced = backward_memory("keep") if training and backward_mode() is None else contextlib.nullcontext()
        with announced:
            return negative_elbo(
                levels,
                z_noise,
                u_noise,
                quantizer=self.quantizer,
                flow=self.flow,
                encoder=self.encoder,
                prior_flow=self.prior_flow,
                dequantizer=self.dequantizer,
                labels=labels,
                class_codes=self.code_net,
                prior_affine=self.prior_affine,
                class_log_probabilities=self.class_log_probabilities if self.config.has_classes else None,
                training=training,
            )

    def dequantize(self, images: Any, noise: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws u, the places in the bins of the pixels, from q(u|x): x = 2*(k + u)/n_bins - 1 for level k.

        Where `model.dequantization` is "uniform", u is the noise itself. Both results are differentiable by the
        noise and the weights.

        Args:
            images: uint8 `[batch, height, width, channels]`.
            noise: of the shape of images: standard normal for a learned q(u|x), else uniform in [0, 1).

        Returns:
            u, float32 of that shape, and log q(u|x), float32 `[batch]`, in nats. Of a learned q(u|x) u lies in (0, 1)
            but for the rounding of float32, which can make it 0 or 1.

        Raises:
            DataError: for images of another shape or type.
            UserError: for noise of another shape.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        levels = self._checked_levels(images)
        noise = as_pixel_noise(noise, levels)
        return dequantize(levels, noise, quantizer=self.quantizer, dequantizer=self.dequantizer, training=False)

    def log_joint(self, levels: tf.Tensor) -> tf.Tensor:
        """Returns log p(x, y) of each label, but for a term of each image, `[batch, classes]`; see `classify`."""
        if self.code_net is None:
            assert self.encoder is not None and self.prior_affine is not None
            z = self.encoder.infer(self.quantizer.edges(levels))[0]
            return prior_of_each_class(self.prior_flow, self.prior_affine, self.class_log_probabilities, z)[1]
        x, found = self.quantizer.centres(levels), []
        for code in tf.unstack(self.code_net.codes()):
            v, log_det = self.flow.forward_and_log_det(x, tf.repeat(code[None], tf.shape(x)[0], 0))
            found.append(standard_normal_log_prob(v) + log_det)
        return tf.stack(found, -1) + self.class_log_probabilities

    def z_from_noise(self, noise: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
        """Maps standard normal noise `[batch, d_z]` to draws of z from the prior.

        Args:
            noise: ignored where z is a function of the label.
            labels: int32 `[batch]`, for a model that knows labels.
        """
        if self.code_net is not None:
            return self.code_net(labels)
        z = noise if self.prior_flow is None else self.prior_flow.inverse_and_log_det(noise)[0]
        return z if self.prior_affine is None else self.prior_affine.inverse(z, labels)

    def drawn_labels(self, first: int, last: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns the labels of the samples from number `first` to before `last`, int32, drawn from p(y)."""
        normal = randomness.normal_part(last - first, first, seed)
        borders = tf.cumsum(tf.exp(self.class_log_probabilities))[:-1]
        return tf.searchsorted(borders, (1 + tf.math.erf(normal / math.sqrt(2))) / 2, side="right")

    def wanted_labels(self, labels: Any) -> Any:
        """Returns the labels that come with images, None for a model that knows none."""
        return labels if self.config.has_classes else None

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Turns -log p(x), x in [-1, 1), in nats per image, into bits per colour value of the discrete image."""
        return self.quantizer.bits_per_dim(nats, math.prod(self.config.image_shape))

    def _checked_levels(self, images: Any) -> tf.Tensor:
        return self.quantizer.levels(as_images(images, self.config.image_shape))

    def _labels_of(self, labels: Any, levels: tf.Tensor) -> tf.Tensor | None:
        return as_labels(labels, sizes(levels)[0], self.config.classes, self.config.has_class_codes)

    def _require_latent(self, what: str, density: bool = False) -> None:
        if density and self.config.has_class_codes:
            raise UserError(
                "z of this model is a function of the label (model.prior is 'classes'), so there is no such thing as "
                f"{what}"
            )
        if not self.config.has_latent:
            raise UserError(f"this model has no z (model.conditioning is 'none'), so it has no such thing as {what}")

    @property
    def _d_z(self) -> int:
        return self.config.latent_dim if self.config.has_latent else 0
