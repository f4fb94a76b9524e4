"""Scores of how unlike the training an image is, from one pass of the flow.

The density alone misleads: a flow gives smooth images that it never saw more density than the images that it was
trained on (Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2019). So there are scores of the
latents, too. Latents are standard normal under the model, and in many dimensions nearly all standard normal vectors
have the same length: they lie in a thin shell, far from the mode. The scores `shell` and `typicality` are in units in
which chance alone gives about 1; densities are in bits per dimension and in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel
    from tfdecouple.model.objective import Elbo, Latents


class OutlierScores(NamedTuple):
    """Scores of images, each float32 `[batch]`.

    Attributes:
        bits_per_dim: the negative evidence lower bound in bits per colour value.
        prior_nats: -log p(z), the density of z under the prior in nats; None for a model without z, or whose z is a
            function of the label.
        shell: by how many standard deviations |v| is longer (or, below 0, shorter) than under the model.
        typicality: the function `typicality` of z's noise under the prior and of the parts of v.
    """

    bits_per_dim: tf.Tensor
    prior_nats: tf.Tensor | None
    shell: tf.Tensor
    typicality: tf.Tensor

    def named(self) -> dict[str, tf.Tensor]:
        """Returns the scores that are not None, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def outlier_scores(
    model: DecoupledModel, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, labels: Any = None
) -> OutlierScores:
    """Scores images at given draws of z and of the dequantization noise.

    Where z is a function of the label and no labels are given, each image is scored by its most probable label.

    >>> from tfdecouple import DecoupledModel, ModelConfig
    >>> config = ModelConfig(image_shape=(4, 4, 3), conditioning="none", steps=(1, 1), hidden_channels=(4, 4))
    >>> model, images = DecoupledModel(config), tf.zeros([2, 4, 4, 3], tf.uint8)
    >>> model.initialize(images)
    >>> outlier_scores(model, images, z_noise=tf.zeros([2, 0]), u_noise=tf.zeros([2, 4, 4, 3])).shell.shape.as_list()
    [2]

    Args:
        model: a model with weights.
        images: uint8 `[batch, height, width, channels]`.
        z_noise: as for `DecoupledModel.elbo_from_noise`.
        u_noise: as for `DecoupledModel.elbo_from_noise`.
        labels: as for `DecoupledModel.elbo_from_noise`.
    """
    if labels is None and model.config.has_class_codes:
        labels = tf.argmax(model.classify(images), -1, tf.int32)
    return scores_of(model, *model.elbo_and_latents(images, z_noise, u_noise, labels=labels))


def scores_of(model: DecoupledModel, elbo: Elbo, latents: Latents) -> OutlierScores:
    """Returns the scores that follow from what `DecoupledModel.elbo_and_latents` returns."""
    return OutlierScores(
        elbo.bits_per_dim,
        None if latents.prior_noise is None else -latents.log_prior,
        shell(latents.v),
        typicality([*([] if latents.prior_noise is None else [latents.prior_noise]), *model.flow.parts(latents.v)]),
    )


def shell(v: tf.Tensor) -> tf.Tensor:
    """Returns by how many standard deviations the length of v differs from that of standard normal vectors.

    Args:
        v: float32 `[batch, ...]`.

    Returns:
        (|v| - E|v|) / sd|v|, float32 `[batch]`, both of the chi distribution of as many dimensions.
    """
    mean, deviation = chi_moments(math.prod(v.shape[1:]))
    excess = _excess(v)
    # |v| - mean without the difference of two large numbers: |v|^2 = n + excess, and mean^2 + deviation^2 = n.
    length = tf.sqrt(tf.maximum(excess + (mean**2 + deviation**2), 0.0))
    return (excess + deviation**2) / ((length + mean) * deviation)


def typicality(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns how far standard normal latents are from their typical set.

    In a sum over all latents one level of the flow makes up for another: an image without noise has too short a v at
    the fine levels and too long a v at the coarse ones. So the squared length of each part, of n numbers, is compared
    with its mean, n, in units of its standard deviation, sqrt(2 n).

    Args:
        parts: parts of the latents, each float32 `[batch, ...]`.

    Returns:
        The root mean square over the parts of these numbers of standard deviations, float32 `[batch]`. The mean of its
        square is 1 under the model.
    """
    squares = [tf.square(_excess(part)) / (2 * math.prod(part.shape[1:])) for part in parts]
    return tf.sqrt(tf.add_n(squares) / len(squares))


def chi_moments(dimensions: int) -> tuple[float, float]:
    """Returns mean and standard deviation of the length of a standard normal vector."""
    if dimensions > 1000:
        # Stirling's series: two large logarithms of the gamma function would leave too little of their difference.
        variance = 0.5 - 1 / (8 * dimensions) - 1 / (16 * dimensions**2)
        return math.sqrt(dimensions - variance), math.sqrt(variance)
    mean = math.sqrt(2) * math.exp(math.lgamma((dimensions + 1) / 2) - math.lgamma(dimensions / 2))
    return mean, math.sqrt(dimensions - mean**2)


def _excess(x: tf.Tensor) -> tf.Tensor:
    """Returns |x|^2 less the number of entries of x, `[batch]`; the sum rounds the difference alone."""
    return tf.reduce_sum(tf.square(x) - 1, list(range(1, len(x.shape))))
