"""The model whole: p(z), q(z|x), p(x|z), and what one does with them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.arguments import as_floats, as_tensor, number, numbers, whole_number
from tfdecouple.config import ModelConfig, from_plain
from tfdecouple.errors import DataError, ExactnessWarning, InversionError, NotInitializedError, UserError
from tfdecouple.layers import Coupling, InvertibleLinear
from tfdecouple.networks.encoder import Encoder
from tfdecouple.networks.flow import Flow
from tfdecouple.networks.prior import PriorFlow
from tfdecouple.runtime.backend import require_backend
from tfdecouple.runtime.shapes import product, sizes, zero_per_image

# The root mean square of v from which on an image is called far from the training: of the images that the committed
# runs lost none had less than 4.9, of real images none more than 2.7 (docs/RESULTS.md, "What comes back").
FAR = 4.0
# How many images `sample`, `interpolate` and the like decode at once: memory, not a result, depends on it.
_CHUNK = 64
# And of how many `sample` draws z at once.
_Z_CHUNK = 4096


class Codes(NamedTuple):
    """What an image is encoded to.

    Attributes:
        z: the global code, float32 `[batch, d_z]`; None for a model without z.
        v: the local code, float32 `[batch, height, width, 3]`.
    """

    z: tf.Tensor | None
    v: tf.Tensor


class Elbo(NamedTuple):
    """The negative evidence lower bound in its parts, in nats, each float32 `[batch]` (paper equation 2).

    Attributes:
        reconstruction: -log p(x|z).
        kl: log q(z|x) - log p(z), at one draw of z; 0 for a model without z.
        dequantization: log q(u|x); 0 for uniform noise.
        bits_per_dim: their sum in bits per colour value of the image, for pixels 0..2**n_bits - 1.
    """

    reconstruction: tf.Tensor
    kl: tf.Tensor
    dequantization: tf.Tensor
    bits_per_dim: tf.Tensor


@keras.saving.register_keras_serializable(package="tfdecouple")
class DecoupledModel(keras.Model):
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

    def __init__(self, config: ModelConfig | dict[str, Any], **kwargs: Any):
        require_backend()
        super().__init__(**{"name": "decoupled_model", **kwargs})
        self.config = config if isinstance(config, ModelConfig) else from_plain(ModelConfig, config, "model.")
        config = self.config
        self.flow = Flow(config, name="flow")
        self.encoder: Encoder | None = None
        self.prior_flow: PriorFlow | None = None
        if config.has_latent:
            self.encoder = Encoder(
                config.latent_dim, config.encoder_channels, config.encoder_out_channels, name="encoder"
            )
            if config.prior == "flow":
                self.prior_flow = PriorFlow(
                    config.prior_steps,
                    config.prior_hidden,
                    transform=config.prior_transform,
                    alpha=config.prior_alpha,
                    linear=config.linear,
                    name="prior_flow",
                )
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights; the constructor calls it, for the config fixes every shape."""
        if hasattr(self, "initialized"):
            return
        self.flow.build()
        if self.encoder is not None:
            self.encoder.build((None, *self.config.image_shape))
        if self.prior_flow is not None:
            self.prior_flow.build((None, self.config.latent_dim))
        self.initialized = self.add_weight(
            name="initialized", shape=(), dtype="bool", initializer="zeros", trainable=False
        )
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain values."""
        return {"name": self.name, "config": dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DecoupledModel:
        """Builds a model from `get_config()`'s values."""
        return cls(**config)

    def call(self, images: tf.Tensor, training: bool = False) -> Codes:
        """Keras' entry: the same as `encode`."""
        return self.encode(images)

    def compute_output_spec(self, images: Any, training: bool = False) -> Codes:
        """Returns what `call` gives, for a Keras model that is being built around this one: without weights as yet.

        Raises:
            DataError: for images of another shape or type.
            UserError: for a model without z.
        """
        self._require_outputs()
        self._require_images(images)
        z = keras.KerasTensor((images.shape[0], self.config.latent_dim), "float32")
        return Codes(z, keras.KerasTensor((images.shape[0], *self.config.image_shape), "float32"))

    def export(self, filepath: Any, *rest: Any, input_signature: Any = None, **options: Any) -> Any:
        """Keras' export, of `encode` alone; `python -m export` makes checked files of all that the model does.

        Args:
            filepath: see `keras.Model.export`, as for all that is not named here.
            *rest: as there.
            input_signature: of the images; batches of any size by default.
            **options: as there.

        Raises:
            UserError: for a model without z.
            NotInitializedError: for a model without weights.
        """
        self._require_outputs()
        self.require_initialized()
        if input_signature is None:
            input_signature = [keras.InputSpec(dtype="uint8", shape=(None, *self.config.image_shape))]
        return super().export(filepath, *rest, input_signature=input_signature, **options)

    def _require_outputs(self) -> None:
        if not self.config.has_latent:
            raise UserError(
                "this model has no z, and Keras takes no None among the outputs of a model; call encode(images).v in a "
                "layer of your own, or export by python -m export"
            )

    def named_variables(self) -> dict[str, keras.Variable]:
        """Returns every weight by its path, such as `flow/level_0_part_0_step_0/actnorm_1/bias`.

        The paths depend on the config alone: checkpoints and imports go by them.
        """
        return {variable.path.partition("/")[2]: variable for variable in self.variables}

    def parameter_count(self) -> dict[str, int]:
        """Returns the numbers of trainable parameters: of each network, and in total."""
        counts = {"flow": self.flow, "encoder": self.encoder, "prior": self.prior_flow}
        result = {
            name: sum(math.prod(variable.shape) for variable in network.trainable_variables)
            if network is not None
            else 0
            for name, network in counts.items()
        }
        return {**result, "total": sum(result.values())}

    # --- data-dependent start ---

    def initialize(self, images: Any, seed: int = 0, force: bool = False) -> None:
        """Starts the weights from data, once, before training (paper section 2.1 and the reference's procedure).

        Every actnorm gets the scale and shift that give its output mean 0 and standard deviation 1 on these images
        (without dequantisation noise); every coupling starts as the identity and the posterior as N(0, I).

        Args:
            images: uint8 `[batch, height, width, 3]`, a few hundred or more training images.
            seed: of the draw of z with which the prior flow is started.
            force: whether to start anew a model that has weights already, which are lost.

        Raises:
            DataError: for images of another shape or type, or none at all.
            UserError: for a model that has weights already, or within a `tf.function`.
        """
        levels = self._levels_of(images)
        if levels.shape[0] == 0:
            raise DataError("initialize got no images; it needs one at least, and some hundreds for a good start")
        if not tf.executing_eagerly():
            raise UserError("initialize was called within a tf.function; call it outside, once, before training")
        if self._has_weights() and not force:
            raise UserError(
                "this model has weights already, initialised or loaded, and initialize would overwrite them; pass "
                "force=True to start anew"
            )

        def visit(layer: Any, x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
            return layer.initialize(x, condition)

        z = None
        if self.encoder is not None:
            self.encoder.last.reset()
            # The posterior now is N(0, I) for every image: no need to run the encoder.
            z = randomness.normal([levels.shape[0], self.config.latent_dim], randomness.fold(seed, "initialize"))
            if self.prior_flow is not None:
                self.prior_flow.walk(z, None, visit)
        self.flow.walk(self._flow_input(levels, 0.0), z, visit)
        self.initialized.assign(True)

    def require_initialized(self) -> None:
        """Refuses to use a model that was neither initialised nor loaded.

        Raises:
            NotInitializedError: in one line.
        """
        if not self._has_weights():
            raise NotInitializedError(
                "this model is not initialised: call model.initialize(images) with training images, or load a run"
            )

    def _has_weights(self) -> bool:
        # The flag is read outside any function being traced, so that the check holds there too; and as a tensor, for
        # the variable of several devices is true whatever it holds.
        with tf.init_scope():
            return bool(tf.convert_to_tensor(self.initialized.value))

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
            mean, log_variance = self._encode_levels(levels)
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
        z = self._checked_z(z)
        batch = () if z is None else tf.shape(z)[:-1]
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), tf.ones(batch)), self.config.image_shape)
        return tfd.TransformedDistribution(base, tfb.Invert(self.flow.as_bijector(condition=z)), name="likelihood")

    def elbo(self, images: Any, seed: Any = None, training: bool = False) -> Elbo:
        """Returns the negative evidence lower bound of each image, at one draw of z and of the dequantisation noise.

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
        u_noise = randomness.uniform(tf.shape(levels), randomness.fold(seed, "u"))
        return self.elbo_from_noise(images, z_noise, u_noise, training)

    def elbo_from_noise(self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False) -> Elbo:
        """As `elbo`, with given noise and without looking whether the model is initialised.

        Args:
            images: uint8 `[batch, height, width, 3]`.
            z_noise: standard normal, float32 `[batch, d_z]`; ignored without z.
            u_noise: uniform in [0, 1), float32 of the shape of images.
            training: whether the encoder normalises by the statistics of the batch.
        """
        levels = self._levels_of(images)
        if levels.shape[0] == 0:
            return Elbo(*[tf.zeros([0])] * 4)
        z, kl = None, zero_per_image(levels)
        if self.encoder is not None:
            inputs = self._encoder_input(levels)
            mean, log_variance = self.encoder(inputs, training=True) if training else self.encoder.infer(inputs)
            z = mean + tf.exp(log_variance / 2) * z_noise
            kl = -0.5 * tf.reduce_sum(log_variance + tf.square(z_noise) + math.log(2 * math.pi), -1) - self._log_prior(
                z
            )
        v, log_det = self.flow.forward_and_log_det(self._flow_input(levels, u_noise), z)
        reconstruction = -standard_normal_log_prob(v) - log_det
        dequantization = tf.zeros_like(reconstruction)
        nats = reconstruction + kl + dequantization
        return Elbo(reconstruction, kl, dequantization, self.nats_to_bits_per_dim(nats))

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Turns -log p(x), x in [-1, 1), in nats per image, into bits per colour value of the discrete image."""
        dimensions = math.prod(self.config.image_shape)
        return (nats / dimensions + math.log(self.config.n_bins / 2)) / math.log(2)

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
            self._require_finite(
                "encode gave codes that are not finite", codes.v, *([] if codes.z is None else [codes.z])
            )
            if verify:
                self._verify(images, codes)
            else:
                _warn_of_far_images(codes.v)
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
        z, v = self._checked_z(z), self._checked_v(v)
        if z is not None and (z.shape.rank != 2 or not v.shape[:1].is_compatible_with(z.shape[:1])):
            raise UserError(
                f"z is of shape {tuple(z.shape)} and v of {v.shape[0]} images; z must be [batch, "
                f"{self.config.latent_dim}] for as many"
            )
        if v.shape[0] == 0:
            return tf.zeros(v.shape, tf.uint8)
        try:
            x = self.flow.inverse_and_log_det(v, z)[0]
        except tf.errors.InvalidArgumentError as error:
            if "not invertible" not in error.message:
                raise
            every = _listed(range(v.shape[0]))
            raise InversionError(
                f"a 1x1 convolution is singular or not finite, for image {every} of the batch"
            ) from error
        if tf.executing_eagerly():
            self._require_finite("decode gave pixels that are not finite", x)
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
        a, b = self._as_many("switch", a, b)
        codes_a, codes_b = self.encode(a), self.encode(b)
        return self.decode(codes_a.z, codes_b.v), self.decode(codes_b.z, codes_a.v)

    def interpolate(self, a: Any, b: Any, alphas: Sequence[float] | float, betas: Sequence[float] | float) -> tf.Tensor:
        """Interpolates between two batches of images in two dimensions (paper section 3.2, Figure 5).

        Args:
            a: uint8 `[batch, height, width, 3]`.
            b: the same shape.
            alphas: places between z of a (0) and z of b (1); a number stands for a list of it. Without z they change
                nothing.
            betas: places between v of a (0) and v of b (1); likewise.

        Returns:
            uint8 `[batch, len(alphas), len(betas), height, width, 3]`; the corners (0, 0) and (1, 1) are a and b.

        Raises:
            DataError: for images of another shape or type.
            UserError: for alphas or betas that are no finite numbers.
        """
        a, b = self._as_many("interpolate", a, b)
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

    def diagnose(self, images: Any) -> dict[str, float]:
        """Returns the signs that a run is about to diverge, measured on some images.

        Args:
            images: uint8 `[batch, height, width, 3]`, one at least.

        Returns:
            `smallest_scale`: the smallest coupling scale s at any place of these images (inverting divides by it), and
            `worst_condition`: the largest condition number of an invertible linear map.
        """
        levels = self._levels_of(images)
        if levels.shape[0] == 0:
            raise DataError("diagnose got no images; it measures on some")
        scales, conditions = [tf.constant(1.0)], [tf.constant(1.0, tf.float64)]

        def visit(layer: Any, x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
            if isinstance(layer, Coupling):
                scales.append(tf.reduce_min(layer.scale(x, condition)))
            elif isinstance(layer, InvertibleLinear):
                conditions.append(layer.condition_number())
            return layer.forward_and_log_det(x, condition)[0]

        z = None
        if self.encoder is not None:
            z = self._encode_levels(levels)[0]
            if self.prior_flow is not None:
                self.prior_flow.walk(z, None, visit)
        self.flow.walk(self._flow_input(levels, 0.5), z, visit)
        return {
            "smallest_scale": float(tf.reduce_min(tf.stack(scales))),
            "worst_condition": float(tf.reduce_max(tf.stack(conditions))),
        }

    # --- pieces that other modules build graphs from ---

    def encode_levels(self, levels: tf.Tensor) -> Codes:
        """`encode` of pixel levels, float32 `[batch, height, width, 3]` in 0..n_bins - 1, without any check."""
        z = None if self.encoder is None else self._encode_levels(levels)[0]
        v, _ = self.flow.forward_and_log_det(self._flow_input(levels, 0.5), z)
        return Codes(z, v)

    def z_from_noise(self, noise: tf.Tensor) -> tf.Tensor:
        """Maps standard normal noise `[batch, d_z]` to draws of z from the prior."""
        return noise if self.prior_flow is None else self.prior_flow.inverse_and_log_det(noise)[0]

    def pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images of x in [-1, 1); what lies outside is clipped."""
        n_bins = self.config.n_bins
        # Encoding puts every pixel at the centre of its bin, so that flooring is robust to half a level either way.
        levels = tf.clip_by_value(tf.floor((x + 1) * (n_bins / 2)), 0, n_bins - 1)
        return tf.cast(levels * (256 // n_bins), tf.uint8)

    def quantize_images(self, images: Any) -> tf.Tensor:
        """Returns images as the model sees them: unchanged at 8 bits, else with their levels k as k * 256 / n_bins.

        Args:
            images: uint8 `[batch, height, width, 3]`.

        Raises:
            DataError: for images of another shape or type.
        """
        return self.pixels(self._flow_input(self._levels_of(images), 0.5))

    def levels_of(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the levels 0..n_bins - 1 of uint8 images, float32 of the same shape."""
        return tf.floor(tf.cast(images, tf.float32) / (256 // self.config.n_bins))

    def _images(self, images: Any) -> tf.Tensor:
        """Returns images as a tensor of the type and shape that is needed.

        Raises:
            DataError: for others.
        """
        images = as_tensor(images, "images", DataError)
        self._require_images(images)
        return images

    def _require_images(self, images: Any) -> None:
        dtype, shape = tf.as_dtype(images.dtype), tf.TensorShape(images.shape)
        if dtype != tf.uint8:
            raise DataError(f"images are of type {dtype.name}; they must be uint8 with values 0..255")
        if shape.rank != 4 or tuple(shape[1:]) != self.config.image_shape:
            size, shown = self.config.image_size, "unknown" if shape.rank is None else tuple(shape)
            raise DataError(f"images are of shape {shown}; this model needs [batch, {size}, {size}, 3]")

    def _levels_of(self, images: Any) -> tf.Tensor:
        return self.levels_of(self._images(images))

    def _as_many(self, what: str, a: Any, b: Any) -> tuple[tf.Tensor, tf.Tensor]:
        a, b = self._images(a), self._images(b)
        if not a.shape[:1].is_compatible_with(b.shape[:1]):
            raise DataError(f"{what} got {a.shape[0]} and {b.shape[0]} images; it needs equally many")
        return a, b

    def _encoder_input(self, levels: tf.Tensor) -> tf.Tensor:
        return levels * (2 / self.config.n_bins) - 1

    def _flow_input(self, levels: tf.Tensor, u: Any) -> tf.Tensor:
        return (levels + u) * (2 / self.config.n_bins) - 1

    def _encode_levels(self, levels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        assert self.encoder is not None
        return self.encoder.infer(self._encoder_input(levels))

    def _log_prior(self, z: tf.Tensor) -> tf.Tensor:
        if self.prior_flow is None:
            return standard_normal_log_prob(z)
        noise, log_det = self.prior_flow.forward_and_log_det(z)
        return standard_normal_log_prob(noise) + log_det

    def _decode_in_chunks(self, z: tf.Tensor | None, v: tf.Tensor) -> tf.Tensor:
        count = v.shape[0]
        images = [
            self.decode(None if z is None else z[start : start + _CHUNK], v[start : start + _CHUNK])
            for start in range(0, count, _CHUNK)
        ]
        return tf.concat(images, 0) if images else tf.zeros([0, *self.config.image_shape], tf.uint8)

    def _require_latent(self, what: str) -> None:
        if not self.config.has_latent:
            raise UserError(f"this model has no z (model.conditioning is 'none'), so it has no such thing as {what}")

    def _checked_z(self, z: Any) -> tf.Tensor | None:
        if not self.config.has_latent:
            if z is not None:
                raise UserError("this model has no z (model.conditioning is 'none'): pass None")
            return None
        if z is None:
            raise UserError(f"this model needs z, an array of shape [batch, {self.config.latent_dim}]; it got None")
        z = as_floats(z, "z")
        if z.shape.rank == 0 or z.shape[-1] != self.config.latent_dim:
            raise UserError(f"z is of shape {tuple(z.shape)}; this model needs [batch, {self.config.latent_dim}]")
        return z

    def _checked_v(self, v: Any) -> tf.Tensor:
        v = as_floats(v, "v")
        if v.shape.rank != 4 or tuple(v.shape[1:]) != self.config.image_shape:
            size = self.config.image_size
            raise UserError(f"v is of shape {tuple(v.shape)}; this model needs [batch, {size}, {size}, 3]")
        return v

    def _require_finite(self, what: str, *arrays: tf.Tensor) -> None:
        finite = np.ones(arrays[0].shape[0], bool)
        for array in arrays:
            finite &= np.isfinite(np.asarray(array)).reshape(len(finite), -1).all(1)
        if not finite.all():
            raise InversionError(f"{what}, for image {_listed(np.flatnonzero(~finite))} of the batch")

    def _verify(self, images: Any, codes: Codes) -> None:
        expected = np.asarray(self.quantize_images(images))
        # Not through decode(), whose own complaint about NaN would not say which images are lost altogether.
        x = self.flow.inverse_and_log_det(codes.v, codes.z)[0]
        same = (np.asarray(self.pixels(x)) == expected) & np.isfinite(np.asarray(x))
        lost = np.flatnonzero(~same.reshape(len(expected), -1).all(1))
        if len(lost):
            raise InversionError(
                f"image {_listed(lost)} of the batch does not come back from its codes; a model with a smaller alpha "
                f"keeps more images (this one has {self.config.alpha})"
            )


def standard_normal_log_prob(x: tf.Tensor) -> tf.Tensor:
    """Returns log N(x; 0, I) of each entry of the batch, `[batch]`, for x `[batch, ...]`."""
    axes: list[int] = list(range(1, len(x.shape)))
    dimensions = product(sizes(x)[1:], x.dtype)
    return -0.5 * (tf.reduce_sum(tf.square(x), axes) + dimensions * math.log(2 * math.pi))


def far_from_training(v: Any) -> np.ndarray:
    """Returns which images are so unlike those of the training that they may not come back exactly, bool `[batch]`.

    Training makes v a standard normal variable: its root mean square is near 1 for images like those of the training.
    An image whose v has one above `FAR` is stretched by the flow so much that float32 may not undo it. It takes one
    pass over v and no decoding; `encode(images, verify=True)` is the proof.

    Args:
        v: local codes, `[batch, height, width, 3]`.
    """
    v = np.asarray(v)
    return np.sqrt(np.square(v).mean(tuple(range(1, v.ndim)))) > FAR


def _warn_of_far_images(v: tf.Tensor) -> None:
    far = np.flatnonzero(far_from_training(v))
    if len(far):
        warnings.warn(
            f"image {_listed(far)} of the batch is far from what this model was trained on and may not come back "
            "exactly; encode(images, verify=True) decodes again and names what is lost",
            ExactnessWarning,
            stacklevel=3,
        )


def _listed(indices: Any, most: int = 8) -> str:
    text = ", ".join(str(i) for i in indices[:most])
    return text + (f" and {len(indices) - most} more" if len(indices) > most else "")
