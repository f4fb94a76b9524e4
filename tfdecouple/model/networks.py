"""The Keras model of all networks: its weights, their initialisation and diagnosis, the distributions, the bound."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.arguments import as_images, as_labels, as_pixel_noise, as_z, require_images
from tfdecouple.config import ModelConfig, parse_config
from tfdecouple.errors import DataError, NotInitializedError, UserError
from tfdecouple.layers import Coupling, InvertibleLinear
from tfdecouple.layers.base import Visit
from tfdecouple.model.any_size import count_images_at_once, fit_images, pad_side, require_any_size, size_multiple
from tfdecouple.model.objective import (
    Elbo,
    Latents,
    dequantize,
    negative_elbo,
    prior_of_each_class,
    standard_normal_log_prob,
)
from tfdecouple.model.quantizer import Quantizer
from tfdecouple.networks.architecture import count_by_network, make_networks, require_memory
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder
from tfdecouple.networks.flow import Flow
from tfdecouple.networks.prior import ClassAffine, ClassCodes, PriorFlow
from tfdecouple.runtime.execution import backward_memory, backward_mode, disable_autograph
from tfdecouple.runtime.numerics import product, sizes
from tfdecouple.runtime.requirements import require_backend


class Codes(NamedTuple):
    """The codes of images: the global code z and the local code v.

    >>> codes = Codes(z=None, v=tf.zeros([2, 4, 4, 3]))
    >>> codes.v.shape.as_list()
    [2, 4, 4, 3]

    Attributes:
        z: the global code, float32 `[batch, d_z]`; None for a model without z.
        v: the local code, float32 `[batch, height, width, channels]`.
    """

    z: tf.Tensor | None
    v: tf.Tensor


@disable_autograph
class Networks(keras.Model):
    """A Keras model with all networks and their weights, the distributions that they parametrise, and the bound.

    Methods that take images raise DataError for images of the wrong type or shape; methods that use the weights raise
    NotInitializedError before the weights are initialised or loaded; methods that need z, a density of z or labels
    raise UserError if the model has none.

    Args:
        config: the architecture, also as a plain dict.
        jit_compile: whether XLA compiles the layers of flow and prior, kind by kind, and the encoder, at their first
            use and again for each other batch size. The option is not saved with the model; for training there is
            `training.jit_compile`.
        **kwargs: arguments of `keras.Model`.

    Attributes:
        config: the architecture.
        flow: maps x, given z, to v.
        encoder: computes q(z|x); None for a model without z, or if z is a function of the label.
        prior_flow: maps z to standard normal noise; None if p(z) is standard normal, or has no density.
        prior_affine: shifts and scales z by the label before `prior_flow`; None if the prior knows no labels.
        code_net: maps labels to z; None unless z is a function of the label.
        dequantizer: draws u from q(u|x); None if u is uniform.
    """

    def __init__(self, config: ModelConfig | dict[str, Any], *, jit_compile: bool = False, **kwargs: Any):
        require_backend()
        # The model computes in float32 under every global Keras policy.
        super().__init__(**{"name": "decoupled_model", "dtype": "float32", **kwargs})
        self.config = config if isinstance(config, ModelConfig) else parse_config(ModelConfig, config, "model.")
        # Configs may be untrusted, and a few characters can ask for a model of any size.
        require_memory(self.config)
        made = {name: network for name, (network, _) in make_networks(self.config).items()}
        self.flow: Flow = made["flow"]
        self.encoder: Encoder | None = made.get("encoder")
        self.prior_flow: PriorFlow | None = made.get("prior_flow")
        self.prior_affine: ClassAffine | None = made.get("prior_affine")
        self.code_net: ClassCodes | None = made.get("class_codes")
        self.dequantizer: Dequantizer | None = made.get("dequantizer")
        networks = [self.flow, self.encoder, self.prior_flow]
        if self.dequantizer is not None:
            networks += [self.dequantizer.encoder, self.dequantizer.flow]
        for network in filter(None, networks):
            network.execution.jit_compile = jit_compile
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights; the constructor calls this method, because the config fixes every shape."""
        if hasattr(self, "initialized"):
            return
        z = None, self.config.latent_dim
        of_images = dict.fromkeys((self.flow, self.encoder, self.dequantizer), self.input_shape)
        for network, shape in {**of_images, self.prior_flow: z, self.prior_affine: z, self.code_net: (None,)}.items():
            if network is not None:
                network.build(shape)
        self.initialized = self.add_weight(
            name="initialized", shape=(), dtype="bool", initializer="zeros", trainable=False
        )
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain values, and the paths of layers that are not trainable."""
        untrained = [path for path, layer in _with_paths(self) if not layer.trainable]
        return {"name": self.name, "config": self.config.to_dict(), **({"untrained": untrained} if untrained else {})}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Networks:
        """Returns the model whose `get_config` returned this config."""
        given = dict(config)
        untrained = set(given.pop("untrained", ()))
        model = cls(**given)
        if untrained:
            for path, layer in _with_paths(model):
                layer.trainable = path not in untrained
        return model

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of images, `(None, height, width, channels)`."""
        return (None, *self.config.image_shape)

    @property
    def output_shape(self) -> Codes:
        """The shapes of the codes."""
        return Codes((None, self.config.latent_dim) if self.config.has_latent else None, self.input_shape)

    @property
    def input(self) -> keras.KerasTensor:
        """The symbolic images that the model takes, from which another Keras model can be made."""
        self._call_symbolically()
        return super().input

    @property
    def output(self) -> Codes:
        """The symbolic codes that the model computes from `input`."""
        self._call_symbolically()
        return Codes(*super().output)

    def _call_symbolically(self) -> None:
        """Calls the model once on symbolic images, so that Keras knows its input and output.

        Keras takes an AttributeError, for a model without z or whose z needs labels, to mean "no output".
        """
        if not self.config.has_latent:
            raise AttributeError("a model without z has no output of Keras, which takes no None among them")
        if self.config.has_class_codes:
            raise AttributeError("the output of this model needs labels, too: call model(images, labels)")
        if not self._inbound_nodes:
            self(keras.Input(self.config.image_shape, dtype="uint8"))

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer, which turns pixels into levels, levels into x, and x into pixels."""
        return Quantizer(self.config.n_bits)

    @property
    def class_log_probabilities(self) -> tf.Tensor:
        """The log-probability log p(y) of each label, float32 `[classes]`, fixed by `model.class_probabilities`."""
        self._require_classes()
        given = np.asarray(self.config.label_shares, np.float64)
        return tf.constant(np.log(given / given.sum()), tf.float32)

    @property
    def class_codes(self) -> tf.Tensor:
        """The global code z of each label, float32 `[classes, d_z]`, of a model whose z is a function of the label."""
        if self.code_net is None:
            raise UserError(
                f"z of this model is no function of the label (model.prior is {self.config.prior!r}), so there are no "
                "codes of labels"
            )
        self.require_initialized()
        return self.code_net.codes()

    def named_variables(self) -> dict[str, keras.Variable]:
        """Returns every weight by its path, for example `flow/level_0_part_0_step_0/actnorm_1/bias`.

        The paths depend only on the config; checkpoints and imports identify weights by path.
        """
        return self._by_name(self.variables)

    def parameter_count(self) -> dict[str, int]:
        """Returns the number of trainable parameters of each network, and in total."""
        named = self._by_name(self.trainable_variables)
        return count_by_network({name: variable.shape for name, variable in named.items()})

    def _by_name(self, variables: list[keras.Variable]) -> dict[str, keras.Variable]:
        # Paths begin with the names of the scopes in which the model was made.
        return {variable.path.removeprefix(f"{self.path}/"): variable for variable in variables}

    def initialize(self, images: Any, seed: int = 0, force: bool = False) -> None:
        """Initialises the weights from images, once, before training (paper section 2.1 and the paper's code).

        Every actnorm gets the scale and shift that give its output mean 0 and standard deviation 1 on these images
        (without dequantisation noise). Every coupling starts as the identity, the posterior as N(0, I), and a learned
        q(u|x) as nearly uniform.

        Args:
            images: uint8 `[batch, height, width, channels]`, a few hundred or more training images.
            seed: seed of the noise that initialises the flows of the prior and of the dequantisation.
            force: whether to overwrite the weights of an initialised or loaded model, which otherwise raises UserError.
        """
        levels = self._checked_levels(images)
        if levels.shape[0] == 0:
            raise DataError("initialize got no images; it needs one at least, and some hundreds for a good start")
        if not tf.executing_eagerly():
            raise UserError("initialize was called within a tf.function; call it outside, once, before training")
        if self.has_weights():
            if not force:
                raise UserError(
                    "this model has weights already, initialised or loaded, and initialize would overwrite them; pass "
                    "force=True to start anew"
                )
            new = type(self).from_config(self.get_config()).named_variables()
            for name, variable in self.named_variables().items():
                variable.assign(new[name])

        z, labels = None, self._labels_in_turn(levels.shape[0])
        if self.prior_affine is not None:
            self.prior_affine.reset()
        if self.encoder is not None:
            self.encoder.reset()
            # The posterior now is N(0, I) for every image, so z is drawn without running the encoder.
            shape = [levels.shape[0], self.config.latent_dim]
            z = randomness.draw_normal(shape, randomness.derive_seed(seed, "initialize"))
        elif self.code_net is not None:
            # Couplings start as the identity for every z, so any labels serve for the initialisation.
            z = self.code_net(labels)
        self._walk(self.quantizer.edges(levels), z, labels, lambda layer, x, condition: layer.initialize(x, condition))
        if self.dequantizer is not None:
            self.dequantizer.flow.start(randomness.derive_seed(seed, "dequantize"))
        self.initialized.assign(True)

    def diagnose(self, images: Any) -> dict[str, float]:
        """Returns diagnostics that show whether training is about to diverge.

        Args:
            images: uint8 `[batch, height, width, channels]`, at least one. If the model knows labels, the images get
                its labels in turn.

        Returns:
            `smallest_scale`, the smallest coupling scale s anywhere in these images, by which the inverse divides, and
            `worst_condition`, the largest condition number of an invertible linear map.
        """
        levels = self._checked_levels(images)
        if levels.shape[0] == 0:
            raise DataError("diagnose got no images; it measures on some")
        scales, conditions = [tf.constant(1.0)], [tf.constant(1.0, tf.float64)]

        def visit(layer: Any, x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
            if isinstance(layer, Coupling):
                scales.append(tf.reduce_min(layer.scale(x, condition)))
            elif isinstance(layer, InvertibleLinear):
                conditions.append(layer.condition_number())
            return layer.forward_and_log_det(x, condition)[0]

        inputs = self.quantizer.edges(levels)
        z = None if self.encoder is None else self.encoder.infer(inputs)[0]
        labels = self._labels_in_turn(levels.shape[0])
        if self.code_net is not None:
            z = self.code_net(labels)
        self._walk(self.quantizer.centres(levels), z, labels, visit)
        if self.dequantizer is not None:
            noise = randomness.draw_normal(tf.shape(levels), randomness.derive_seed(0, "diagnose"))
            self.dequantizer.flow.visit_layers(noise, self.dequantizer.encoder.infer(inputs), visit)
        return {
            "smallest_scale": float(tf.reduce_min(tf.stack(scales))),
            "worst_condition": float(tf.reduce_max(tf.stack(conditions))),
        }

    def _labels_in_turn(self, count: int) -> tf.Tensor:
        return tf.range(count) % max(self.config.classes, 1)

    def _require_classes(self) -> None:
        if not self.config.has_classes:
            raise UserError("this model knows no labels (model.classes is 0)")

    def _walk(self, x: tf.Tensor, z: tf.Tensor | None, labels: tf.Tensor | None, visit: Visit) -> None:
        """Runs the prior's flow and the flow, with `visit` instead of each layer (`InvertibleLayer.visit_layers`)."""
        if z is not None and self.prior_flow is not None:
            shifted = z
            if self.prior_affine is not None:
                shifted = tf.gather(self.prior_affine(z)[0], labels, batch_dims=1)
            self.prior_flow.visit_layers(shifted, None, visit)
        self.flow.visit_layers(x, z, visit)

    def require_initialized(self) -> None:
        """Raises NotInitializedError if the weights were neither initialised nor loaded."""
        if not self.has_weights():
            raise NotInitializedError(
                "this model is not initialised: call model.initialize(images) with training images, or load a run"
            )

    def has_weights(self) -> bool:
        """Returns whether the weights were initialised from data or loaded."""
        # The flag is read outside of any trace, where it has a value, and as a tensor, because Python takes a variable
        # on several devices for true whatever its value.
        with tf.init_scope():
            return bool(tf.convert_to_tensor(self.initialized.value))

    def compute_output_spec(self, images: Any, labels: Any = None, training: bool = False) -> Codes:
        """Returns the symbolic codes for a Keras model that is being built around this one."""
        self._require_outputs()
        require_images(images, self.config.image_shape)
        z = keras.KerasTensor((images.shape[0], self.config.latent_dim), "float32")
        return Codes(z, keras.KerasTensor((images.shape[0], *self.config.image_shape), "float32"))

    def export(
        self, filepath: Any, format: str = "tf_saved_model", *rest: Any, input_signature: Any = None, **options: Any
    ) -> Any:
        """Exports `encode` as a SavedModel, as `keras.Model.export` does; `python -m export` exports all endpoints.

        Raises:
            UserError: if the model has no z, or the format is not "tf_saved_model".
        """
        if format != "tf_saved_model":
            raise UserError(
                f"Keras' export to {format!r} lacks operations that this model needs; python -m export makes files "
                "for ONNX Runtime and other runtimes, checked against the model (docs/runtimes.md)"
            )
        self._require_outputs()
        self.require_initialized()
        if input_signature is None:
            input_signature = [keras.InputSpec(dtype="uint8", shape=self.input_shape)]
        return super().export(filepath, format, *rest, input_signature=input_signature, **options)

    def _require_outputs(self) -> None:
        if not self.config.has_latent:
            raise UserError(
                "this model has no z, and Keras takes no None among the outputs of a model; call encode(images).v in a "
                "layer of your own, or export by python -m export"
            )

    # --- distributions ---

    @property
    def prior(self) -> tfd.Distribution:
        """The prior p(z), a distribution over z, float32 `[d_z]`.

        If the model knows labels, the prior is the mixture of the distributions p(z|y) (`prior_of`) over all labels y.
        """
        self._require_latent("a prior over z", density=True)
        self.require_initialized()
        if self.prior_affine is None:
            return self._prior_behind([], [])
        of_labels = self._prior_behind([self.prior_affine.as_bijector()], [self.config.classes])
        weights = tfd.Categorical(logits=self.class_log_probabilities)
        return tfd.MixtureSameFamily(weights, of_labels, name="prior")

    def prior_of(self, labels: Any) -> tfd.Distribution:
        """Returns p(z|y) for labels y `[batch]`, a distribution of batch shape `[batch]` and event shape `[d_z]`."""
        self._require_latent("a prior over z", density=True)
        self._require_classes()
        self.require_initialized()
        labels = as_labels(labels, None, self.config.classes, required=True)
        assert self.prior_affine is not None and labels is not None
        return self._prior_behind([self.prior_affine.as_bijector(labels)], tf.shape(labels))

    def _prior_behind(self, first: list[tfb.Bijector], batch: Any) -> tfd.Distribution:
        """Returns the distribution of the z that `first` and then the prior's flow map to N(0, I), of a batch shape."""
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), 1.0), [self.config.latent_dim])
        flow = [] if self.prior_flow is None else [self.prior_flow.as_bijector()]
        # A chain applies its last bijector first.
        maps = [*flow, *first]
        return tfd.TransformedDistribution(base, tfb.Invert(tfb.Chain(maps)), name="prior") if maps else base

    def posterior(self, images: Any) -> tfd.Distribution:
        """Returns q(z|x), a diagonal Gaussian of batch shape `[batch]` and event shape `[d_z]` (paper equation 5).

        The images are uint8 `[batch, height, width, channels]`, of any height and width as for `encode`.
        """
        self._require_latent("a posterior over z", density=True)
        self.require_initialized()
        assert self.encoder is not None
        levels = self._levels_of_any_size(self._accept_images(images))[1]
        mean, log_variance = self.encoder.infer(self.quantizer.edges(levels))
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_variance / 2))

    def likelihood(self, z: Any = None) -> tfd.Distribution:
        """Returns p(x|z), a density over x = 2*(k + u)/n_bins - 1 in [-1, 1), for bins k of pixels and noise u.

        The event shape is `[height, width, channels]`; `log_prob` takes leading sample dimensions.

        Args:
            z: global codes, float32 `[..., d_z]`, whose leading axes are the batch shape of the distribution; None for
                a model without z, whose likelihood is p(x).
        """
        self.require_initialized()
        z = as_z(z, self._d_z)
        batch = () if z is None else tf.shape(z)[:-1]
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), tf.ones(batch)), self.config.image_shape)
        return tfd.TransformedDistribution(base, tfb.Invert(self.flow.as_bijector(condition=z)), name="likelihood")

    def elbo(self, images: Any, seed: Any = None, training: bool = False, labels: Any = None) -> Elbo:
        """Returns the terms of the negative evidence lower bound of each image, an upper bound of -log p(x).

        The bound is evaluated at one draw of z and of the dequantization noise. For an image with a label y it is a
        bound of -log p(x, y).

        Images may have another size than the model's, as for `encode`. The result is still a bound, because q(z|x) may
        depend on x in any way, here through the image shrunk to the model's size. Padding counts in full: the terms are
        those of the padded image, which is at most as probable as the image without padding, and `bits_per_dim`
        divides all bits by the number of colour values without padding.

        Args:
            images: uint8 images, `[batch, height, width, channels]`.
            seed: whole number or `[2]` integer tensor; None draws a fresh seed, in a `tf.function` in each call.
            training: whether the caller's own loop trains on the bound; the encoder then normalises by the statistics
                of the batch and updates its moving statistics.
            labels: labels of the images, whole numbers `[batch]`, for a model that knows labels. If z is a function of
                the label, every image needs a label; otherwise None or -1 means no label.
        """
        self.require_initialized()
        images = self._accept_images(images)
        batch, *sides, channels = sizes(images)
        shape = [batch, *(pad_side(side, size_multiple(self.config)) for side in sides), channels]
        z_noise = randomness.draw_normal([batch, self.config.latent_dim], randomness.derive_seed(seed, "z"))
        u_noise = randomness.draw_pixel_noise(shape, randomness.derive_seed(seed, "u"), self.config.has_dequantizer)
        return self.elbo_from_noise(images, z_noise, u_noise, training, labels)

    def elbo_from_noise(
        self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
    ) -> Elbo:
        """Returns the terms of the bound as `elbo` does, for given noise, also if the model is not initialised.

        Args:
            images: uint8 images, `[batch, height, width, channels]`.
            z_noise: standard normal, float32 `[batch, d_z]`; ignored without z, or if z is a function of the label.
            u_noise: dequantization noise as for `dequantize`, float32 of the shape of the (padded) images.
            training: whether the encoders normalise by the statistics of the batch.
            labels: labels of the images, as for `elbo`.
        """
        return self.elbo_and_latents(images, z_noise, u_noise, training, labels)[0]

    def elbo_and_latents(
        self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
    ) -> tuple[Elbo, Latents]:
        """Returns the terms of the bound, as `elbo_from_noise` does, and the latents at which it was evaluated."""
        images = self._accept_images(images)
        labels = self._labels_of(labels, images)
        if images.shape[0] == 0:
            noise = tf.zeros([0, self.config.latent_dim]) if self.config.has_encoder else None
            levels = self._levels_of_any_size(images)[0]
            return Elbo(*[tf.zeros([0])] * 4), Latents(noise, tf.zeros([0]), tf.zeros_like(levels))
        if self._own_size(images) is not None and not training:
            return self._run_in_pieces(self._bound_other_sizes, images, z_noise, u_noise, labels)
        # A user's own training loop need not enter `backward_memory`, so this method enters it.
        with backward_memory("keep") if training and backward_mode() is None else contextlib.nullcontext():
            if self._own_size(images) is not None:
                return self._bound_other_sizes(images, z_noise, u_noise, labels, training)
            return negative_elbo(
                self, self.quantizer.levels(images), z_noise, u_noise, labels=labels, training=training
            )

    def _bound_other_sizes(
        self, images: tf.Tensor, z_noise: tf.Tensor, u_noise: tf.Tensor, labels: Any, training: bool = False
    ) -> tuple[Elbo, Latents]:
        """Returns the bound and its latents as `elbo_and_latents` does, for images of another size than the model's."""
        levels, encoder_levels = self._levels_of_any_size(images)
        elbo, latents = negative_elbo(
            self, levels, z_noise, u_noise, labels=labels, encoder_levels=encoder_levels, training=training
        )
        padding = product(sizes(levels)[1:3], tf.float32) / product(sizes(images)[1:3], tf.float32)
        return elbo._replace(bits_per_dim=elbo.bits_per_dim * padding), latents

    def dequantize(self, images: Any, noise: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns u, positions within the pixels' bins drawn from q(u|x), and log q(u|x); x = 2*(k + u)/n_bins - 1.

        In this formula k is the level. If `model.dequantization` is "uniform", u is the noise itself. Both results are
        differentiable with respect to the noise and the weights.

        Args:
            images: uint8 images, `[batch, height, width, channels]`.
            noise: array of the images' shape: standard normal for a learned q(u|x), otherwise uniform in [0, 1).

        Returns:
            u, float32 of the images' shape, and log q(u|x), float32 `[batch]`, in nats. A learned q(u|x) draws u from
            (0, 1), which float32 may round to 0 or 1.
        """
        self.require_initialized()
        levels = self._checked_levels(images)
        return dequantize(self, levels, as_pixel_noise(noise, levels))

    def log_joint(self, levels: tf.Tensor) -> tf.Tensor:
        """Returns log p(x, y) of each label y, up to a constant for each image, `[batch, classes]`, for `classify`."""
        if self.code_net is None:
            assert self.encoder is not None
            return prior_of_each_class(self, self.encoder.infer(self.quantizer.edges(levels))[0])[1]
        x, found = self.quantizer.centres(levels), []
        for code in tf.unstack(self.code_net.codes()):
            v, log_det = self.flow.forward_and_log_det(x, tf.repeat(code[None], tf.shape(x)[0], 0))
            found.append(standard_normal_log_prob(v) + log_det)
        return tf.stack(found, -1) + self.class_log_probabilities

    def z_from_noise(self, noise: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
        """Returns draws of z from the prior, `[batch, d_z]`.

        Args:
            noise: standard normal noise `[batch, d_z]`, ignored if z is a function of the label.
            labels: labels, int32 `[batch]`, for a model that knows labels.
        """
        if self.code_net is not None:
            return self.code_net(labels)
        z = noise if self.prior_flow is None else self.prior_flow.inverse_and_log_det(noise)[0]
        return z if self.prior_affine is None else self.prior_affine.inverse(z, labels)

    def drawn_labels(self, first: int, last: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns labels drawn from p(y) for the samples `first` to `last` (exclusive), int32."""
        normal = randomness.draw_normal_part(last - first, first, seed)
        borders = tf.cumsum(tf.exp(self.class_log_probabilities))[:-1]
        return tf.searchsorted(borders, (1 + tf.math.erf(normal / math.sqrt(2))) / 2, side="right")

    def wanted_labels(self, labels: Any) -> Any:
        """Returns the labels unchanged, or None if the model knows no labels."""
        return labels if self.config.has_classes else None

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Returns bits per colour value of the discrete image, given -log p(x) in nats per image with x in [-1, 1)."""
        return self.quantizer.bits_per_dim(nats, math.prod(self.config.image_shape))

    def _checked_levels(self, images: Any) -> tf.Tensor:
        return self.quantizer.levels(as_images(images, self.config.image_shape))

    # --- images of another size than the model's; the functions are in any_size.py ---

    def _accept_images(self, images: Any) -> tf.Tensor:
        """Returns images as a tensor, uint8 `[batch, height, width, channels]`, of any size that the model takes."""
        images = as_images(images, self.config.image_shape, any_size=True)
        if self._own_size(images) is not None:
            require_any_size(self.config, "images", images)
        return images

    def _own_size(self, images: tf.Tensor) -> tuple[Any, Any] | None:
        """Returns height and width of images or local codes; None if they equal the model's."""
        _, height, width, _ = sizes(images)
        return None if images.shape[1:3] == self.config.image_shape[:2] else (height, width)

    def _levels_of_any_size(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the levels of images padded for the flow, and of images shrunk to the encoder's size."""
        padded, shrunk = fit_images(self.config, images)
        levels = self.quantizer.levels(padded)
        return levels, levels if shrunk is padded else self.quantizer.levels(shrunk)

    def _run_in_pieces(self, function: Callable[..., Any], batch: tf.Tensor, *others: Any) -> Any:
        """Returns a function's results for a batch and other tensors `[n, ...]` or None; each image counts by itself.

        Images of another size than the model's are taken a few at a time, to fit in memory, unless a graph is traced.
        """
        if not tf.executing_eagerly() or self._own_size(batch) is None:
            return function(batch, *others)
        count = count_images_at_once(self.config, *batch.shape[1:3])
        if batch.shape[0] <= count:
            return function(batch, *others)
        pieces = [
            function(*(None if each is None else each[start : start + count] for each in (batch, *others)))
            for start in range(0, batch.shape[0], count)
        ]
        return tf.nest.map_structure(lambda *parts: None if parts[0] is None else tf.concat(parts, 0), *pieces)

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


def _with_paths(layer: keras.layers.Layer, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields a layer with the path "", and then every layer inside with its path, outer layers first."""
    yield path, layer
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from _with_paths(child, f"{path}/{child.name}".lstrip("/"))
