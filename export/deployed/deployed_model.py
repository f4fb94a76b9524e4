"""The deployed model, from which an export's graphs are built: it encodes, decodes, samples, scores and classifies.

Everything that depends on weights alone is computed in advance, in float64, and rounded once to float32: weight and
batch normalisation, the actnorm before each 1x1 convolution, the inverses of the 1x1 convolutions, and one matrix that
multiplies z for all coupling nets at once. The layers have the structure of the model's layers, and couplings use the
model's bijectors. The graph has no data-dependent control flow, scalar input or operation that ONNX lacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from export.deployed.deployed_networks import DeployedDequantizer, DeployedEncoder, DeployedFlow, fold_prior
from export.deployed.graph import Array, Deployed, Layout, round_to_float32, to_float64
from tfdecouple.model import DecoupledModel
from tfdecouple.model.any_size import pad_and_shrink_images
from tfdecouple.model.objective import select_prior_by_label
from tfdecouple.model.outlier_scores import score_shell, score_typicality


class DeployedClasses(Deployed):
    """The exported weights that depend on the label of an image, as arrays with a row for each label.

    Attributes:
        log_probabilities: log p(y) of each label y, `[classes]`.
        codes: the z of each label, `[classes, d_z]`; None unless z is a function of the label.
        scale: the factor that multiplies z before the prior's flow, `[classes, d_z]`; None if z is a function of the
            label.
        unscale: the reciprocal of `scale`.
        shift: the term that is added to z after `scale`, `[classes, d_z]`.
        log_det: the log-determinant of scale and shift, `[classes]`.
    """

    log_probabilities: Array
    codes: Array = None
    scale: Array = None
    unscale: Array = None
    shift: Array = None
    log_det: Array = None

    def __init__(self, model: DecoupledModel, layout: Layout):
        super().__init__("classes", layout)
        arrays = {"log_probabilities": to_float64(model.class_log_probabilities)}
        if model.code_net is not None:
            arrays["codes"] = to_float64(model.class_codes)
        if model.prior_affine is not None:
            log_scale = to_float64(model.prior_affine.log_scale)
            arrays |= {"scale": np.exp(log_scale), "unscale": np.exp(-log_scale), "log_det": log_scale.sum(1)}
            arrays["shift"] = to_float64(model.prior_affine.shift)
        for name, array in arrays.items():
            setattr(self, name, round_to_float32(f"classes/{name}", array))

    def gather_rows(self, array: Array, labels: tf.Tensor) -> tf.Tensor:
        """Returns the rows of `array`, `[classes, ...]`, whose indices are `labels`, int32 `[batch]`."""
        # If the array is a variable, it is read first, because gathering from a variable would be a stateful operation.
        return tf.gather(tf.convert_to_tensor(array), labels)


class DeployedModel(Deployed):
    """The form of a `DecoupledModel` in an export, from which the graphs of all endpoints (such as "encode") are built.

    Attributes:
        flow: the flow between images x and local codes v.
        prior: the flow from z to noise; None for a model without z, and if z is a function of the label.
        encoder: the encoder of z; None for a model without z, and if z is a function of the label.
        classes: the arrays of the labels; None for a model without labels.
        dequantizer: the distribution q(u|x); None if u is uniform.

    Raises:
        NotInitializedError: if the model has no weights.
        InversionError: if the matrix of a 1x1 convolution cannot be inverted, or a weight is not finite.
    """

    def __init__(self, model: DecoupledModel, order: str = "NHWC"):
        model.require_initialized()
        super().__init__("model", layout := Layout(order))
        self.config, self.quantizer = model.config, model.quantizer
        self.flow = DeployedFlow(model.flow, layout)
        self.prior = self.encoder = self.classes = self.dequantizer = None
        if model.encoder is not None:
            sides = model.encoder.compute_map_shape(model.input_shape)[1:3]
            self.encoder = DeployedEncoder(model.encoder, layout, sides)
            self.prior = fold_prior(model.prior_flow, layout)
        if model.config.has_classes:
            self.classes = DeployedClasses(model, layout)
        if model.dequantizer is not None:
            self.dequantizer = DeployedDequantizer(model.dequantizer, layout)

    def to_bins(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the bins of uint8 images, `[batch, height, width, channels]`, as float32 in the graph's layout."""
        return self.quantizer.find_bins(self.layout.from_nhwc(images))

    def to_pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns uint8 images `[batch, height, width, channels]` for x in [-1, 1); values outside are clipped."""
        return self.layout.to_nhwc(self.quantizer.round_to_pixels(x))

    def infer_posterior(self, bins: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of q(z|x), each `[batch, d_z]`, for images whose pixels are in bins `bins`."""
        assert self.encoder is not None
        return self.encoder.infer_posterior(self.quantizer.place_at_edges(bins))

    def infer_z(self, bins: tf.Tensor | None, labels: tf.Tensor | None) -> tf.Tensor | None:
        """Returns z, `[batch, d_z]`, or None if the model has no z.

        z is the mean of q(z|x) for images whose pixels have the bins `bins`, or the z of `labels` in a model whose z is
        a function of the label.
        """
        if self.classes is not None and self.classes.codes is not None:
            return self.classes.gather_rows(self.classes.codes, labels)
        return None if self.encoder is None else self.infer_posterior(bins)[0]

    def encode(self, images: tf.Tensor, labels: tf.Tensor | None = None) -> tuple[tf.Tensor | None, tf.Tensor]:
        """Returns z and v (in the graph's layout) of uint8 images, which are shrunk and padded if of any size."""
        padded, shrunk = pad_and_shrink_images(self.config, images)
        bins = self.to_bins(padded)
        z = self.infer_z(bins if shrunk is padded else self.to_bins(shrunk), labels)
        return z, self.flow.forward_and_log_det(self.quantizer.place_at_centres(bins), z)[0]

    def decode(self, z: tf.Tensor | None, v: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images that are decoded from z and v; v is in the layout of the graph (NHWC or NCHW)."""
        return self.to_pixels(self.flow.inverse(v, z))

    def z_from_noise(self, noise: tf.Tensor | None, labels: tf.Tensor | None) -> tf.Tensor | None:
        """Returns z that the prior makes of normal noise (and of labels, if the model has any); None without z."""
        classes = self.classes
        if classes is not None and classes.codes is not None:
            return self.infer_z(None, labels)
        z = None if self.prior is None else self.prior.inverse(noise)
        if classes is None or z is None:
            return z
        return (z - classes.gather_rows(classes.shift, labels)) * classes.gather_rows(classes.unscale, labels)

    def evaluate_class_priors(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the prior flow's output, `[batch, classes, d_z]`, and log p(z, y), `[batch, classes]`."""
        assert self.classes is not None and self.prior is not None
        scaled = z[:, None] * self.classes.scale + self.classes.shift
        classes, latent_dim = scaled.shape[1:]
        noise, log_det = self.prior.forward_and_log_det(tf.reshape(scaled, [-1, latent_dim]))
        constant = latent_dim * math.log(2 * math.pi)
        log_prob = log_det - 0.5 * (tf.reduce_sum(tf.square(noise), -1) + constant)
        log_joint = tf.reshape(log_prob, [-1, classes]) + self.classes.log_det + self.classes.log_probabilities
        return tf.reshape(noise, [-1, classes, latent_dim]), log_joint

    def compute_scores(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the outlier scores of images (bits/dim, typicality, ...) as {field of `OutlierScores`: `[batch]`}.

        `inputs` is {name: tensor}: "images" (uint8), "u_noise" (dequantisation noise), "z_noise" if the model has an
        encoder, and "labels" if it has labels.
        """
        bins, labels, config = self.to_bins(inputs["images"]), inputs.get("labels"), self.config
        z, kl, log_q, classes = None, None, None, self.classes
        prior_nats, latents = {}, []
        if config.has_class_codes:
            assert classes is not None
            z, kl = self.infer_z(bins, labels), -classes.gather_rows(classes.log_probabilities, labels)
        if config.has_encoder:
            mean, log_variance = self.infer_posterior(bins)
            noise = inputs["z_noise"]
            z = mean + tf.exp(log_variance / 2) * noise
            constant = config.latent_dim * math.log(2 * math.pi)
            if classes is None:
                assert self.prior is not None
                prior_noise, log_det = self.prior.forward_and_log_det(z)
                # This is log q(z|x) - log p(z), in which the constants of the two Gaussians cancel.
                kl = 0.5 * tf.reduce_sum(tf.square(prior_noise) - tf.square(noise) - log_variance, -1) - log_det
                prior_nats["prior_nats"] = 0.5 * (tf.reduce_sum(tf.square(prior_noise), -1) + constant) - log_det
            else:
                prior_noise, log_prior = select_prior_by_label(*self.evaluate_class_priors(z), labels)
                kl = -0.5 * (tf.reduce_sum(tf.square(noise) + log_variance, -1) + constant) - log_prior
                prior_nats["prior_nats"] = -log_prior
            latents.append(prior_noise)
        u = self.layout.from_nhwc(inputs["u_noise"])
        if self.dequantizer is not None:
            noise = u
            u, log_det = self.dequantizer.forward_and_log_det(self.quantizer.place_at_edges(bins), noise)
            log_q = _normal_log_density(noise) - log_det
        v, log_det = self.flow.forward_and_log_det(self.quantizer.place_in_bins(bins, u), z)
        nats = -_normal_log_density(v) - log_det
        for term in (kl, log_q):
            if term is not None:
                nats += term
        return {
            "bits_per_dim": self.quantizer.convert_to_bits_per_dim(nats, math.prod(config.image_shape)),
            **prior_nats,
            "shell": score_shell(v),
            "typicality": score_typicality([*latents, *self.flow.split_v(v)]),
        }

    def compute_label_probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Returns log p(y|x) of each label y for uint8 images x, `[batch, classes]`."""
        bins, classes = self.to_bins(images), self.classes
        assert classes is not None
        if not self.config.has_class_codes:
            return tf.math.log_softmax(self.evaluate_class_priors(self.infer_z(bins, None))[1])
        # The flow runs once on a batch of all labels; with a run for each label, the graph would grow with their count.
        count, batch = self.config.classes, tf.shape(bins)[0]
        x = tf.tile(self.quantizer.place_at_centres(bins), [count, 1, 1, 1])
        z = tf.repeat(tf.convert_to_tensor(classes.codes), tf.fill([count], batch), 0)
        v, log_det = self.flow.forward_and_log_det(x, tf.ensure_shape(z, [None, self.config.latent_dim]))
        log_density = _normal_log_density(v) + log_det
        log_joint = tf.transpose(tf.reshape(log_density, [count, batch])) + classes.log_probabilities
        return tf.math.log_softmax(tf.ensure_shape(log_joint, [None, count]))


def _normal_log_density(x: tf.Tensor) -> tf.Tensor:
    return -0.5 * (tf.reduce_sum(tf.square(x), [1, 2, 3]) + math.prod(x.shape[1:]) * math.log(2 * math.pi))
