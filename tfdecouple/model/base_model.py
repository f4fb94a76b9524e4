"""The networks and weights of a model: the base class of `DecoupledModel` and of the classes with its methods."""

from collections.abc import Iterator
from typing import Self

import keras
import tensorflow as tf

from tfdecouple.config import ModelConfig, parse_config
from tfdecouple.config.shapes import Shape
from tfdecouple.errors import ConfigError, NotInitializedError, UserError, one_line
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.execution.runner import Traced
from tfdecouple.layers.base import InvertibleLayer, KeepsWeights, disable_autograph
from tfdecouple.model.any_size import AnySize
from tfdecouple.model.quantizer import Quantizer
from tfdecouple.networks.architecture import Architecture, count_by_network
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import Encoder
from tfdecouple.networks.flow import Flow
from tfdecouple.networks.prior import LabelAffine, LabelCodes
from tfdecouple.storage.files import Facts
from tfdecouple.system.requirements import require_backend


@disable_autograph
class BaseModel(KeepsWeights, keras.Model):
    """A Keras model with the networks of a config; arguments and attributes are those of `DecoupledModel`."""

    def __init__(self, config: ModelConfig | Facts, *, jit_compile: bool = False, **kwargs: object):
        require_backend()
        if not isinstance(config, ModelConfig | dict):
            known = "a ModelConfig or a dict; tfdecouple.load_model(NAME) opens trained weights"
            raise ConfigError(f"config is {one_line(repr(config), 60)}; it must be {known}")
        # The dtype is set here, so that the model computes in float32 under every global Keras policy.
        super().__init__(**{"name": "decoupled_model", "dtype": "float32", **kwargs})
        if self.dtype_policy.name != "float32":
            raise UserError(f"dtype is {self.dtype_policy.name}; the model computes in float32: leave dtype out")
        self.config = config if isinstance(config, ModelConfig) else parse_config(ModelConfig, config, "model.")
        # The check comes first, because a config from an untrusted file may ask for more memory than there is.
        architecture = Architecture(self.config)
        architecture.require_memory()
        self.any_size = AnySize(architecture)
        self.quantizer = Quantizer(self.config.n_bits)
        made = {name: network for name, (network, _) in architecture.make_networks().items()}
        self.flow: Flow = made["flow"]
        self.encoder: Encoder | None = made.get("encoder")
        self.prior_flow: InvertibleLayer | None = made.get("prior_flow")
        self.prior_affine: LabelAffine | None = made.get("prior_affine")
        self.code_net: LabelCodes | None = made.get("class_codes")
        self.dequantizer: Dequantizer | None = made.get("dequantizer")
        networks = [self.flow, self.encoder, self.prior_flow]
        if self.dequantizer is not None:
            networks += [self.dequantizer.encoder, self.dequantizer.flow]
        runner = Traced(RunMode(jit_compile=jit_compile))
        for network in filter(None, networks):
            network.runner = runner
        self.build()

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates all weights of the model; the constructor calls this method, because the config fixes every shape."""
        if hasattr(self, "initialized"):
            return
        z = None, self.config.latent_dim
        images = None, *self.config.image_shape
        of_images = dict.fromkeys((self.flow, self.encoder, self.dequantizer), images)
        for network, shape in {**of_images, self.prior_flow: z, self.prior_affine: z, self.code_net: (None,)}.items():
            if network is not None:
                network.build(shape)
        self.initialized = self.add_weight((), "zeros", "bool", trainable=False, name="initialized")
        self.built = True

    def get_config(self) -> Facts:
        """Returns a dict for `from_config`: the model's name, config, and paths of layers that are not trainable."""
        untrained = [path for path, layer in _walk_layers(self) if not layer.trainable]
        return {"name": self.name, "config": self.config.to_dict(), **({"untrained": untrained} if untrained else {})}

    @classmethod
    def from_config(cls, config: Facts, custom_objects: object = None) -> Self:
        """Returns a new, uninitialised model from a dict of `get_config`; the same layers are not trainable."""
        arguments = dict(config)
        untrained = arguments.pop("untrained", ())
        model = cls(**arguments)
        if untrained:
            for path, layer in _walk_layers(model):
                layer.trainable = path not in untrained
        return model

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

    def _has_weights(self) -> bool:
        """Returns whether the model's weights were initialised from images or loaded."""
        # The flag has no value within a trace, so `init_scope` leaves the trace. The flag becomes a tensor first,
        # because `bool` of a variable on several devices is always true.
        with tf.init_scope():
            return bool(tf.convert_to_tensor(self.initialized.value))

    @property
    def _d_z(self) -> int:
        return self.config.latent_dim if self.config.has_latent else 0

    def _require_latent(self, what: str, density: bool = False) -> None:
        """Raises UserError if the model has no z, or (if `density`) no density of z, for which it has no `what`."""
        if density and self.config.has_label_codes:
            raise UserError(f"z is a function of the label (model.prior is 'classes'), so {what} is impossible")
        if not self.config.has_latent:
            raise UserError(f"this model has no z (model.conditioning is 'none'), so {what} is impossible")


def require_initialized(model: BaseModel) -> None:
    """Raises NotInitializedError if the model's weights were neither initialised nor loaded."""
    if not model._has_weights():
        raise NotInitializedError(
            "this model is not initialised: call model.initialize(images) with training images, or load a run"
        )


def _walk_layers(layer: keras.layers.Layer, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    yield path, layer
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from _walk_layers(child, f"{path}/{child.name}".lstrip("/"))
