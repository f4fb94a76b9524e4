"""Scores of how unlike the training data an image is, from one pass of the flow.

The density alone misleads: a flow gives unfamiliar smooth images a higher density than the images of its training data
(Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2019). So the latents z and v are scored,
too. Latents are standard normal under the model, and in many dimensions nearly all standard normal vectors have the
same length: they lie in a thin shell, far from the mode. The scores `shell` and `typicality` have units in which a
typical image deviates by about 1; the scores from densities are in bits per dimension and in nats.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfdecouple.model.objective import BoundTerms, Latents
from tfdecouple.networks.flow import Flow


class OutlierScores(NamedTuple):
    """The outlier scores of images, each float32 `[batch]`.

    Attributes:
        bits_per_dim: the negative evidence lower bound in bits per colour value.
        prior_nats: -log p(z) in nats; None for a model without z, or whose z is a function of the label.
        shell: count of standard deviations by which v is longer (below 0: shorter) than expected under the model.
        typicality: distance of prior flow output and parts of v from the typical set (`score_typicality`).
    """

    bits_per_dim: tf.Tensor
    prior_nats: tf.Tensor | None
    shell: tf.Tensor
    typicality: tf.Tensor

    def to_dict(self) -> dict[str, tf.Tensor]:
        """Returns {name: tensor `[batch]`} of all outlier scores that are not None."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def score_latents(flow: Flow, bound: BoundTerms, latents: Latents) -> OutlierScores:
    """Returns the `OutlierScores` of images, given the two results of `evaluate_bound`."""
    return OutlierScores(
        bound.bits_per_dim,
        None if latents.prior_noise is None else -latents.log_prior,
        score_shell(latents.v),
        score_typicality([*([] if latents.prior_noise is None else [latents.prior_noise]), *flow.split_v(latents.v)]),
    )


def score_shell(v: tf.Tensor) -> tf.Tensor:
    """Returns by how many standard deviations v is longer than a standard normal vector, float32 `[batch]`.

    The result for v `[batch, ...]` is (|v| - mean) / sd, where mean and sd are those of the chi distribution, the
    distribution of the length of standard normal vectors with as many entries as v has for an image.
    """
    mean, deviation = compute_chi_moments(math.prod(v.shape[1:]))
    excess = _compute_excess(v)
    # The difference |v| - mean would be inexact in float32. As |v|^2 = n + excess and mean^2 + deviation^2 = n, this
    # quotient is equal to (|v| - mean) / deviation.
    length = tf.sqrt(tf.maximum(excess + (mean**2 + deviation**2), 0.0))
    return (excess + deviation**2) / ((length + mean) * deviation)


def score_typicality(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the distance of latents, given in parts, from the typical set of the standard normal, float32 `[batch]`.

    The parts, each `[batch, ...]`, are for example the latents that leave the flow after each stage. For each part,
    with n entries, the squared length is compared with its mean n, in units of its standard deviation sqrt(2 n). The
    result is the root mean square of these deviations over the parts; the mean square is 1 under the model. A sum over
    all latents would not do, because deviations of different levels could cancel: for an image without noise, v is too
    short at fine levels and too long at coarse levels.
    """
    squares = [tf.square(_compute_excess(part)) / (2 * math.prod(part.shape[1:])) for part in parts]
    return tf.sqrt(tf.add_n(squares) / len(squares))


def compute_chi_moments(dimensions: int) -> tuple[float, float]:
    """Returns mean and deviation of a normal vector's length by Stirling's series, for 12 dimensions or more."""
    variance = 0.5 - 1 / (8 * dimensions) - 1 / (16 * dimensions**2) + 5 / (128 * dimensions**3)
    return math.sqrt(dimensions - variance), math.sqrt(variance)


def _compute_excess(x: tf.Tensor) -> tf.Tensor:
    """Returns |x|^2 - n, `[batch]`, for x with n entries per image; the sum of x^2 - 1 is more exact than |x|^2."""
    return tf.reduce_sum(tf.square(x) - 1, list(range(1, len(x.shape))))
