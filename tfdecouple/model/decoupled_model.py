"""The class `DecoupledModel`: what Keras needs, beside the methods of its base classes."""

import os

import keras

from tfdecouple.arguments import ArrayLike, require_images
from tfdecouple.errors import UserError
from tfdecouple.layers.base import disable_autograph
from tfdecouple.model.base_model import require_initialized
from tfdecouple.model.codes import Codes, Coding
from tfdecouple.model.densities import Densities
from tfdecouple.model.initialization import Initialization
from tfdecouple.model.keras_training import Training


@keras.saving.register_keras_serializable(package="tfdecouple")
@disable_autograph
class DecoupledModel(Training, Coding, Densities, Initialization):
    """The paper's model: encoder, prior and flow, with methods to encode, decode, sample, edit, classify and train.

    The constructor creates all weights; `initialize` or `fit` then sets their values. `tfdecouple.load_model` opens
    trained models. All images are uint8 `[batch, height, width, channels]` with values 0..255, for any `config.n_bits`.

    >>> import tensorflow as tf
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
        quantizer: converts pixels 0..255 to bins, bins to x in [-1, 1), and x to pixels.
        any_size: pads, resizes and checks images of any size for the networks.
        dequantizer: draws u, the position of a pixel within its bin, from q(u|x); None if u is uniform.
    """

    def call(self, images: ArrayLike, labels: ArrayLike | None = None, training: bool = False) -> Codes:
        """Returns the codes z and v of images, as `encode` does; Keras calls this method for `model(images)`."""
        return self.encode(images, labels)

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
        if self.config.has_label_codes:
            raise AttributeError("the output of this model depends on labels: call model(images, labels)")
        if not self._inbound_nodes:
            self(keras.Input(self.config.image_shape, dtype="uint8"))

    def compute_output_spec(self, images: keras.KerasTensor, labels: object = None, training: bool = False) -> Codes:
        """Returns `Codes` of `KerasTensor`s for symbolic images, so that another Keras model can contain this model."""
        self._require_outputs()
        require_images(images, self.config.image_shape)
        z = keras.KerasTensor((images.shape[0], self.config.latent_dim), "float32")
        return Codes(z, keras.KerasTensor((images.shape[0], *self.config.image_shape), "float32"))

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        *rest: object,
        input_signature: list | None = None,
        **options: object,
    ) -> object:
        """Exports `encode` as a SavedModel, as `keras.Model.export` does, and raises UserError for other formats."""
        if format != "tf_saved_model":
            raise UserError(
                f"Keras' export to {format!r} lacks operations that this model needs; tfdecouple export makes files "
                "for ONNX Runtime and other runtimes, checked against the model (docs/export.md)"
            )
        self._require_outputs()
        require_initialized(self)
        if input_signature is None:
            input_signature = [keras.InputSpec(dtype="uint8", shape=(None, *self.config.image_shape))]
        return super().export(filepath, format, *rest, input_signature=input_signature, **options)

    def save(self, filepath: str | os.PathLike[str], *rest: object, **options: object) -> None:
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

    def _maybe_symbolic_build(self, iterator: object = None, data_batch: object = None) -> None:
        """Does nothing, because the constructor has built the model; Keras would trace a training step to build it."""
