"""The base class `Networks` of the model: networks, initialisation of weights, distributions, evidence lower bound."""

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
from tfdecouple.layers.base import InvertibleLayer, KeepsWeights, Visit
from tfdecouple.layers.colour_map import compute_start, measure_colours
from tfdecouple.model.any_size import (
    compute_size_multiple,
    count_images_at_once,
    pad_and_shrink_images,
    require_any_size,
    round_side_up,
)
from tfdecouple.model.objective import (
    Elbo,
    Latents,
    dequantize,
    evaluate_class_priors,
    negative_elbo,
    standard_normal_log_prob,
)
from tfdecouple.model.quantizer import Quantizer
from tfdecouple.networks.architecture import count_by_network, make_networks, require_memory
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder
from tfdecouple.networks.flow import Flow
from tfdecouple.networks.prior import ClassAffine, ClassCodes
from tfdecouple.runtime.execution import backward_memory, disable_autograph, get_backward_mode
from tfdecouple.runtime.numerics import get_sizes, multiply_sizes
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
class Networks(KeepsWeights, keras.Model):
    """The base class of `DecoupledModel`: a Keras model with all networks, their distributions and the bound.

    Methods with the argument `images` raise DataError for images of the wrong type or shape. Methods that use the
    weights raise NotInitializedError before the weights are initialised or loaded. Methods that need z, a density of z
    or labels raise UserError if the model has none.

    Args:
        config: the architecture, also as a plain dict.
        jit_compile: whether XLA compiles the encoder and the layers of flow and prior (layers with equal shapes and
            options share a program), at the first use and again for each other batch size. The option is not saved with
            the model. It does not affect training, which has its own option `training.jit_compile`.
        **kwargs: arguments of `keras.Model`.

    Attributes:
        config: the architecture.
        flow: maps x, given z, to v.
        encoder: computes q(z|x); None for a model without z, or if z is a function of the label.
        prior_flow: maps z to standard normal noise; None if p(z) is standard normal, or has no density.
        prior_affine: shifts and scales z by the label before `prior_flow`; None if p(z) does not depend on labels.
        code_net: maps labels to z; None unless z is a function of the label.
        dequantizer: draws u, the position of a pixel within its bin, from q(u|x); None if u is uniform.
    """

    def __init__(self, config: ModelConfig | dict[str, Any], *, jit_compile: bool = False, **kwargs: Any):
        require_backend()
        # The dtype is set here, so that the model computes in float32 under every global Keras policy.
        super().__init__(**{"name": "decoupled_model", "dtype": "float32", **kwargs})
        self.config = config if isinstance(config, ModelConfig) else parse_config(ModelConfig, config, "model.")
        # The check comes first, because a config from an untrusted file may ask for more memory than there is.
        require_memory(self.config)
        made = {name: network for name, (network, _) in make_networks(self.config).items()}
        self.flow: Flow = made["flow"]
        self.encoder: Encoder | None = made.get("encoder")
        self.prior_flow: InvertibleLayer | None = made.get("prior_flow")
        self.prior_affine: ClassAffine | None = made.get("prior_affine")
        self.code_net: ClassCodes | None = made.get("class_codes")
        self.dequantizer: Dequantizer | None = made.get("dequantizer")
        networks = [self.flow, self.encoder, self.prior_flow]
        if self.dequantizer is not None:
            networks += [self.dequantizer.encoder, self.dequantizer.flow]
        for network in networks:
            # A prior flow without traces of its own, such as a single layer, has no `execution`.
            if hasattr(network, "execution"):
                network.execution.jit_compile = jit_compile
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights of the model; the constructor calls this method, because the config fixes every shape."""
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
        """Returns a dict for `from_config`: the model's name, config, and paths of layers that are not trainable."""
        untrained = [path for path, layer in _walk_layers(self) if not layer.trainable]
        return {"name": self.name, "config": self.config.to_dict(), **({"untrained": untrained} if untrained else {})}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Networks:
        """Returns a new, uninitialised model from a dict of `get_config`; the same layers are not trainable."""
        arguments = dict(config)
        untrained = arguments.pop("untrained", ())
        model = cls(**arguments)
        if untrained:
            for path, layer in _walk_layers(model):
                layer.trainable = path not in untrained
        return model

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of a batch of the model's images, `(None, height, width, channels)`."""
        return (None, *self.config.image_shape)

    @property
    def output_shape(self) -> Codes:
        """The shapes of z and v, batch first, as `Codes`; for a model without z the shape of z is None."""
        return Codes((None, self.config.latent_dim) if self.config.has_latent else None, self.input_shape)

    @property
    def input(self) -> keras.KerasTensor:
        """The model's symbolic input images, a `KerasTensor`, from which a user can make another Keras model."""
        self._call_symbolically()
        return super().input

    @property
    def output(self) -> Codes:
        """The symbolic codes (`Codes` of `KerasTensor`s) that the model computes from `input`."""
        self._call_symbolically()
        return Codes(*super().output)

    def _call_symbolically(self) -> None:
        """Calls the model once on symbolic images, so that Keras registers the model's input and output.

        Raises AttributeError for a model without z, or with a z that needs labels. By this error Keras knows that the
        model has no symbolic output.
        """
        if not self.config.has_latent:
            raise AttributeError("a model without z has no output of Keras, which takes no None among them")
        if self.config.has_class_codes:
            raise AttributeError("the output of this model needs labels, too: call model(images, labels)")
        if not self._inbound_nodes:
            self(keras.Input(self.config.image_shape, dtype="uint8"))

    @property
    def quantizer(self) -> Quantizer:
        """The model's `Quantizer`, which converts pixels 0..255 to bins, bins to x in [-1, 1), and x to pixels."""
        return Quantizer(self.config.n_bits)

    @property
    def class_log_probabilities(self) -> tf.Tensor:
        """The logarithm of p(y) for each label y, float32 `[classes]`; the config's `class_probabilities` fix p(y)."""
        self._require_classes()
        shares = np.asarray(self.config.label_shares, np.float64)
        return tf.constant(np.log(shares / shares.sum()), tf.float32)

    @property
    def class_codes(self) -> tf.Tensor:
        """The global code z of each label, float32 `[classes, d_z]`; UserError if z is no function of the label."""
        if self.code_net is None:
            raise UserError(
                f"z of this model is no function of the label (model.prior is {self.config.prior!r}), so there are no "
                "codes of labels"
            )
        self.require_initialized()
        return self.code_net.compute_codes()

    def named_variables(self) -> dict[str, keras.Variable]:
        """Returns {path: variable} of all weights, such as `flow/level_0_part_0_step_0/actnorm_1/bias`."""
        return self._name_variables(self.variables)

    def parameter_count(self) -> dict[str, int]:
        """Returns {network: count of the model's trainable parameters}, and the sum of these counts as "total"."""
        named = self._name_variables(self.trainable_variables)
        return count_by_network({name: variable.shape for name, variable in named.items()})

    def _name_variables(self, variables: list[keras.Variable]) -> dict[str, keras.Variable]:
        # Keras begins the path of a variable with the model's name, on which a checkpoint must not depend.
        return {variable.path.removeprefix(f"{self.path}/"): variable for variable in variables}

    def initialize(self, images: Any, seed: int = 0, force: bool = False) -> None:
        """Initialises the weights from images, once, before training (paper section 2.1 and the paper's code).

        Every actnorm gets the scale and shift for which its output has mean 0 and standard deviation 1 on these images,
        without dequantisation noise. Every coupling starts as the identity, the posterior as N(0, I), and a learned
        q(u|x) as nearly uniform.

        Args:
            images: uint8 `[batch, height, width, channels]`, a few hundred or more training images.
            seed: seed of the noise that initialises the flows of the prior and of the dequantisation.
            force: whether to overwrite weights that were initialised or loaded before; False raises UserError then.
        """
        bins = self._find_bins(images)
        if bins.shape[0] == 0:
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

        x = self.quantizer.place_at_edges(bins)
        z, labels = None, self._make_labels_in_turn(bins.shape[0])
        if self.prior_affine is not None:
            self.prior_affine.reset_to_zero()
        if self.encoder is not None:
            self.encoder.reset_to_zero()
            # The reset has made q(z|x) N(0, I) for every image, so z is drawn without running the encoder.
            shape = [bins.shape[0], self.config.latent_dim]
            z = tf.random.stateless_normal(shape, randomness.derive_seed(seed, "initialize"))
            if self.flow.colour_map is not None:
                start = compute_start(measure_colours(x))
                self.encoder.carry_colours(*start)
                self.flow.colour_map.start_from(*start)
                mean, log_variance = self.encoder.run_inference(x)
                z = mean + tf.exp(log_variance / 2) * z
        elif self.code_net is not None:
            # Couplings start as the identity for every z, so the initialisation does not depend on the labels.
            z = self.code_net(labels)
        self._visit_flows(x, z, labels, lambda layer, *inputs: layer.initialize(*inputs))
        if self.dequantizer is not None:
            self.dequantizer.flow.initialize_from_noise(randomness.derive_seed(seed, "dequantize"))
        self.initialized.assign(True)

    def diagnose(self, images: Any) -> dict[str, float]:
        """Returns {"smallest_scale": s, "worst_condition": c}, which show whether training is about to diverge.

        The float s is the smallest scale that any coupling applies for these images; the inverse divides by the scales.
        The float c is the largest condition number of any 1x1 convolution or linear layer.
        The images are uint8 `[batch, height, width, channels]`. If the model has labels, image i gets the label i
        modulo `classes`.
        """
        bins = self._find_bins(images)
        if bins.shape[0] == 0:
            raise DataError("diagnose got no images; it needs at least one")
        scales, conditions = [tf.constant(1.0)], [tf.constant(1.0, tf.float64)]

        def visit(layer: Any, x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
            if isinstance(layer, Coupling):
                scales.append(tf.reduce_min(layer.compute_slopes(x, condition)))
            elif isinstance(layer, InvertibleLinear):
                conditions.append(layer.compute_condition_number())
            return layer.forward_and_log_det(x, condition)[0]

        inputs = self.quantizer.place_at_edges(bins)
        z = None if self.encoder is None else self.encoder.run_inference(inputs)[0]
        labels = self._make_labels_in_turn(bins.shape[0])
        if self.code_net is not None:
            z = self.code_net(labels)
        self._visit_flows(self.quantizer.place_at_centres(bins), z, labels, visit)
        if self.dequantizer is not None:
            noise = tf.random.stateless_normal(tf.shape(bins), randomness.derive_seed(0, "diagnose"))
            self.dequantizer.flow.visit_layers(noise, self.dequantizer.encoder.run_inference(inputs), visit)
        return {
            "smallest_scale": float(tf.reduce_min(tf.stack(scales))),
            "worst_condition": float(tf.reduce_max(tf.stack(conditions))),
        }

    def _make_labels_in_turn(self, count: int) -> tf.Tensor:
        return tf.range(count) % max(self.config.classes, 1)

    def _require_classes(self) -> None:
        if not self.config.has_classes:
            raise UserError("this model knows no labels (model.classes is 0)")

    def _visit_flows(self, x: tf.Tensor, z: tf.Tensor | None, labels: tf.Tensor | None, visit: Visit) -> None:
        if z is not None and self.prior_flow is not None:
            shifted = z
            if self.prior_affine is not None:
                shifted = tf.gather(self.prior_affine(z)[0], labels, batch_dims=1)
            self.prior_flow.visit_layers(shifted, None, visit)
        self.flow.visit_layers(x, z, visit)

    def require_initialized(self) -> None:
        """Raises NotInitializedError if the model's weights were neither initialised nor loaded."""
        if not self.has_weights():
            raise NotInitializedError(
                "this model is not initialised: call model.initialize(images) with training images, or load a run"
            )

    def has_weights(self) -> bool:
        """Returns whether the model's weights were initialised from images or loaded."""
        # The flag has no value within a trace, so `init_scope` leaves the trace. The flag becomes a tensor first,
        # because `bool` of a variable on several devices is always true.
        with tf.init_scope():
            return bool(tf.convert_to_tensor(self.initialized.value))

    def compute_output_spec(self, images: Any, labels: Any = None, training: bool = False) -> Codes:
        """Returns `Codes` of `KerasTensor`s for symbolic images, so that another Keras model can contain this model."""
        self._require_outputs()
        require_images(images, self.config.image_shape)
        z = keras.KerasTensor((images.shape[0], self.config.latent_dim), "float32")
        return Codes(z, keras.KerasTensor((images.shape[0], *self.config.image_shape), "float32"))

    def export(
        self, filepath: Any, format: str = "tf_saved_model", *rest: Any, input_signature: Any = None, **options: Any
    ) -> Any:
        """Exports `encode` as a SavedModel, as `keras.Model.export` does, and raises UserError for other formats."""
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

    # --- distributions, and the evidence lower bound ---

    @property
    def prior(self) -> tfd.Distribution:
        """The prior p(z), a TFP distribution of event shape `[d_z]`.

        In a model with labels p(z) is the mixture of p(z|y) (`conditional_prior`) over all labels y, with the weights
        p(y).
        """
        self._require_latent("a prior over z", density=True)
        self.require_initialized()
        if self.prior_affine is None:
            return self._make_prior([], [])
        of_labels = self._make_prior([self.prior_affine.as_bijector()], [self.config.classes])
        weights = tfd.Categorical(logits=self.class_log_probabilities)
        return tfd.MixtureSameFamily(weights, of_labels, name="prior")

    def conditional_prior(self, labels: Any) -> tfd.Distribution:
        """Returns p(z|y) for labels y `[batch]`, a TFP distribution with batch shape `[batch]`, event shape `[d_z]`."""
        self._require_latent("a prior over z", density=True)
        self._require_classes()
        self.require_initialized()
        labels = as_labels(labels, None, self.config.classes, required=True)
        assert self.prior_affine is not None and labels is not None
        return self._make_prior([self.prior_affine.as_bijector(labels)], tf.shape(labels))

    def _make_prior(self, first: list[tfb.Bijector], batch: Any) -> tfd.Distribution:
        """Returns the TFP distribution over z, of shape `batch`, that `first`, then the prior flow, map to N(0, I)."""
        base = tfd.Sample(tfd.Normal(tf.zeros(batch), 1.0), [self.config.latent_dim])
        flow = [] if self.prior_flow is None else [self.prior_flow.as_bijector()]
        # `tfb.Chain` applies the last bijector of its list first.
        maps = [*flow, *first]
        return tfd.TransformedDistribution(base, tfb.Invert(tfb.Chain(maps)), name="prior") if maps else base

    def posterior(self, images: Any) -> tfd.Distribution:
        """Returns q(z|x), a diagonal Gaussian `[batch]` of event shape `[d_z]`, for uint8 images (paper equation 5)."""
        self._require_latent("a posterior over z", density=True)
        self.require_initialized()
        assert self.encoder is not None
        bins = self._find_bins_of_any_size(self._check_images(images))[1]
        mean, log_variance = self.encoder.run_inference(self.quantizer.place_at_edges(bins))
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_variance / 2))

    def likelihood(self, z: Any = None) -> tfd.Distribution:
        """Returns p(x|z), a TFP distribution of x = 2*(k + u)/n_bins - 1 in [-1, 1), for bins k of pixels and noise u.

        The event shape is `[height, width, channels]`. `log_prob` also takes x with further leading dimensions.

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
        self.require_initialized()
        images = self._check_images(images)
        batch, *sides, channels = get_sizes(images)
        shape = [batch, *(round_side_up(side, compute_size_multiple(self.config)) for side in sides), channels]
        z_noise = tf.random.stateless_normal([batch, self.config.latent_dim], randomness.derive_seed(seed, "z"))
        u_noise = randomness.draw_pixel_noise(shape, randomness.derive_seed(seed, "u"), self.config.has_dequantizer)
        return self.elbo_from_noise(images, z_noise, u_noise, training, labels)

    def elbo_from_noise(
        self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
    ) -> Elbo:
        """Returns the terms of the bound as `elbo` does, but for given noise, and even if the model is not initialised.

        `z_noise` is standard normal, float32 `[batch, d_z]`; a model without z, or whose z is a function of the label,
        ignores it. `u_noise` is the dequantization noise of the padded images, float32, as for `dequantize`. The other
        arguments are those of `elbo`.
        """
        return self.elbo_and_latents(images, z_noise, u_noise, training, labels)[0]

    def elbo_and_latents(
        self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, training: bool = False, labels: Any = None
    ) -> tuple[Elbo, Latents]:
        """Returns the terms of the bound, as `elbo_from_noise` does, and the `Latents` of the same draw."""
        images = self._check_images(images)
        labels = self._check_labels(labels, images)
        # An empty batch has no statistics, so the encoder normalises as in evaluation.
        training = training and images.shape[0] != 0
        if self._get_other_size(images) is not None and not training:
            return self._run_within_memory(self._evaluate_bound_at_other_size, images, z_noise, u_noise, labels)
        # All activations are kept for a user's training loop that selects no memory mode (`backward_memory`).
        with backward_memory("keep") if training and get_backward_mode() is None else contextlib.nullcontext():
            if self._get_other_size(images) is not None:
                return self._evaluate_bound_at_other_size(images, z_noise, u_noise, labels, training)
            return negative_elbo(
                self, self.quantizer.find_bins(images), z_noise, u_noise, labels=labels, training=training
            )

    def _evaluate_bound_at_other_size(
        self, images: tf.Tensor, z_noise: tf.Tensor, u_noise: tf.Tensor, labels: Any, training: bool = False
    ) -> tuple[Elbo, Latents]:
        bins, encoder_bins = self._find_bins_of_any_size(images)
        elbo, latents = negative_elbo(
            self, bins, z_noise, u_noise, labels=labels, encoder_bins=encoder_bins, training=training
        )
        padding = multiply_sizes(get_sizes(bins)[1:3], tf.float32) / multiply_sizes(get_sizes(images)[1:3], tf.float32)
        return elbo._replace(bits_per_dim=elbo.bits_per_dim * padding), latents

    def dequantize(self, images: Any, noise: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns u, the position of each pixel within its bin, drawn from q(u|x), and log q(u|x), `[batch]`, in nats.

        So x = 2*(k + u)/n_bins - 1 for a pixel in bin k. Images, noise and u are `[batch, height, width, channels]`,
        the images uint8. For a learned q(u|x) the noise is standard normal, and u lies in (0, 1) but float32 may round
        it to 0 or 1. Otherwise the noise is uniform in [0, 1), and u is the noise. Noise and weights get gradients.
        """
        self.require_initialized()
        bins = self._find_bins(images)
        return dequantize(self, bins, as_pixel_noise(noise, bins))

    def evaluate_log_joint(self, bins: tf.Tensor) -> tf.Tensor:
        """Returns log p(x, y) of images, given as `bins`, for each label y, `[batch, classes]`, up to a constant."""
        if self.code_net is None:
            assert self.encoder is not None
            z = self.encoder.run_inference(self.quantizer.place_at_edges(bins))[0]
            return evaluate_class_priors(self, z)[1]
        x, found = self.quantizer.place_at_centres(bins), []
        for code in tf.unstack(self.code_net.compute_codes()):
            v, log_det = self.flow.forward_and_log_det(x, tf.repeat(code[None], tf.shape(x)[0], 0))
            found.append(standard_normal_log_prob(v) + log_det)
        return tf.stack(found, -1) + self.class_log_probabilities

    def z_from_noise(self, noise: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
        """Returns draws of z from the prior, `[batch, d_z]`, for standard normal noise `[batch, d_z]`.

        A model with labels needs labels, int32 `[batch]`; if z is a function of the label, the noise is ignored.
        """
        if self.code_net is not None:
            return self.code_net(labels)
        z = noise if self.prior_flow is None else self.prior_flow.inverse_and_log_det(noise)[0]
        return z if self.prior_affine is None else self.prior_affine.invert_for_labels(z, labels)

    def draw_labels(self, first: int, last: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns int32 labels, drawn from p(y) by `seed`, of the samples with the indices `first` to `last` - 1."""
        normal = randomness.draw_normal_part(last - first, first, seed)
        borders = tf.cumsum(tf.exp(self.class_log_probabilities))[:-1]
        uniform = (1 + tf.math.erf(normal / math.sqrt(2))) / 2
        # As int64 the labels stay on a GPU; TensorFlow would copy int32 results of the search to the host.
        return tf.cast(tf.searchsorted(borders, uniform, side="right", out_type=tf.int64), tf.int32)

    def drop_unused_labels(self, labels: Any) -> Any:
        """Returns `labels` unchanged if the model has labels, and otherwise None."""
        return labels if self.config.has_classes else None

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Converts -log p(x), in nats per image of x in [-1, 1), to bits per colour value of the image of pixels."""
        return self.quantizer.convert_to_bits_per_dim(nats, math.prod(self.config.image_shape))

    def _find_bins(self, images: Any) -> tf.Tensor:
        return self.quantizer.find_bins(as_images(images, self.config.image_shape))

    # --- images of another size than `config.image_shape`; the functions are in any_size.py ---

    def _check_images(self, images: Any) -> tf.Tensor:
        """Returns images as a uint8 tensor; raises DataError if the model cannot encode images of their size."""
        images = as_images(images, self.config.image_shape, any_size=True)
        if self._get_other_size(images) is not None:
            require_any_size(self.config, "images", images)
        return images

    def _get_other_size(self, images: tf.Tensor) -> tuple[Any, Any] | None:
        """Returns (height, width) of images or local codes if they differ from `config.image_shape`; otherwise None."""
        _, height, width, _ = get_sizes(images)
        return None if images.shape[1:3] == self.config.image_shape[:2] else (height, width)

    def _find_bins_of_any_size(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the bins of images padded for the flow, and the bins of the images resized for the encoder."""
        padded, shrunk = pad_and_shrink_images(self.config, images)
        bins = self.quantizer.find_bins(padded)
        return bins, bins if shrunk is padded else self.quantizer.find_bins(shrunk)

    def _run_within_memory(self, function: Callable[..., Any], batch: tf.Tensor, *others: Any) -> Any:
        """Returns `function(batch, *others)`, computed for so few images at a time that the computation fits in memory.

        The function must treat each image separately; `others` are tensors `[batch, ...]` or None. Only images of
        another size than `config.image_shape` are divided, and not while a graph is traced.
        """
        if not tf.executing_eagerly() or self._get_other_size(batch) is None:
            return function(batch, *others)
        count = count_images_at_once(self.config, *batch.shape[1:3])
        if batch.shape[0] <= count:
            return function(batch, *others)
        return run_in_parts(function, count, batch, *others)

    def _check_labels(self, labels: Any, bins: tf.Tensor) -> tf.Tensor | None:
        return as_labels(labels, get_sizes(bins)[0], self.config.classes, self.config.has_class_codes)

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


def run_in_parts(function: Callable[..., Any], count: int, *batches: tf.Tensor | None) -> Any:
    """Calls `function` on `count` entries at a time of `batches`, each `[n, ...]` or None; returns joined results."""
    starts = range(0, next(batch.shape[0] for batch in batches if batch is not None), count)
    parts = [
        function(*(None if batch is None else batch[start : start + count] for batch in batches)) for start in starts
    ]
    return tf.nest.map_structure(lambda *results: None if results[0] is None else tf.concat(results, 0), *parts)


def _walk_layers(layer: keras.layers.Layer, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    yield path, layer
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from _walk_layers(child, f"{path}/{child.name}".lstrip("/"))
