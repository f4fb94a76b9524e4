"""The functions of which endpoints are made: the model's own computations, on Keras networks or those of an export."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdecouple.model.any_size import find_both_bins
from tfdecouple.model.codes import Codes
from tfdecouple.model.objective import evaluate_bound, evaluate_log_joint, map_noise_to_z
from tfdecouple.model.outlier_scores import OutlierScores, score_latents


class EndpointFunctions:
    """The functions of which endpoints are made; `networks` is a `DecoupledModel`, or has such attributes as `flow`.

    Methods with the name of a method of `DecoupledModel` take the same arguments and return the same.
    """

    def __init__(self, networks: Any):
        self.networks, self.config, self._quantizer = networks, networks.config, networks.quantizer

    def encode(self, images: tf.Tensor, labels: tf.Tensor | None = None) -> Codes:
        """Returns the codes of uint8 images, which may have any size; labels are for a z that they alone determine."""
        flow, quantizer = self.networks.flow, self._quantizer
        padded, shrunk = self.networks.any_size.pad_and_shrink_images(tf.convert_to_tensor(images))
        bins, encoder_bins = find_both_bins(self._find_bins, padded, shrunk)
        by_label = self.networks.code_net is not None
        z = self.z_from_noise(None, labels) if by_label else self._infer_z(encoder_bins)[0]
        (v,) = self._run(lambda part, z: flow.forward_and_log_det(quantizer.place_at_centres(part), z)[:1], bins, z)
        return Codes(z, v)

    def infer_posterior(self, images: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Returns mean and log-variance of q(z|x), each `[batch, d_z]`, for uint8 images of the model's size."""
        return self._infer_z(self._find_bins(images))

    def _infer_z(self, bins: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        encoder, quantizer = self.networks.encoder, self._quantizer
        if encoder is None:
            return None, None
        return self._run(lambda part: encoder.run_inference(quantizer.place_at_edges(part)), bins)

    def decode(self, z: tf.Tensor | None, v: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images that are decoded from codes; z is None for a model without z."""
        return self._quantizer.round_to_pixels(self._invert_flow(z, v)[0])

    def z_from_noise(self, noise: tf.Tensor | None, labels: tf.Tensor | None = None) -> tf.Tensor | None:
        """Returns z that the prior makes of normal noise (and labels, if it has any); None for a model without z."""
        if not self.config.has_latent:
            return None
        return self._run(lambda *inputs: [map_noise_to_z(self.networks, *inputs)], noise, labels)[0]

    def outlier_scores(
        self, images: tf.Tensor, labels: tf.Tensor | None = None, *, noise: tuple[tf.Tensor | None, tf.Tensor]
    ) -> OutlierScores:
        """Returns the outlier scores of uint8 images, for noise of z and u."""

        def compute(bins: tf.Tensor, z_noise: tf.Tensor, u_noise: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
            bound = evaluate_bound(self.networks, bins, z_noise, u_noise, labels=labels)
            return [*score_latents(self.networks.flow, *bound).to_dict().values()]

        scores = self._run(compute, self._find_bins(images), *noise, labels)
        return OutlierScores(*scores) if self.networks.encoder else OutlierScores(scores[0], None, *scores[1:])

    def classify(self, images: tf.Tensor) -> tf.Tensor:
        """Returns log p(y|x) of each label y for uint8 images x, `[batch, classes]`."""
        bins = self._find_bins(images)
        return self._run(lambda part: [tf.math.log_softmax(evaluate_log_joint(self.networks, part))], bins)[0]

    def _find_bins(self, images: tf.Tensor) -> tf.Tensor:
        return self._quantizer.find_bins(images)

    def _invert_flow(self, z: tf.Tensor | None, v: tf.Tensor) -> tf.Tensor:
        return self._run(lambda z, v: self.networks.flow.inverse_and_log_det(v, z)[:1], z, v)

    def _run(self, function: Callable, *inputs: tf.Tensor | None) -> Any:
        """Returns `function(*inputs)`, a sequence of tensors; inputs and results have one row for each image."""
        return function(*inputs)
