"""The model whole: p(z), q(z|x), p(x|z), and what one does with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.arguments import (
    as_codes,
    as_equally_many,
    as_images,
    as_pixel_noise,
    as_step,
    as_z,
    number,
    numbers,
    whole_number,
)
from tfdecouple.errors import InversionError, UserError
from tfdecouple.exactness import far_from_training, listed, require_finite, require_same, warn_of_far_images
from tfdecouple.networks.assembly import Codes, Networks
from tfdecouple.objective import Elbo, Latents, dequantize, negative_elbo
from tfdecouple.runtime.autograph import unconverted

__all__ = ["Codes", "DecoupledModel", "Elbo", "far_from_training"]

# How many images `sample`, `interpolate` and the like decode at once: memory, not a result, depends on it.
_CHUNK = 64
# And of how many `sample` draws z at once.
_Z_CHUNK = 4096


@keras.saving.register_keras_serializable(package="tfdecouple")
@unconverted
class DecoupledModel(Networks):
    """Encoder, prior and flow of the paper, built and ready for weights.

    Images go in and come out as uint8 `[batch, height, width, 3]` with values 0..255, at any `n_bits`.

    >>> from tfdecouple.config import ModelConfig
    >>> config = ModelConfig(
    ...     image_size=8, latent_dim=4, steps=(1, 1), hidden_channels=(4, 4), encoder_channels=(4,), prior_hidden=4
    ... )
    >>> model = DecoupledModel(config)
    >>> images = tf.cast(tf.random.stateless_uniform([2, 8, 8, 3], [0, 1], 0, 256, tf.int32), tf.uint8)
    >>> model.initialize(images)
    >>> bool(tf.reduce_all(model.decode(*model.encode(images)) == images))
    True

    Args:
        config: the architecture, or its plain dict.
        **kwargs: of `keras.Model`.
    """

    def call(self, images: tf.Tensor, training: bool = False) -> Codes:
        """Keras' entry: the same as `encode`."""
        return self.encode(images)

    # --- distributions ---

    @property
    def prior(self) -> tfd.Distribution:
        """p(z): a distribution over z `[d_z]`, float32.

        Raises:
            UserError: for a model without z.
            NotInitializedError: for a model without weights.
        """
        self._require_latent("a prior over z")
        self.require_initialized()
        base = tfd.Sample(tfd.Normal(0.0, 1.0), [self.config.latent_dim])
        if self.prior_flow is None:
            return base
        return tfd.TransformedDistribution(base, tfb.Invert(self.prior_flow.as_bijector()), name="prior")

    def posterior(self, images: Any) -> tfd.Distribution:
        """q(z|x), a diagonal Gaussian over z (paper equation 5).

        Args:
            images: uint8 `[batch, height, width, 3]`.

        Returns:
            A distribution of batch shape `[batch]` and event shape `[d_z]`.

        Raises:
            UserError: for a model without z.
            DataError: for images of another shape or type.
            NotInitializedError: for a model without weights.
        """
        self._require_latent("a posterior over z")
        self.require_initialized()
        levels = self._levels_of(images)
        if levels.shape[0] == 0:
            # A convolution has no answer to an empty batch.
            mean = log_variance = tf.zeros([0, self.config.latent_dim])
        else:
            assert self.encoder is not None
            mean, log_variance = self.encoder.infer(self.quantizer.edges(levels))
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_variance / 2))

    def likelihood(self, z: Any = None) -> tfd.Distribution:
        """p(x|z), a density over x in [-1, 1), x = 2*(k + u)/n_bins - 1 for level k and noise u.

        Args:
            z: float32 `[..., d_z]`; None for a model without z, whose likelihood is p(x).

        Returns:
            A distribution whose batch shape is that of z and whose event shape is `[height, width, 3]`. Its `log_prob`
            takes leading sample dimensions.

        Raises:
            UserError: where z is missing or superfluous.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        z = as_z(z, self._d_z)
        batch = () if z is None else tf.shape(z)[:-1]
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), tf.ones(batch)), self.config.image_shape)
        return tfd.TransformedDistribution(base, tfb.Invert(self.flow.as_bijector(condition=z)), name="likelihood")

    def elbo(self, images: Any, seed: Any = None, training: bool = False) -> Elbo:
        """Returns the negative evidence lower bound of each image, an upper bound of -log p(x), by its terms.

        It is taken at one draw of z and of the dequantization noise.

        Args:
            images: uint8 `[batch, height, width, 3]`.
            seed: whole number or `[2]` integer tensor; None draws a fresh one.
            training: whether to train on it, in a loop of one's own: the encoder then normalises by the statistics of
                the batch and moves its averages of them, by which it normalises afterwards.

        Raises:
            DataError: for images of another shape or type.
            UserError: for another seed.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        levels = self._levels_of(images)
        batch = tf.shape(levels)[0]
        z_noise = randomness.normal([batch, self.config.latent_dim], randomness.fold(seed, "z"))
        u_noise = randomness.pixel_noise(tf.shape(levels), randomness.fold(seed, "u"), self.config.has_dequantizer)
        return self.elbo_from_noise(images, z_noise, u_noise, training)

    def elbo_from_noise(self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False) -> Elbo:
        """As `elbo`, with given noise and without looking whether the model is initialised.

        Args:
            images: uint8 `[batch, height, width, 3]`.
            z_noise: standard normal, float32 `[batch, d_z]`; ignored without z.
            u_noise: float32 of the shape of images, as for `dequantize`.
            training: whether the encoders normalise by the statistics of the batch.
        """
        return self.elbo_and_latents(images, z_noise, u_noise, training)[0]

    def elbo_and_latents(
        self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False
    ) -> tuple[Elbo, Latents]:
        """As `elbo_from_noise`, with the latents that the bound was taken at."""
        levels = self._levels_of(images)
        if levels.shape[0] == 0:
            noise = tf.zeros([0, self.config.latent_dim]) if self.config.has_latent else None
            return Elbo(*[tf.zeros([0])] * 4), Latents(noise, tf.zeros([0]), tf.zeros_like(levels))
        return negative_elbo(
            levels,
            z_noise,
            u_noise,
            quantizer=self.quantizer,
            flow=self.flow,
            encoder=self.encoder,
            prior_flow=self.prior_flow,
            dequantizer=self.dequantizer,
            training=training,
        )

    def dequantize(self, images: Any, noise: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws u, the places in the bins of the pixels, from q(u|x): x = 2*(k + u)/n_bins - 1 for level k.

        Where `model.dequantization` is "uniform", u is the noise itself. Both results are differentiable by the
        noise and the weights.

        Args:
            images: uint8 `[batch, height, width, 3]`.
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
        levels = self._levels_of(images)
        noise = as_pixel_noise(noise, levels)
        if levels.shape[0] == 0:
            return noise, tf.zeros([0])
        return dequantize(levels, noise, quantizer=self.quantizer, dequantizer=self.dequantizer, training=False)

    # --- codes ---

    def encode(self, images: Any, verify: bool = False) -> Codes:
        """Encodes images, deterministically: z is the posterior mean, v the flow of the pixels' bin centres.

        Args:
            images: uint8 `[batch, height, width, 3]`.
            verify: decode again and compare. Images far from those of the training, such as a checkerboard of two
                saturated colours, can be lost; without `verify` an `ExactnessWarning` names images that are so far off
                (see `far_from_training`).

        Returns:
            `Codes(z, v)`.

        Raises:
            InversionError: with `verify`, where an image does not come back, naming it; in any case where a code is
                not finite.
            DataError: for images of another shape or type.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        levels = self._levels_of(images)
        if levels.shape[0] == 0:
            # A convolution has no answer to an empty batch.
            z = tf.zeros([0, self.config.latent_dim]) if self.config.has_latent else None
            return Codes(z, tf.zeros_like(levels))
        codes = self.encode_levels(levels)
        if tf.executing_eagerly():
            require_finite("encode gave codes that are not finite", codes.v, *([] if codes.z is None else [codes.z]))
            if verify:
                # Not through decode(), whose own complaint about NaN would not say which images are lost altogether.
                x = self.flow.inverse_and_log_det(codes.v, codes.z)[0]
                require_same(self.pixels(x), x, self.quantize_images(images), self.config.alpha)
            else:
                warn_of_far_images(codes.v)
        return codes

    def decode(self, z: Any, v: Any) -> tf.Tensor:
        """Turns codes into images: `decode(*encode(images))` returns the very same pixels.

        Args:
            z: float32 `[batch, d_z]`; None for a model without z.
            v: float32 `[batch, height, width, 3]`.

        Returns:
            uint8 `[batch, height, width, 3]`.

        Raises:
            UserError: where z is missing or superfluous, or a shape does not fit.
            InversionError: where an image is not finite, naming it.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        z, v = as_codes(z, v, self._d_z, self.config.image_shape)
        if v.shape[0] == 0:
            return tf.zeros(v.shape, tf.uint8)
        try:
            x = self.flow.inverse_and_log_det(v, z)[0]
        except tf.errors.InvalidArgumentError as error:
            if "not invertible" not in error.message:
                raise
            every = listed(range(v.shape[0]))
            raise InversionError(
                f"a 1x1 convolution is singular or not finite, for image {every} of the batch"
            ) from error
        if tf.executing_eagerly():
            require_finite("decode gave pixels that are not finite", x)
        return self.pixels(x)

    def sample(self, n: int, temperature: float = 1.0, seed: Any = None) -> tf.Tensor:
        """Draws new images: z ~ p(z), v ~ temperature * N(0, I).

        However many are drawn, memory holds the noise of a few; of the images it holds two copies at the end.

        Args:
            n: how many.
            temperature: acts on v alone.
            seed: whole number or `[2]` integer tensor; None draws a fresh one.

        Returns:
            uint8 `[n, height, width, 3]`.

        Raises:
            UserError: where n is no whole number from 0 on, the temperature no number from 0 on, for another seed, or
                where memory cannot hold so many images.
            NotInitializedError: for a model without weights.
            InversionError: where an image is not finite.
        """
        self.require_initialized()
        n, temperature = whole_number(n, "n"), number(temperature, "temperature")
        seed = randomness.base_seed(seed)
        z_seed, v_seed = randomness.fold(seed, "z"), randomness.fold(seed, "v")
        d_z, values = self.config.latent_dim, math.prod(self.config.image_shape)
        images = []
        try:
            for first in range(0, n, _Z_CHUNK):
                last = min(first + _Z_CHUNK, n)
                z = None
                if self.encoder is not None:
                    noise = randomness.normal_part((last - first) * d_z, first * d_z, z_seed)
                    z = self.z_from_noise(tf.reshape(noise, [-1, d_z]))
                for start in range(first, last, _CHUNK):
                    count = min(_CHUNK, last - start)
                    v = randomness.normal_part(count * values, start * values, v_seed)
                    v = temperature * tf.reshape(v, [count, *self.config.image_shape])
                    images.append(self.decode(None if z is None else z[start - first : start - first + count], v))
            return tf.concat(images, 0) if images else tf.zeros([0, *self.config.image_shape], tf.uint8)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            raise UserError(
                f"out of memory with {n:,} images of {values:,} bytes; draw fewer at a time, each part with a seed of "
                "its own"
            ) from error

    def switch(self, a: Any, b: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Switches the global codes of two batches of images (paper section 3.2, Figure 1).

        Args:
            a: uint8 `[batch, height, width, 3]`.
            b: the same shape.

        Returns:
            (ab, ba), uint8 of that shape: ab has z of a and v of b, ba has z of b and v of a.

        Raises:
            UserError: for a model without z.
            DataError: for images of another shape or type.
        """
        self._require_latent("a switch of z")
        a, b = as_equally_many("switch", a, b, self.config.image_shape)
        codes_a, codes_b = self.encode(a), self.encode(b)
        return self.decode(codes_a.z, codes_b.v), self.decode(codes_b.z, codes_a.v)

    def interpolate(self, a: Any, b: Any, alphas: Sequence[float] | float, betas: Sequence[float] | float) -> tf.Tensor:
        """Interpolates between two batches of images in two dimensions (paper section 3.2, Figure 5).

        Args:
            a: uint8 `[batch, height, width, 3]`.
            b: the same shape.
            alphas: positions between z of a (0) and z of b (1); a number stands for a list of it. Without z they change
                nothing.
            betas: positions between v of a (0) and v of b (1); likewise.

        Returns:
            uint8 `[batch, len(alphas), len(betas), height, width, 3]`; the corners (0, 0) and (1, 1) are a and b.

        Raises:
            DataError: for images of another shape or type.
            UserError: for alphas or betas that are no finite numbers.
        """
        a, b = as_equally_many("interpolate", a, b, self.config.image_shape)
        of_z, of_v = numbers(alphas, "alphas"), numbers(betas, "betas")
        (z_a, v_a), (z_b, v_b) = self.encode(a), self.encode(b)
        count, rows, columns = v_a.shape[0], len(of_z), len(of_v)
        if 0 in (count, rows, columns):
            return tf.zeros([count, rows, columns, *self.config.image_shape], tf.uint8)
        # Both ends are exact: 1 * a + 0 * b is a, to the last bit.
        beta = tf.reshape(tf.constant(of_v, tf.float32), [1, 1, columns, 1, 1, 1])
        v = (1 - beta) * v_a[:, None, None] + beta * v_b[:, None, None]
        v = tf.reshape(tf.repeat(v, rows, 1), [-1, *self.config.image_shape])
        z = None
        if z_a is not None and z_b is not None:
            alpha = tf.reshape(tf.constant(of_z, tf.float32), [1, rows, 1, 1])
            z = (1 - alpha) * z_a[:, None, None] + alpha * z_b[:, None, None]
            z = tf.reshape(tf.repeat(z, columns, 2), [-1, self.config.latent_dim])
        return tf.reshape(self._decode_in_chunks(z, v), [count, rows, columns, *self.config.image_shape])

    def edit(self, images: Any, direction: Any, amount: Any) -> tf.Tensor:
        """Moves z of images along a direction, and leaves their v as it is.

        Args:
            images: uint8 `[batch, height, width, 3]`.
            direction: of `tfdecouple.load_directions`, or any `[d_z]`, or one for each image, `[batch, d_z]`.
            amount: how far, in multiples of the direction: a number, or one for each image, `[batch]`. At 0 an image
                comes back to the very same pixels.

        Returns:
            uint8 of the shape of images.

        Raises:
            UserError: for a model without z, or a direction or an amount of another shape or not finite.
            DataError: for images of another shape or type.
        """
        self._require_latent("a direction in z")
        images = as_images(images, self.config.image_shape)
        step = as_step(direction, amount, images.shape[0], self.config.latent_dim)
        z, v = self.encode(images)
        assert z is not None
        return self.decode(z + step, v)

    # --- pieces that other modules build graphs from ---

    def encode_levels(self, levels: tf.Tensor) -> Codes:
        """`encode` of pixel levels, float32 `[batch, height, width, 3]` in 0..n_bins - 1, without any check."""
        z = None if self.encoder is None else self.encoder.infer(self.quantizer.edges(levels))[0]
        return Codes(z, self.flow.forward_and_log_det(self.quantizer.centres(levels), z)[0])

    def z_from_noise(self, noise: tf.Tensor) -> tf.Tensor:
        """Maps standard normal noise `[batch, d_z]` to draws of z from the prior."""
        return noise if self.prior_flow is None else self.prior_flow.inverse_and_log_det(noise)[0]

    def pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images of x in [-1, 1); what lies outside is clipped."""
        return self.quantizer.pixels(x)

    def levels_of(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the levels 0..n_bins - 1 of uint8 images, float32 of the same shape."""
        return self.quantizer.levels(images)

    def quantize_images(self, images: Any) -> tf.Tensor:
        """Returns images as the model sees them: unchanged at 8 bits, else with their levels k as k * 256 / n_bins.

        Args:
            images: uint8 `[batch, height, width, 3]`.

        Raises:
            DataError: for images of another shape or type.
        """
        return self.quantizer.quantize(as_images(images, self.config.image_shape))

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Turns -log p(x), x in [-1, 1), in nats per image, into bits per colour value of the discrete image."""
        return self.quantizer.bits_per_dim(nats, math.prod(self.config.image_shape))

    def _levels_of(self, images: Any) -> tf.Tensor:
        return self.quantizer.levels(as_images(images, self.config.image_shape))

    def _require_latent(self, what: str) -> None:
        if not self.config.has_latent:
            raise UserError(f"this model has no z (model.conditioning is 'none'), so it has no such thing as {what}")

    @property
    def _d_z(self) -> int:
        return self.config.latent_dim if self.config.has_latent else 0

    def _decode_in_chunks(self, z: tf.Tensor | None, v: tf.Tensor) -> tf.Tensor:
        images = [
            self.decode(None if z is None else z[start : start + _CHUNK], v[start : start + _CHUNK])
            for start in range(0, v.shape[0], _CHUNK)
        ]
        return tf.concat(images, 0) if images else tf.zeros([0, *self.config.image_shape], tf.uint8)
