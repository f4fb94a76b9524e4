"""The class `DecoupledModel`: its networks and weights; the modules of this package have its methods, by subject."""

import math
from collections.abc import Iterator
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.arguments import require_images
from tfdecouple.config import ModelConfig, TrainingConfig, load_preset, parse_config, preset_names
from tfdecouple.errors import ConfigError, NotInitializedError, UserError, nearest, one_line
from tfdecouple.layers.base import InvertibleLayer, KeepsWeights, disable_autograph
from tfdecouple.model import codes, densities, initialization, keras_training
from tfdecouple.model.any_size import SizedCodes
from tfdecouple.model.codes import Codes
from tfdecouple.model.quantizer import Quantizer
from tfdecouple.networks.architecture import compute_weight_shapes, count_by_network, make_networks, require_memory
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder
from tfdecouple.networks.flow import Flow
from tfdecouple.networks.prior import ClassAffine, ClassCodes
from tfdecouple.runs.pretrained import list_pretrained
from tfdecouple.runs.run_folder import CONFIG, RunFolder
from tfdecouple.runtime.execution import Traced
from tfdecouple.runtime.requirements import require_backend
from tfdecouple.runtime.run_mode import RunMode


@keras.saving.register_keras_serializable(package="tfdecouple")
@disable_autograph
class DecoupledModel(KeepsWeights, keras.Model):
    """The paper's model: encoder, prior and flow, with methods to encode, decode, sample, edit, classify and train.

    The constructor creates all weights; `initialize` or `fit` then sets their values, or `from_preset` loads trained
    ones. All images are uint8 `[batch, height, width, channels]` with values 0..255, for any `config.n_bits`.

    >>> from tfdecouple.config import ModelConfig
    >>> config = ModelConfig(
    ...     image_shape=(8, 8, 3), latent_dim=4, steps=(1, 1), hidden_channels=(4, 4), encoder_channels=(4,),
    ...     prior_hidden=4,
    ... )
    >>> model = DecoupledModel(config)
    >>> images = tf.cast(tf.random.stateless_uniform([2, 8, 8, 3], [0, 1], 0, 256, tf.int32), tf.uint8)
    >>> model.initialize(images)
    >>> bool(tf.reduce_all(model.decode(*model.encode(images)) == images))
    True

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
        if not isinstance(config, ModelConfig | dict):
            known = "a ModelConfig or a dict; for a preset or a run, call DecoupledModel.from_preset(NAME)"
            raise ConfigError(f"config is {one_line(repr(config), 60)}; it must be {known}")
        # The dtype is set here, so that the model computes in float32 under every global Keras policy.
        super().__init__(**{"name": "decoupled_model", "dtype": "float32", **kwargs})
        if self.dtype_policy.name != "float32":
            raise UserError(f"dtype is {self.dtype_policy.name}; the model computes in float32: leave dtype out")
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
        runner = Traced(RunMode(jit_compile=jit_compile))
        for network in filter(None, networks):
            network.runner = runner
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
        self.initialized = self.add_weight((), "zeros", "bool", trainable=False, name="initialized")
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns a dict for `from_config`: the model's name, config, and paths of layers that are not trainable."""
        untrained = [path for path, layer in _walk_layers(self) if not layer.trainable]
        return {"name": self.name, "config": self.config.to_dict(), **({"untrained": untrained} if untrained else {})}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Returns a new, uninitialised model from a dict of `get_config`; the same layers are not trainable."""
        arguments = dict(config)
        untrained = arguments.pop("untrained", ())
        model = cls(**arguments)
        if untrained:
            for path, layer in _walk_layers(model):
                layer.trainable = path not in untrained
        return model

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs: Any) -> Self:
        """Returns the model of a preset, of a run folder or of the Hugging Face Hub, by default with trained weights.

        Args:
            preset: the name of bundled weights ("photographs"), the address `hf://OWNER/NAME[@REVISION]` of weights on
                the Hub, or the path of a run folder; with `load_weights=False` also the name of a preset like
                "cifar10".
            load_weights: whether to load the trained weights; False leaves the weights uninitialised.
            **kwargs: arguments of the constructor.

        Raises:
            ConfigError: if no preset or bundled weights have this name, or `load_weights` is true for a preset without
                weights.
        """
        if not (RunFolder(preset).path / CONFIG).is_file():
            known = (*list_pretrained(), *preset_names())
            if preset not in known:
                hint = nearest(preset, known)
                raise ConfigError(f"there is no preset {preset!r}{hint}; there are {', '.join(known)}")
            if load_weights:
                raise ConfigError(
                    f"the preset {preset} has no weights; give load_weights=False, or one that has: "
                    f"{', '.join(list_pretrained())}"
                )
            return cls(load_preset(preset).model, **kwargs)
        config = RunFolder(preset).read_config()
        RunFolder(preset).require_fitting_weights(compute_weight_shapes(config.model))
        model = cls(config.model, **kwargs)
        if load_weights:
            RunFolder(preset).load_weights(model, averaged=config.training.ema_decay > 0)
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
            raise AttributeError("a model without z has no symbolic output, because Keras accepts no None in it")
        if self.config.has_class_codes:
            raise AttributeError("the output of this model depends on labels: call model(images, labels)")
        if not self._inbound_nodes:
            self(keras.Input(self.config.image_shape, dtype="uint8"))

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
                f"Keras' export to {format!r} lacks operations that this model needs; tfdecouple export makes files "
                "for ONNX Runtime and other runtimes, checked against the model (docs/export.md)"
            )
        self._require_outputs()
        self.require_initialized()
        if input_signature is None:
            input_signature = [keras.InputSpec(dtype="uint8", shape=self.input_shape)]
        return super().export(filepath, format, *rest, input_signature=input_signature, **options)

    def save(self, filepath: Any, *rest: Any, **options: Any) -> None:
        """Saves the model as a file, as `keras.Model.save` does; raises UserError for HDF5, which Keras cannot load."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise UserError(f"Keras cannot load a model of this class from HDF5, {filepath}; save it as a .keras file")
        super().save(filepath, *rest, **options)

    def _require_outputs(self) -> None:
        if not self.config.has_latent:
            raise UserError(
                "this model has no z, and Keras takes no None among the outputs of a model; call encode(images).v in a "
                "layer of your own, or export by tfdecouple export"
            )

    @property
    def quantizer(self) -> Quantizer:
        """The model's `Quantizer`, which converts pixels 0..255 to bins, bins to x in [-1, 1), and x to pixels."""
        return Quantizer(self.config.n_bits)

    @property
    def class_log_probabilities(self) -> tf.Tensor:
        """The logarithm of p(y) for each label y, float32 `[classes]`; the config's `class_probabilities` fix p(y)."""
        self.require_classes()
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

    def require_classes(self) -> None:
        """Raises UserError if the model has no labels."""
        if not self.config.has_classes:
            raise UserError("this model has no labels (model.classes is 0)")

    def require_latent(self, what: str, density: bool = False) -> None:
        """Raises UserError if the model has no z, or (if `density`) no density of z, for which it has no `what`."""
        if density and self.config.has_class_codes:
            raise UserError(f"z is a function of the label (model.prior is 'classes'), so {what} is impossible")
        if not self.config.has_latent:
            raise UserError(f"this model has no z (model.conditioning is 'none'), so {what} is impossible")

    @property
    def _d_z(self) -> int:
        return self.config.latent_dim if self.config.has_latent else 0

    def drop_unused_labels(self, labels: Any) -> Any:
        """Returns `labels` unchanged if the model has labels, and otherwise None."""
        return labels if self.config.has_classes else None

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Converts -log p(x), in nats per image of x in [-1, 1), to bits per colour value of the image of pixels."""
        return self.quantizer.convert_to_bits_per_dim(nats, math.prod(self.config.image_shape))

    initialize = initialization.initialize
    diagnose = initialization.diagnose

    # --- codes of images ---

    def call(self, images: tf.Tensor, labels: Any = None, training: bool = False) -> Codes | SizedCodes:
        """Returns the codes z and v of images, as `encode` does; Keras calls this method for `model(images)`."""
        return self.encode(images, labels)

    encode = codes.encode
    decode = codes.decode
    sample = codes.sample
    switch = codes.switch
    interpolate = codes.interpolate
    edit = codes.edit
    quantize_images = codes.quantize_images
    z_from_noise = codes.z_from_noise
    draw_labels = codes.draw_labels

    # --- densities ---

    prior = property(densities.prior)
    conditional_prior = densities.conditional_prior
    posterior = densities.posterior
    likelihood = densities.likelihood
    elbo = densities.elbo
    elbo_from_noise = densities.elbo_from_noise
    elbo_and_latents = densities.elbo_and_latents
    dequantize = densities.dequantize
    classify = densities.classify
    evaluate_log_joint = densities.evaluate_log_joint

    # --- training with Keras ---

    _options: TrainingConfig | None = None
    _bound_metrics: keras_training.BoundMetrics | None = None
    train_function: Any
    test_function: Any
    predict_function: Any

    compile = keras_training.compile
    get_compile_config = keras_training.get_compile_config
    compile_from_config = keras_training.compile_from_config
    metrics = property(keras_training.metrics)
    require_compiled = keras_training.require_compiled
    fit = keras_training.fit
    evaluate = keras_training.evaluate
    predict = keras_training.predict
    # Keras' `fit`, `evaluate` and `predict` call the following methods.
    train_step = keras_training.train_step
    test_step = keras_training.test_step
    predict_step = keras_training.predict_step
    make_train_function = keras_training.make_train_function
    make_test_function = keras_training.make_test_function
    make_predict_function = keras_training.make_predict_function

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Does nothing, because the constructor has built the model; Keras would trace a training step to build it."""


def _walk_layers(layer: keras.layers.Layer, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    yield path, layer
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from _walk_layers(child, f"{path}/{child.name}".lstrip("/"))
