"""Variational dequantisation q(u|x): a flow from noise to the places u in the bins of an image's pixels.

Ho et al., "Flow++", 2019; the paper's code has it, the paper does not speak of it. The flow is made of the same plan,
layers and bijectors as the decoder's; its couplings take the map where those of the decoder take z.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import ModelConfig, from_plain
from tfdecouple.config.shapes import local_blocks
from tfdecouple.layers import ActNorm, Sigmoid
from tfdecouple.layers.base import ChildCall, FullLayer, Nested
from tfdecouple.networks.encoder import ResNetBlock, TransposedResNetBlock, chained
from tfdecouple.networks.flow import Flow, Stage
from tfdecouple.runtime.execution import Batch, Execution, divided, joined
from tfdecouple.runtime.precision import full_float32

# The standard deviation of normal noise whose sigmoid is nearest to uniform: 0.0095 nats of relative entropy a number,
# where 1 has 0.193.
_NEAR_UNIFORM = 1.75
# From noise at so many places of the last level an actnorm is started: its scale is then off by half a per cent.
_PLACES = 2**14


@keras.saving.register_keras_serializable(package="tfdecouple")
class LocalResNet(Nested, FullLayer):
    """From images to maps of their own size: levels of two ResNet blocks down, and as many of transposed ones back up.

    Args:
        channels: planes of the levels; each halves height and width.
        map_channels: channels of the map.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, channels: tuple[int, ...], map_channels: int, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.execution = Execution()
        self.channels = tuple(channels)
        self.map_channels = map_channels
        # Which blocks there are does not depend on the channels of the images.
        self.blocks = [
            (TransposedResNetBlock if transposed else ResNetBlock)(planes, strides, name=name)
            for name, planes, strides, transposed in local_blocks(self.channels, map_channels)
        ]

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the blocks, for images `[batch, height, width, channels]`."""
        return chained(self.blocks, x_shape)

    def compute_output_shape(self, x_shape: Any) -> tuple:
        """Returns the shape of what `call` gives."""
        return (*x_shape[:-1], self.map_channels)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the maps, `[batch, height, width, map_channels]`.

        Args:
            x: `[batch, height, width, channels]` in [-1, 1), without noise.
            training: whether batch statistics normalise, and update the moving ones.
        """
        # As in the encoder of z: without training each image is by itself, and the caller has divided the batch. Each
        # block sees to full float32.
        batch: Batch = divided(x) if training else x
        for block in self.blocks:
            batch = block(batch, training=training)
        return joined(batch)

    @full_float32()
    def infer(self, x: tf.Tensor) -> tf.Tensor:
        """As `call` without training, where each image is by itself: the fast way for a caller outside of a graph."""
        return self.execution.run(self, self._infer, x)[0]

    def _infer(self, x: tf.Tensor, condition: None = None) -> tuple[tf.Tensor]:
        return self.execution.run_whole(self._by_averages, x)

    def _by_averages(self, x: tf.Tensor, condition: None = None) -> tuple[tf.Tensor]:
        return (self(x, training=False),)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config.pop("dtype")
        return {**config, "channels": self.channels, "map_channels": self.map_channels}


@keras.saving.register_keras_serializable(package="tfdecouple")
class DequantizingFlow(Flow):
    """The flow from standard normal noise to u in (0, 1), the places in the bins; its condition is the map.

    Both are images, `[batch, height, width, channels]`. The sigmoid stands at its end.
    """

    def __init__(self, config: ModelConfig | dict[str, Any], **kwargs: Any):
        super().__init__(config, **kwargs)
        self.sigmoid = Sigmoid(name="sigmoid", dtype=self.dtype_policy)

    def children(self, x_shape: Any = None, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns every layer, for noise of the shape of images."""
        return [*super().children(), (self.sigmoid, (None, *self.config.image_shape), None)]

    def _make_levels(self) -> tuple[tuple[Stage, ...], ...]:
        config = self.config
        self.local, self.condition_size = True, config.dequantization_map_channels
        transform = config.dequantization_transform
        return self._stages(config.dequantization_levels, transform, transform, {}, alpha=config.dequantization_alpha)

    def start(self, seed: Any) -> None:
        """Starts the flow as that of the decoder, from noise in the place of data, but with u nearly uniform.

        Couplings are the identity; every actnorm gives mean 0 and the standard deviation of which the sigmoid is
        nearest to uniform. (In the paper's code it is 1, which costs 0.28 bits per dimension.)

        Args:
            seed: of the noise.
        """
        places = self.levels[-1][0].plan.positions
        noise = randomness.normal([-(-_PLACES // places), *self.config.image_shape], seed)

        def visit(layer: Any, x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
            y = layer.initialize(x, condition)
            if not isinstance(layer, ActNorm):
                return y
            layer.log_scale.assign(layer.log_scale + math.log(_NEAR_UNIFORM))
            layer.bias.assign(layer.bias * _NEAR_UNIFORM)
            return y * _NEAR_UNIFORM

        self.walk(noise, None, visit)

    def run_forward(self, x: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x towards v; see `InvertibleComposite`."""
        y, log_det = super().run_forward(x, condition, call)
        u, change = call(self.sigmoid, y, None)
        return u, log_det + change

    def run_inverse(self, y: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps v towards x; see `InvertibleComposite`."""
        y, change = call(self.sigmoid, y, None)
        x, log_det = super().run_inverse(y, condition, call)
        return x, log_det + change


@keras.saving.register_keras_serializable(package="tfdecouple")
class Dequantizer(Nested, FullLayer):
    """q(u|x), from noise and an image to u with its density.

    Args:
        config: the model's config, or its plain dict.
        **kwargs: of `keras.layers.Layer`.

    Attributes:
        encoder: from the image to the map.
        flow: from noise to u.
    """

    def __init__(self, config: ModelConfig | dict[str, Any], **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.config = config if isinstance(config, ModelConfig) else from_plain(ModelConfig, config, "model.")
        self.encoder = LocalResNet(
            self.config.dequantization_encoder_channels, self.config.dequantization_map_channels, name="encoder"
        )
        self.flow = DequantizingFlow(self.config, name="flow")

    def children(self, x_shape: Any = None, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns both networks, for images of the config's size."""
        image = (None, *self.config.image_shape)
        return [(self.encoder, image, None), (self.flow, image, None)]

    def build(self, x_shape: Any = None) -> None:  # type: ignore[override]
        """Builds both networks for images of the config's size."""
        super().build(x_shape)

    def compute_output_shape(self, x_shape: Any, noise_shape: Any = None) -> tuple[tuple, tuple]:
        """Returns the shapes of what `call` gives."""
        return tuple(x_shape), tuple(x_shape)[:1]

    def call(self, x: tf.Tensor, noise: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Turns noise into u.

        Args:
            x: `[batch, height, width, channels]` in [-1, 1), without noise.
            noise: standard normal, of the same shape.
            training: as for `LocalResNet`.

        Returns:
            u in (0, 1), of the shape of x, and log |det du/dnoise|, `[batch]`.
        """
        local = self.encoder(x, training=True) if training else self.encoder.infer(x)
        return self.flow.forward_and_log_det(noise, local)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config.pop("dtype")
        return {**config, "config": self.config.to_dict()}
