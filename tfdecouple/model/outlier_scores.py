"""Scores of how unlike the training data an image is, from one pass of the flow.

The density alone misleads: a flow gives unfamiliar smooth images a higher density than the images of its training data
(Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2019). So the latents z and v are scored,
too. Latents are standard normal under the model, and in many dimensions nearly all standard normal vectors have the
same length: they lie in a thin shell, far from the mode. The scores `shell` and `typicality` have units in which a
typical image deviates by about 1; the scores from densities are in bits per dimension and in nats.
"""

import concurrent.futures
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.model.objective import BoundTerms, Latents
from tfdecouple.networks.flow import Flow
from tfdecouple.numerics.tf32 import full_float32

MINUS_CODEC = "bits_per_dim_minus_codec"
CODEC = "webp"
# Descriptions of the scores, by name. Outliers should have a higher score, or a `shell` score that is farther from 0.
SCORES = {
    "bits_per_dim": "bits/dim",
    MINUS_CODEC: f"bits/dim less {CODEC}'s",
    "prior_nats": "-log p(z), nats",
    "shell": "|v| off its shell, sd",
    "typicality": "latents off their typical set, sd",
}
# Options of Pillow that give the smallest lossless files. `exact` also preserves the colours of transparent pixels.
_CODECS: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6, "exact": True},
    "png": {"format": "PNG", "optimize": True},
}

Scores = dict[str, np.ndarray]


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


class OutlierScorer:
    """A callable that computes outlier scores of images on one device: means over `samples` draws of z and u.

    The draws depend on the seed and on the index of the image, so other images in a batch do not change a score.
    """

    def __init__(self, model: keras.Model, samples: int = 1, seed: int = 0):
        self._model, self._samples, config = model, samples, model.config

        @tf.function(autograph=False)
        def score_draw(images: tf.Tensor, index: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
            draw = seed, number, index
            z = randomness.draw_z_noise(config.latent_dim, *draw)
            u = randomness.draw_u_noise(config.image_shape, *draw, config.has_dequantizer)
            return model.outlier_scores(images, noise=(z, u)).to_dict()

        self._score_draw = score_draw

    def __call__(self, images: np.ndarray, index: np.ndarray, count: int | None = None) -> Scores:
        """Returns {name of a score: scores of the first `count` images, float64 `[count]`}.

        The names are those of `SCORES`, without "prior_nats" for a model without a prior over z. `images` are uint8
        `[n, height, width, channels]`, with padding at the end if `count` is less than n. `index`, `[n]`, has the
        indices of the images in the split. TensorFlow traces the model once for each n.
        """
        inputs, sums = (tf.constant(images), tf.constant(index, tf.int64)), dict[str, np.ndarray]()
        for number in range(self._samples):
            with full_float32():
                scores = self._score_draw(*inputs, tf.constant(number))
            for name, values in scores.items():
                sums[name] = sums.get(name, 0.0) + values.numpy()[:count].astype(np.float64)
        scores = {name: total / self._samples for name, total in sums.items()}
        coded = compute_codec_bits(np.asarray(self._model.quantizer.quantize_pixels(images[:count])), CODEC)
        return {**scores, MINUS_CODEC: scores["bits_per_dim"] - coded}


def compute_codec_bits(images: np.ndarray, codec: str) -> np.ndarray:
    """Compresses each image losslessly, and returns the bits per colour value of each, float64 `[n]`.

    The images are uint8 `[n, height, width, channels]`, and `codec` is "webp" or "png". Images without exactly three
    channels are coded as one grey picture per channel. The bits include the header of each file (paper Table 1).
    """
    from PIL import Image

    def count_bytes(image: np.ndarray) -> int:
        total = 0
        for picture in [image] if image.shape[-1] == RGB_CHANNELS else np.moveaxis(image, -1, 0):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, **_CODECS[codec])
            total += len(file.getvalue())
        return total

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return 8 * np.array(list(pool.map(count_bytes, images))) / images[0].size


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
