"""The deployed model, which maps between pixels and codes, with its labels and its scores.

Everything that depends on weights alone is computed in advance, in float64, and rounded once to float32: weight and
batch normalisation, the actnorm before each 1x1 convolution, the inverses of the 1x1 convolutions, and one matrix that
joins the matrices which all nets multiply z with. The layers have the structure of the model's layers, and couplings
use the model's bijectors. The graph has no data-dependent control flow, scalar input or operation that ONNX lacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from export.deployed.deployed_networks import DeployedDequantizer, DeployedEncoder, DeployedFlow, fold_prior
from export.deployed.graph import Array, Deployed, Layout, round_array, to_float64
from tfdecouple.model import DecoupledModel
from tfdecouple.model.any_size import fit_images
from tfdecouple.model.objective import by_label
from tfdecouple.model.outlier_scores import shell, typicality


class DeployedClasses(Deployed):
    """The deployed arrays of a model's labels, with a row for each label.

    If z is a function of the label, only `log_probabilities` and `codes` are set; otherwise all but `codes` are.

    Attributes:
        log_probabilities: log p(y) of each label y, `[classes]`.
        codes: the z of each label, `[classes, d_z]`.
        scale: the factor of z before the flow of the prior, `[classes, d_z]`.
        unscale: the reciprocal of `scale`.
        shift: the term that is added to z after `scale`, `[classes, d_z]`.
        log_det: the log-determinant of scale and shift, `[classes]`.
    """

    def __init__(self, model: DecoupledModel, layout: Layout):
        super().__init__("classes", layout)
        arrays = {"log_probabilities": to_float64(model.class_log_probabilities)}
        if model.code_net is not None:
            arrays["codes"] = to_float64(model.class_codes)
        if model.prior_affine is not None:
            log_scale = to_float64(model.prior_affine.log_scale)
            arrays |= {"scale": np.exp(log_scale), "unscale": np.exp(-log_scale), "log_det": log_scale.sum(1)}
            arrays["shift"] = to_float64(model.prior_affine.shift)
        rounded = {name: round_array(f"classes/{name}", array) for name, array in arrays.items()}
        self.log_probabilities: Array = rounded["log_probabilities"]
        self.codes, self.scale, self.unscale, self.shift, self.log_det = (
            rounded.get(name) for name in ("codes", "scale", "unscale", "shift", "log_det")
        )

    def take_rows(self, array: Array, labels: tf.Tensor) -> tf.Tensor:
        """Returns the rows of an array that belong to labels `[batch]`."""
        # The variable is read first, because gathering from a variable would be a stateful operation.
        return tf.gather(tf.convert_to_tensor(array), labels)


class DeployedModel(Deployed):
    """The deployed form of a model, from which the graphs of all endpoints are built.

    Attributes:
        prior: the flow from z to noise; None for a model without z, and if z is a function of the label.
        encoder: the encoder of z; None for a model without z, and if z is a function of the label.
        classes: the arrays of the labels; None for a model without labels.
        dequantizer: the distribution q(u|x); None if u is uniform.

    Raises:
        NotInitializedError: if the model has no weights.
        InversionError: if a matrix cannot be inverted, or a number is not finite.
    """

    def __init__(self, model: DecoupledModel, order: str = "NHWC"):
        model.require_initialized()
        super().__init__("model", layout := Layout(order))
        self.config, self.quantizer = model.config, model.quantizer
        self.flow = DeployedFlow(model.flow, layout)
        self.prior = self.encoder = self.classes = self.dequantizer = None
        if model.encoder is not None:
            sides = model.encoder.map_shape(model.input_shape)[1:3]
            self.encoder = DeployedEncoder(model.encoder, layout, sides)
            self.prior = fold_prior(model.prior_flow, layout)
        if model.config.has_classes:
            self.classes = DeployedClasses(model, layout)
        if model.dequantizer is not None:
            self.dequantizer = DeployedDequantizer(model.dequantizer, layout)

    # --- methods that the graphs of endpoints are built from ---

    def to_bins(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the bins of uint8 images `[batch, height, width, channels]`, in the layout of the graph."""
        return self.quantizer.levels(self.layout.enter(images))

    def to_pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images `[batch, height, width, channels]` of x in [-1, 1); values outside are clipped."""
        return self.layout.leave(self.quantizer.pixels(x))

    def posterior(self, bins: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of q(z|x), each `[batch, d_z]`."""
        assert self.encoder is not None
        return self.encoder.infer(self.quantizer.edges(bins))

    def infer_z(self, bins: tf.Tensor | None, labels: tf.Tensor | None) -> tf.Tensor | None:
        """Returns the z that `encode` returns, `[batch, d_z]`; None for a model without z."""
        if self.classes is not None and self.classes.codes is not None:
            return self.classes.take_rows(self.classes.codes, labels)
        return None if self.encoder is None else self.posterior(bins)[0]

    def encode(self, images: tf.Tensor, labels: tf.Tensor | None = None) -> tuple[tf.Tensor | None, tf.Tensor]:
        """Returns the codes z and v of uint8 images; v is in the layout of the graph.

        Images whose height and width the graph does not know are shrunk for z, and padded for v.
        """
        padded, shrunk = fit_images(self.config, images)
        bins = self.to_bins(padded)
        z = self.infer_z(bins if shrunk is padded else self.to_bins(shrunk), labels)
        return z, self.flow.forward(self.quantizer.centres(bins), z)

    def decode(self, z: tf.Tensor | None, v: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images that are decoded from z and v; v is in the layout of the graph."""
        return self.to_pixels(self.flow.inverse(v, z))

    def z_from_noise(self, noise: tf.Tensor | None, labels: tf.Tensor | None) -> tf.Tensor | None:
        """Returns a sample of z from normal noise and labels, as far as the model's prior depends on each."""
        classes = self.classes
        if classes is not None and classes.codes is not None:
            return self.infer_z(None, labels)
        z = None if self.prior is None else self.prior.inverse(noise)
        if classes is None or z is None:
            return z
        return (z - classes.take_rows(classes.shift, labels)) * classes.take_rows(classes.unscale, labels)

    def prior_of_each_class(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the noise of the prior that gives z with each label y, and log p(z, y) of each label."""
        assert self.classes is not None and self.prior is not None
        scaled = z[:, None] * self.classes.scale + self.classes.shift
        classes, latent_dim = scaled.shape[1:]
        noise, log_det = self.prior.forward_and_log_det(tf.reshape(scaled, [-1, latent_dim]))
        constant = latent_dim * math.log(2 * math.pi)
        log_prob = log_det - 0.5 * (tf.reduce_sum(tf.square(noise), -1) + constant)
        log_joint = tf.reshape(log_prob, [-1, classes]) + self.classes.log_det + self.classes.log_probabilities
        return tf.reshape(noise, [-1, classes, latent_dim]), log_joint


def compute_scores(deployed: DeployedModel, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the scores of `outlier_scores.OutlierScores` that the model has, each `[batch]`, by name."""
    bins, labels, config = deployed.to_bins(inputs["images"]), inputs.get("labels"), deployed.config
    z, kl, log_q, classes = None, None, None, deployed.classes
    of_z, latents = {}, []
    if config.has_class_codes:
        assert classes is not None
        z, kl = deployed.infer_z(bins, labels), -classes.take_rows(classes.log_probabilities, labels)
    if config.has_encoder:
        mean, log_variance = deployed.posterior(bins)
        noise = inputs["z_noise"]
        z = mean + tf.exp(log_variance / 2) * noise
        constant = config.latent_dim * math.log(2 * math.pi)
        if classes is None:
            assert deployed.prior is not None
            prior_noise, log_det = deployed.prior.forward_and_log_det(z)
            # This is log q(z|x) - log p(z), in which the constants of the two Gaussians cancel.
            kl = 0.5 * tf.reduce_sum(tf.square(prior_noise) - tf.square(noise) - log_variance, -1) - log_det
            of_z["prior_nats"] = 0.5 * (tf.reduce_sum(tf.square(prior_noise), -1) + constant) - log_det
        else:
            prior_noise, log_prior = by_label(*deployed.prior_of_each_class(z), labels)
            kl = -0.5 * (tf.reduce_sum(tf.square(noise) + log_variance, -1) + constant) - log_prior
            of_z["prior_nats"] = -log_prior
        latents.append(prior_noise)
    u = deployed.layout.enter(inputs["u_noise"])
    if deployed.dequantizer is not None:
        noise = u
        u, log_det = deployed.dequantizer.forward_and_log_det(deployed.quantizer.edges(bins), noise)
        log_q = _normal_log_density(noise) - log_det
    v, log_det = deployed.flow.forward_and_log_det(deployed.quantizer.within(bins, u), z)
    nats = -_normal_log_density(v) - log_det
    for term in (kl, log_q):
        if term is not None:
            nats += term
    return {
        "bits_per_dim": deployed.quantizer.bits_per_dim(nats, math.prod(config.image_shape)),
        **of_z,
        "shell": shell(v),
        "typicality": typicality([*latents, *deployed.flow.parts(v)]),
    }


def compute_label_probabilities(deployed: DeployedModel, images: tf.Tensor) -> tf.Tensor:
    """Returns log p(y|x) of each label y for uint8 images x, `[batch, classes]`."""
    bins, classes = deployed.to_bins(images), deployed.classes
    assert classes is not None
    if not deployed.config.has_class_codes:
        return tf.math.log_softmax(deployed.prior_of_each_class(deployed.infer_z(bins, None))[1])
    # All labels go through the flow in one pass; with a pass for each, the graph would grow with their number.
    count, batch = deployed.config.classes, tf.shape(bins)[0]
    x = tf.tile(deployed.quantizer.centres(bins), [count, 1, 1, 1])
    z = tf.repeat(tf.convert_to_tensor(classes.codes), tf.fill([count], batch), 0)
    v, log_det = deployed.flow.forward_and_log_det(x, tf.ensure_shape(z, [None, deployed.config.latent_dim]))
    log_density = _normal_log_density(v) + log_det
    log_joint = tf.transpose(tf.reshape(log_density, [count, batch])) + classes.log_probabilities
    return tf.math.log_softmax(tf.ensure_shape(log_joint, [None, count]))


def _normal_log_density(x: tf.Tensor) -> tf.Tensor:
    """Returns the standard normal log density of images, `[batch]`, with a constant computed outside the graph."""
    return -0.5 * (tf.reduce_sum(tf.square(x), [1, 2, 3]) + math.prod(x.shape[1:]) * math.log(2 * math.pi))
