"""A whole model as it is deployed, between pixels and codes.

Everything that depends on weights alone is computed beforehand, in float64, and rounded once to float32: weight and
batch normalisation, the actnorm before each 1x1 convolution, the inverses of the 1x1 convolutions, and what z is
multiplied with, which is one product for all nets. The layers keep the structure of the model's own, and the transforms
of the couplings are the model's own bijectors. There is no data-dependent control flow, no scalar input and no
operation that ONNX lacks.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import tensorflow as tf

from export.deployed.classes import DeployedClasses
from export.deployed.deployed_encoder import DeployedEncoder
from export.deployed.deployed_flow import DeployedFlow, DeployedPrior, total
from export.deployed.dequantizer import DeployedDequantizer
from export.deployed.graph import Deployed, scope
from export.deployed.layout import Layout
from tfdecouple.architecture import plan
from tfdecouple.config import ModelConfig
from tfdecouple.model import DecoupledModel
from tfdecouple.model.quantizer import Quantizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedModel(Deployed):
    """What the graphs of all endpoints are built from.

    Images within the graph are float32 in the order of axes of `layout`.

    Attributes:
        config: the architecture.
        layout: the order of axes.
        quantizer: between pixels and what the flow maps.
        flow: from images to v.
        prior: from z to noise; None without z, and where z is a function of the label.
        encoder: likewise.
        classes: of the labels; None where the model knows none.
        dequantizer: None where u is uniform.
    """

    config: ModelConfig
    layout: Layout
    quantizer: Quantizer
    flow: DeployedFlow
    prior: DeployedPrior | None
    encoder: DeployedEncoder | None
    classes: DeployedClasses | None
    dequantizer: DeployedDequantizer | None

    @classmethod
    def from_model(cls, model: DecoupledModel, order: str = "NHWC") -> Self:
        """Folds the weights of a model.

        Args:
            model: with weights.
            order: "NHWC", or "NCHW" as ONNX has it.

        Raises:
            NotInitializedError: for a model without weights.
            InversionError: where a matrix cannot be inverted, or a number is not finite.
        """
        model.require_initialized()
        config, layout = model.config, Layout(order)
        prior = encoder = dequantizer = None
        if model.encoder is not None:
            planned = plan(config).encoder
            assert planned is not None
            encoder = DeployedEncoder.from_layer(model.encoder, layout, planned.out_sides(planned.blocks[-1]))
            prior = DeployedPrior.from_layer(model.prior_flow, layout)
        if model.dequantizer is not None:
            dequantizer = DeployedDequantizer.from_layer(model.dequantizer, layout)
        flow = DeployedFlow.from_layer(model.flow, layout)
        return cls(
            name="model",
            config=config,
            layout=layout,
            quantizer=model.quantizer,
            flow=flow,
            prior=prior,
            encoder=encoder,
            classes=DeployedClasses.from_model(model),
            dequantizer=dequantizer,
        )

    # --- the pieces of the endpoints ---

    def levels_of(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the levels of uint8 images `[batch, height, width, channels]`, in the order of the graph."""
        with scope("input"):
            return self.quantizer.levels(self.layout.enter(images))

    def pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images `[batch, height, width, channels]` of x in [-1, 1); what lies outside is clipped."""
        with scope("output"):
            return self.layout.leave(self.quantizer.pixels(x))

    def flow_input(self, levels: tf.Tensor, u: float | tf.Tensor = 0.5) -> tf.Tensor:
        """Returns x in [-1, 1) of levels and of u in [0, 1); by default the centres of their bins."""
        with scope("input"):
            return self.quantizer.within(levels, u)

    def to_inside(self, v: tf.Tensor) -> tf.Tensor:
        """Brings `[batch, height, width, channels]` into the order of the graph."""
        with scope("input"):
            return self.layout.enter(v)

    def to_outside(self, v: tf.Tensor) -> tf.Tensor:
        """Brings an image of the graph into `[batch, height, width, channels]`."""
        with scope("output"):
            return self.layout.leave(v)

    def posterior(self, levels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of q(z|x), each `[batch, d_z]`."""
        assert self.encoder is not None
        with self.encoder.scope():
            return self.encoder(self.quantizer.edges(levels))

    def code(self, levels: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor | None:
        """Returns the z of `encode`, `[batch, d_z]`; None without z."""
        if self.classes is not None and self.classes.codes is not None:
            assert labels is not None
            return self.classes.of(self.classes.codes, labels)
        return None if self.encoder is None else self.posterior(levels)[0]

    def z_from_noise(self, noise: tf.Tensor | None, labels: tf.Tensor | None) -> tf.Tensor | None:
        """Returns z of normal noise, where it has a density, and of labels, where the model knows them."""
        if self.classes is not None and self.classes.codes is not None:
            return self.code(noise, labels)
        z = None if self.prior is None else self.prior.inverse(noise)
        return z if self.classes is None or z is None else self.classes.moved_back(z, labels)

    def prior_of_each_class(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the noise of the prior behind z by each label, and log p(z, y), as the model's own."""
        assert self.classes is not None
        moved = self.classes.moved(z)
        classes, latent_dim = moved.shape[1:]
        noise, log_det = self.prior_forward_and_log_det(tf.reshape(moved, [-1, latent_dim]))
        constant = latent_dim * math.log(2 * math.pi)
        log_prob = log_det - 0.5 * (tf.reduce_sum(tf.square(noise), -1) + constant)
        log_joint = tf.reshape(log_prob, [-1, classes]) + self.classes.log_det + self.classes.log_probabilities
        return tf.reshape(noise, [-1, classes, latent_dim]), log_joint

    def dequantize_and_log_det(self, levels: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps normal noise to u, with the log-determinant `[batch]`."""
        assert self.dequantizer is not None
        log_dets: list[tf.Tensor] = []
        u = self.dequantizer.forward(self.quantizer.edges(levels), noise, log_dets)
        return u, total(log_dets)

    def flow_forward_and_log_det(self, x: tf.Tensor, z: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x to v, with the log-determinant `[batch]`, or a scalar where it is the same for all images."""
        log_dets: list[tf.Tensor] = []
        v = self.flow.forward(x, z, log_dets)
        return v, total(log_dets)

    def prior_forward_and_log_det(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps z to the noise of the prior, with the log-determinant."""
        assert self.prior is not None
        log_dets: list[tf.Tensor] = []
        noise = self.prior.forward(z, (), log_dets)
        return noise, total(log_dets)
