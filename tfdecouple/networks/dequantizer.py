"""Variational dequantisation q(u|x): a flow from noise to u, the positions of x inside the bins of the pixels.

The method is from Ho et al., "Flow++", 2019. The paper of this model does not mention the method, but the paper's code
has it. The flow consists of the same layers as the decoder, conditioned on a map of the image instead of z.
"""

import math

import keras
import tensorflow as tf

from tfdecouple.config import ModelConfig, parse_config
from tfdecouple.config.shapes import Shape
from tfdecouple.layers import ActNorm, Sigmoid
from tfdecouple.layers.base import BaseLayer, Children, Condition, InvertibleLayer, Mapped, Run, Runner
from tfdecouple.networks.encoder import LocalResNet
from tfdecouple.networks.flow import Flow, Stage
from tfdecouple.storage.files import Facts

# The sigmoid of normal noise is closest to uniform for this standard deviation: its relative entropy to uniform noise
# is 0.0095 nats per value, and 0.193 nats for the standard deviation 1.
_NEAR_UNIFORM = 1.75
# Every actnorm is initialised from at least this many noise values per channel, which determine its scale to about
# 0.5 %.
_LEAST_NOISE_COUNT = 2**14


@keras.saving.register_keras_serializable(package="tfdecouple")
class DequantizingFlow(Flow):
    """The flow from standard normal noise to u in (0, 1), conditioned on a map of the image; it ends in a sigmoid.

    Noise and u have the shape of the images, `[batch, height, width, channels]`.
    """

    def __init__(self, config: ModelConfig | Facts, **kwargs: object):
        super().__init__(config, **kwargs)
        self.sigmoid = Sigmoid(name="sigmoid", dtype=self.dtype_policy)

    def children(self, x_shape: Shape | None = None, condition_shape: Shape | None = None) -> Children:
        return [*super().children(), (self.sigmoid, (None, *self.config.image_shape), None)]

    def _make_levels(self) -> tuple[tuple[Stage, ...], ...]:
        config = self.config
        self.local, self.condition_size = True, config.dequantization_map_channels
        transform = config.dequantization_transform
        couplings = {"alpha": config.dequantization_alpha}
        return self._make_stages(config.dequantization_levels, transform, transform, (), couplings)

    def initialize_from_noise(self, seed: tf.Tensor) -> None:
        """Sets the weights so that u is nearly uniform: couplings become the identity, actnorms are set from noise.

        The output of every actnorm gets mean 0 and the standard deviation for which the sigmoid of normal noise is
        closest to uniform. The standard deviation 1, as in the paper's code, would raise the bound of
        -log p(x) by 0.28 bits per dimension.
        """
        positions = self.levels[-1][0].plan.positions
        noise = tf.random.stateless_normal([-(-_LEAST_NOISE_COUNT // positions), *self.config.image_shape], seed)

        def visit(layer: InvertibleLayer, x: tf.Tensor, condition: Condition) -> tf.Tensor:
            y = layer.initialize(x, condition)
            if not isinstance(layer, ActNorm):
                return y
            layer.log_scale.assign(layer.log_scale + math.log(_NEAR_UNIFORM))
            layer.bias.assign(layer.bias * _NEAR_UNIFORM)
            return y * _NEAR_UNIFORM

        self.visit_layers(noise, None, visit)

    def run_forward(self, run: Run, x: tf.Tensor, condition: Condition) -> Mapped:
        """Returns u in (0, 1) for noise x, and log |det du/dx|, `[batch]`."""
        y, log_det = super().run_forward(run, x, condition)
        u, change = run([self.sigmoid], y, None)
        return u, log_det + change

    def run_inverse(self, run: Run, y: tf.Tensor, condition: Condition) -> Mapped:
        y, change = run([self.sigmoid], y, None)
        x, log_det = super().run_inverse(run, y, condition)
        return x, log_det + change


@keras.saving.register_keras_serializable(package="tfdecouple")
class Dequantizer(BaseLayer):
    """The network of q(u|x): an encoder computes a map of the image, and a flow given the map turns noise into u."""

    def __init__(self, config: ModelConfig | Facts, **kwargs: object):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else parse_config(ModelConfig, config, "model.")
        self.encoder = LocalResNet(
            self.config.dequantization_encoder_channels, self.config.dequantization_map_channels, name="encoder"
        )
        self.flow = DequantizingFlow(self.config, name="flow")

    def children(self, x_shape: Shape | None = None, condition_shape: Shape | None = None) -> Children:
        image = (None, *self.config.image_shape)
        return [(self.encoder, image, None), (self.flow, image, None)]

    def build(self, x_shape: Shape = ()) -> None:  # type: ignore[override]
        super().build(x_shape)

    def compute_output_shape(self, x_shape: Shape, noise_shape: Shape | None = None) -> tuple[tuple, tuple]:
        return tuple(x_shape), tuple(x_shape)[:1]

    def call(self, x: tf.Tensor, noise: tf.Tensor, training: bool = False, runner: Runner | None = None) -> Mapped:
        """Returns u in (0, 1) for images x in [-1, 1) and standard normal noise, and log |det du/dnoise|, `[batch]`.

        The encoder and the flow are run by `runner`, or by their own runners if it is None.
        """
        local = self.encoder(x, training=True) if training else self.encoder.run_inference(x, runner)
        return self.flow.forward_and_log_det(noise, local, runner)
