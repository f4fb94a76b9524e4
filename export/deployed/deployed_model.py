"""A whole model as it is deployed, between pixels and codes, with its labels and its scores.

Everything that depends on weights alone is computed beforehand, in float64, and rounded once to float32: weight and
batch normalisation, the actnorm before each 1x1 convolution, the inverses of the 1x1 convolutions, and what z is
multiplied with, which is one product for all nets. The layers keep the structure of the model's own, and the transforms
of the couplings are the model's own bijectors. There is no data-dependent control flow, no scalar input and no
operation that ONNX lacks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Self

import numpy as np
import tensorflow as tf

from export.deployed.deployed_encoder import DeployedDequantizer, DeployedEncoder
from export.deployed.deployed_flow import DeployedFlow, DeployedPrior, total
from export.deployed.graph import Array, Deployed, Layout, rounded, scope, values
from tfdecouple.config import ModelConfig
from tfdecouple.model import DecoupledModel
from tfdecouple.model.objective import by_label
from tfdecouple.model.outlier_scores import shell, typicality
from tfdecouple.model.quantizer import Quantizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedClasses(Deployed):
    """A model's labels, of which each has a row in every array.

    Attributes:
        log_probabilities: log p(y), `[classes]`.
        codes: z where it is a function of the label, `[classes, d_z]`; else None.
        scale: that z is multiplied with before the flow of the prior, likewise; None where z is such a function.
        unscale: its reciprocal.
        shift: that is added after it.
        log_det: of both, `[classes]`.
    """

    log_probabilities: Array
    codes: Array | None = None
    scale: Array | None = None
    unscale: Array | None = None
    shift: Array | None = None
    log_det: Array | None = None

    @classmethod
    def from_model(cls, model: DecoupledModel) -> Self | None:
        """Folds what a model has of its labels; None for a model that knows none.

        Raises:
            InversionError: where a number is not finite.
        """
        if not model.config.has_classes:
            return None
        arrays = {"log_probabilities": values(model.class_log_probabilities)}
        if model.code_net is not None:
            arrays["codes"] = values(model.class_codes)
        if model.prior_affine is not None:
            log_scale = values(model.prior_affine.log_scale)
            arrays |= {
                "scale": np.exp(log_scale),
                "unscale": np.exp(-log_scale),
                "shift": values(model.prior_affine.shift),
                "log_det": log_scale.sum(1),
            }
        return cls(name="classes", **{name: rounded(f"classes/{name}", array) for name, array in arrays.items()})

    def of(self, array: Array, labels: tf.Tensor) -> tf.Tensor:
        """Returns the rows of labels `[batch]`."""
        with self.scope():
            # Read first: to gather from a variable is an operation with state.
            return tf.gather(tf.convert_to_tensor(array), labels)

    def moved(self, z: tf.Tensor) -> tf.Tensor:
        """Returns z `[batch, d_z]` as each label moves it, `[batch, classes, d_z]`."""
        with self.scope():
            return z[:, None] * self.scale + self.shift

    def moved_back(self, z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns the z that its label, `[batch]`, has moved to this, `[batch, d_z]`."""
        shift, unscale = self.of(self.shift, labels), self.of(self.unscale, labels)
        with self.scope():
            return (z - shift) * unscale


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
            sides = model.encoder.map_shape(model.input_shape)[1:3]
            encoder = DeployedEncoder.from_layer(model.encoder, layout, sides)
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


def score(deployed: DeployedModel, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the scores of `outliers.OutlierScores` that the model has, each `[batch]`, by name.

    Args:
        deployed: the model.
        inputs: "images", "u_noise", and where the model knows them "z_noise" and "labels", as of the endpoint.
    """
    levels, labels = deployed.levels_of(inputs["images"]), inputs.get("labels")
    z, kl = None, None
    of_z, latents = {}, []
    if deployed.config.has_class_codes:
        z, classes = deployed.code(levels, labels), deployed.classes
        assert classes is not None
        kl = -classes.of(classes.log_probabilities, labels)
    if deployed.config.has_encoder:
        mean, log_variance = deployed.posterior(levels)
        noise = inputs["z_noise"]
        z = mean + tf.exp(log_variance / 2) * noise
        constant = deployed.config.latent_dim * math.log(2 * math.pi)
        if deployed.classes is None:
            prior_noise, log_det = deployed.prior_forward_and_log_det(z)
            # log q(z|x) - log p(z); the constants of the two Gaussians cancel.
            kl = 0.5 * tf.reduce_sum(tf.square(prior_noise) - tf.square(noise) - log_variance, -1) - log_det
            of_z["prior_nats"] = 0.5 * (tf.reduce_sum(tf.square(prior_noise), -1) + constant) - log_det
        else:
            prior_noise, log_prior = by_label(*deployed.prior_of_each_class(z), labels)
            kl = -0.5 * (tf.reduce_sum(tf.square(noise) + log_variance, -1) + constant) - log_prior
            of_z["prior_nats"] = -log_prior
        latents.append(prior_noise)
    u, log_q = deployed.to_inside(inputs["u_noise"]), None
    if deployed.dequantizer is not None:
        noise = u
        u, log_det = deployed.dequantize_and_log_det(levels, noise)
        log_q = _normal_log_density(noise) - log_det
    v, log_det = deployed.flow_forward_and_log_det(deployed.flow_input(levels, u), z)
    nats = -_normal_log_density(v) - log_det
    for term in (kl, log_q):
        if term is not None:
            nats += term
    return {
        "bits_per_dim": deployed.quantizer.bits_per_dim(nats, math.prod(deployed.config.image_shape)),
        **of_z,
        "shell": shell(v),
        "typicality": typicality([*latents, *deployed.flow.parts(v)]),
    }


def label_log_probabilities(deployed: DeployedModel, images: tf.Tensor) -> tf.Tensor:
    """Returns log p(y|x) of each label, `[batch, classes]`, of uint8 images."""
    levels = deployed.levels_of(images)
    if not deployed.config.has_class_codes:
        log_joint = deployed.prior_of_each_class(deployed.code(levels, None))[1]
        return tf.math.log_softmax(log_joint)
    classes = deployed.classes
    assert classes is not None
    # All labels in one pass, or the graph would grow with their number.
    count, batch = deployed.config.classes, tf.shape(levels)[0]
    x = tf.tile(deployed.flow_input(levels), [count, 1, 1, 1])
    z = tf.repeat(tf.convert_to_tensor(classes.codes), tf.fill([count], batch), 0)
    v, log_det = deployed.flow_forward_and_log_det(x, tf.ensure_shape(z, [None, deployed.config.latent_dim]))
    log_density = _normal_log_density(v) + log_det
    log_joint = tf.transpose(tf.reshape(log_density, [count, batch])) + classes.log_probabilities
    return tf.math.log_softmax(tf.ensure_shape(log_joint, [None, count]))


def _normal_log_density(x: tf.Tensor) -> tf.Tensor:
    """Returns log N(x; 0, I) of images, `[batch]`; as the objective's, whose constant is made in the graph."""
    return -0.5 * (tf.reduce_sum(tf.square(x), [1, 2, 3]) + math.prod(x.shape[1:]) * math.log(2 * math.pi))
