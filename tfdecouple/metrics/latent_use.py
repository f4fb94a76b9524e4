"""A metric of how much a model uses z: KL of z, information about the image, and bits/dim with another image's z.

A strong flow can ignore z, which bits/dim alone do not show.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError, UserError
from tfdecouple.metrics.base import Estimate, Metric, Result, describe_draws, require_finite

if TYPE_CHECKING:
    import tensorflow as tf

# Least variance over images of the posterior mean of an active dimension of z (Burda et al., 2016, section 5.2).
ACTIVE_VARIANCE = 0.01
# Largest number of images for the mutual information, which compares every image with every image.
INFORMATION_IMAGES = 4096
# Largest number of array elements in one step of this comparison: it limits the memory and changes no result.
_CHUNK_NUMBERS = 2**21
# Number of dimensions of z in the printed table; the JSON file has all of them.
_LISTED = 12


class UseOfZ(Metric):
    """The metric of how much a model uses z."""

    name = "latent_use"
    needs_z = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the option --latent-use to `group`, an argument group of the parser of `evaluate`."""
        group.add_argument("--latent-use", action="store_true", help="also how much the model uses z")

    def compute(self, evaluation: Any) -> Result:
        """Returns the use of z on the images of --split, averaged over --samples draws per image."""
        from tfdecouple.runtime.progress import Counter

        draws = self.options.samples
        with Counter("use of z", evaluation.count * (1 + draws)) as counter:
            use = compute_latent_use(
                evaluation.opened.model,
                evaluation.batches(),
                samples=draws,
                seed=self.options.seed,
                on_batch=counter,
            )
        return Result(dataclasses.asdict(use), _lines(use))


def _lines(use: LatentUse) -> list[str]:
    dimensions = len(use.mean_variance)
    method = "exact" if use.kl_method == "exact" else f"Monte Carlo, {describe_draws(use.samples)} an image"
    lines = [
        f"use of z: {dimensions} numbers, {use.prior} prior, {use.images:,} images",
        f"    KL(q(z|x) || p(z))   {use.kl.to_text(3)} nats an image ({method})",
        f"    information I(x; z)  {use.mutual_information.to_text(3)} nats, over {use.information_images:,} "
        f"images (can show at most {use.information_limit:.2f})",
        f"    active units         {use.active_units} of {dimensions} (variance of the posterior mean above 0.01)",
        f"    bits/dim             {use.bits_per_dim.to_text(4)}, and with the z of another image "
        f"{use.shuffled_bits_per_dim.to_text(4)}: {use.shuffling_costs.to_text(4)} worse",
        "    dimension   variance of mean   KL to N(0, 1)   information I(x; z_i), KL to q(z_i)",
    ]
    by_information = sorted(range(dimensions), key=lambda i: -use.information[i])
    for i in by_information[:_LISTED]:
        lines.append(
            f"    {i:9}   {use.mean_variance[i]:16.4f}   {use.kl_to_normal[i]:13.4f}   {use.information[i]:9.4f}"
        )
    if dimensions > _LISTED:
        lines.append(f"    and {dimensions - _LISTED} dimensions of less information")
    return lines


@dataclasses.dataclass(frozen=True)
class LatentUse:
    """The measures of how much a model uses z, over a set of images; nats are per image.

    Attributes:
        prior: the kind of the prior, "normal" or "flow".
        images: the number of images.
        samples: the number of draws of (z, u) per image.
        kl: KL(q(z|x) || p(z)), the cost of z. It is exact for the normal prior of a model without labels, otherwise it
            is estimated from the draws.
        kl_method: how `kl` is computed, "exact" or "Monte Carlo".
        kl_to_normal: for each dimension, the mean over images of KL(q(z_i|x) || N(0, 1)), exact. Their sum is `kl` if
            `kl` is exact; under other priors they only say how far z_i is from N(0, 1).
        information: for each dimension, KL(q(z_i|x) || q(z_i)) to the aggregated posterior q(z_i), the mean of
            q(z_i|x') over images: an estimate of I(x; z_i) under any prior.
        mean_variance: for each dimension, the variance over images of the posterior mean.
        active_units: the number of dimensions whose variance is above 0.01.
        mutual_information: I(x; z) under q: the mean of log q(z|x) - log mean over images q(z|x'), with the image
            itself among them. The estimate is biased low, and at most `information_limit`.
        information_limit: the log of `information_images`.
        information_images: the number of images for the information, drawn at random if there are more.
        bits_per_dim: the negative ELBO with the image's own z, in bits per colour value.
        shuffled_bits_per_dim: the negative ELBO with another image's z in the reconstruction term.
        shuffling_costs: the mean of `shuffled_bits_per_dim` minus `bits_per_dim`; 0 if the flow ignores z.
    """

    prior: str
    images: int
    samples: int
    kl: Estimate
    kl_method: str
    kl_to_normal: tuple[float, ...]
    information: tuple[float, ...]
    mean_variance: tuple[float, ...]
    active_units: int
    mutual_information: Estimate
    information_limit: float
    information_images: int
    bits_per_dim: Estimate
    shuffled_bits_per_dim: Estimate
    shuffling_costs: Estimate


@dataclasses.dataclass(frozen=True)
class Posteriors:
    """The normal distributions q(z|x) of N images.

    Attributes:
        mean, stddev: means and standard deviations, float64 `[N, d_z]`, of float32 precision.
        index: the numbers of the images in their split, int64 `[N]`.
    """

    mean: np.ndarray
    stddev: np.ndarray
    index: np.ndarray

    def select(self, rows: np.ndarray) -> Posteriors:
        """Returns the distributions of the images at the positions `rows`."""
        return Posteriors(self.mean[rows], self.stddev[rows], self.index[rows])

    def kl_to_normal(self) -> np.ndarray:
        """Returns KL(q(z_i|x) || N(0, 1)) of each image and dimension, float64 `[N, d_z]`, in nats."""
        variance = np.square(self.stddev)
        return (np.square(self.mean) + variance - 1 - np.log(variance)) / 2

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Returns log q(z_i|x) of `z`, one code per image, `[N, d_z]`, as float64 `[N, d_z]`."""
        return -np.square((z - self.mean) / self.stddev) / 2 - np.log(self.stddev) - math.log(2 * math.pi) / 2


def require_latent(model: Any) -> None:
    """Raises UserError if a model has no posterior q(z|x).

    Raises:
        UserError: if the model has no z, or its z is a function of the label.
    """
    if not model.config.has_latent:
        raise UserError("this model has no z (model.conditioning is 'none'), so there is no use of z to measure")
    if getattr(model.config, "has_class_codes", False):
        raise UserError(
            "z of this model is a function of the label (model.prior is 'classes'), so there is no q(z|x) to measure; "
            "--classify measures what z knows of the label"
        )


def compute_latent_use(
    model: Any,
    batches: tf.data.Dataset,
    *,
    samples: int = 1,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> LatentUse:
    """Returns how much a model uses z on a set of images, computed on one device.

    Draws depend on the seed and on the image's index, so that the batch size changes a result by rounding alone.

    Args:
        model: a `DecoupledModel` with weights, or a density with its `config`, `prior`, `posterior`, `likelihood`,
            `quantizer`, `nats_to_bits_per_dim`, `require_initialized` and, where q(u|x) is learned, `dequantize`.
        batches: dicts of `image` (uint8, `[batch, ...]`), `index` (`[batch]`) and `weight` (`[batch]`, 0 for padding),
            which are read 1 + `samples` times.
        samples: the number of draws of (z, u) per image, at least 1.
        seed: the seed of the draws and of the shuffling.
        on_batch: a callback that receives, after each batch, the number of finished images over all passes.

    Raises:
        UserError: if the model has no q(z|x).
        DataError: if there are fewer than 2 images.
        NotInitializedError: if the model has no weights.
        RunError: if a posterior or a likelihood is not finite.
    """
    from tfdecouple import randomness
    from tfdecouple.runtime.precision import full_float32

    require_latent(model)
    model.require_initialized()
    with full_float32():
        passes = _Passes(model, batches, on_batch)
        posteriors = passes.encode()
        count, dimensions = posteriors.mean.shape
        if count < 2:
            raise DataError(f"{count} image is too few to see the use of z; at least 2 are needed")
        # The images are drawn at random, because the first ones can be of one class: folders are sorted by class.
        informed = np.sort(_random_order(count, randomness.derive_seed(seed, "information"))[:INFORMATION_IMAGES])
        kl, own, shuffled = np.zeros((3, count))
        total, per_dimension = np.zeros(len(informed)), np.zeros(dimensions)
        for number in range(samples):
            z = passes.draw(posteriors, seed, number)
            other = z[draw_derangement(count, randomness.derive_seed(seed, "shuffle", number))]
            nats = passes.reconstruct(z, other, seed, number)
            kl += posteriors.log_density(z).sum(1) - nats[2]
            own, shuffled = own + nats[0], shuffled + nats[1]
            of_image, of_dimension = compute_information(z[informed], posteriors.select(informed))
            total, per_dimension = total + of_image, per_dimension + of_dimension
    kl_to_normal = posteriors.kl_to_normal()
    exact = model.config.prior == "normal" and not getattr(model.config, "has_classes", False)
    kl = kl_to_normal.sum(1) if exact else kl / samples
    bits, shuffled_bits = (model.nats_to_bits_per_dim(nats / samples + kl) for nats in (own, shuffled))
    require_finite("the ELBO with its own z or another image's", bits + shuffled_bits, posteriors.index)
    variance = posteriors.mean.var(0, ddof=1)
    return LatentUse(
        prior=model.config.prior,
        images=count,
        samples=samples,
        kl=Estimate.from_values(kl),
        kl_method="exact" if exact else "Monte Carlo",
        kl_to_normal=tuple(map(float, kl_to_normal.mean(0))),
        information=tuple(map(float, per_dimension / samples)),
        mean_variance=tuple(map(float, variance)),
        active_units=int((variance > ACTIVE_VARIANCE).sum()),
        mutual_information=Estimate.from_values(total / samples),
        information_limit=math.log(len(informed)),
        information_images=len(informed),
        bits_per_dim=Estimate.from_values(bits),
        shuffled_bits_per_dim=Estimate.from_values(shuffled_bits),
        shuffling_costs=Estimate.from_values(shuffled_bits - bits),
    )


def compute_information(z: np.ndarray, posteriors: Posteriors) -> tuple[np.ndarray, np.ndarray]:
    """Returns the information that z has about the image, for each image and for each dimension of z, in nats.

    Args:
        z: one draw of each q(z|x), `[N, d_z]`.
        posteriors: the distributions q(z|x) of the same N images.

    Returns:
        log q(z|x) - log mean over x' of q(z|x') of each image, float64 `[N]`, at most log N; and for each dimension of
        z by itself the mean of this difference over images, float64 `[d_z]`.
    """
    import tensorflow as tf

    count, dimensions = z.shape
    mean, log_stddev = tf.constant(posteriors.mean), tf.constant(np.log(posteriors.stddev))
    inverse = tf.constant(1 / posteriors.stddev)
    rows = max(1, _CHUNK_NUMBERS // (count * dimensions))
    joint, marginal = [], np.zeros(dimensions)
    for start in range(0, count, rows):
        chunk = tf.constant(z[start : start + rows])[:, None]
        # The array `[rows, N, d_z]` is float64, because the log densities of one z differ by hundreds of nats.
        densities = -tf.square((chunk - mean) * inverse) / 2 - log_stddev - math.log(2 * math.pi) / 2
        joint.append(tf.reduce_logsumexp(tf.reduce_sum(densities, 2), 1).numpy())
        marginal += tf.reduce_sum(tf.reduce_logsumexp(densities, 1), 0).numpy()
    own = posteriors.log_density(z)
    total = own.sum(1) - (np.concatenate(joint) - math.log(count))
    return total, own.mean(0) - (marginal / count - math.log(count))


def draw_derangement(count: int, seed: Any) -> np.ndarray:
    """Returns a random permutation of `count` numbers, int64 `[count]`, that leaves no number in its place.

    The numbers lie on a circle in random order, and each is replaced by its neighbour; 2 or more are needed.
    """
    order = _random_order(count, seed)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _random_order(count: int, seed: Any) -> np.ndarray:
    import tensorflow as tf

    from tfdecouple import randomness

    keys = randomness.draw_uniform([count], randomness.make_seed(seed), tf.float64)
    return np.argsort(keys.numpy(), kind="stable")


class _Passes:
    """Passes of a model over all batches of images, whose functions TensorFlow traces once for each batch shape."""

    def __init__(self, model: Any, batches: tf.data.Dataset, on_batch: Callable[[int], None]):
        import tensorflow as tf

        def posterior(images: tf.Tensor) -> tf.Tensor:
            distribution = model.posterior(images)
            return tf.stack([distribution.mean(), distribution.stddev()], 1)

        self._model, self._batches, self._on_batch, self._done = model, batches, on_batch, 0
        self._posterior, self._reconstruct = (
            tf.function(function, autograph=False, reduce_retracing=True)
            for function in (posterior, self._compute_terms)
        )

    def encode(self) -> Posteriors:
        """Returns q(z|x) of every image.

        Raises:
            RunError: if a mean or standard deviation is not finite, or a standard deviation is 0.
        """
        rows, indices = [], []
        for batch in self._batches:
            counted = batch["weight"].numpy() > 0
            rows.append(self._posterior(batch["image"]).numpy()[counted])
            indices.append(batch["index"].numpy()[counted].astype(np.int64))
            self._count(counted)
        values, index = np.concatenate(rows).astype(np.float64), np.concatenate(indices)
        mean, stddev = values[:, 0], values[:, 1]
        # A standard deviation of 0 counts as not finite, because the distribution has no density.
        require_finite("q(z|x)", np.stack([mean, np.where(stddev > 0, stddev, math.nan)], 1), index)
        return Posteriors(mean, stddev, index)

    def draw(self, posteriors: Posteriors, seed: int, number: int) -> np.ndarray:
        """Returns draw `number` from each q(z|x), float64 `[N, d_z]`: the z that the ELBO draws with this seed."""
        import tensorflow as tf

        from tfdecouple.model.noise import z_noise

        index = posteriors.index
        noise = z_noise(self._model.config.latent_dim, seed, tf.fill([len(index)], number), index)
        return posteriors.mean + posteriors.stddev * noise.numpy()

    def reconstruct(self, z: np.ndarray, other: np.ndarray, seed: int, number: int) -> np.ndarray:
        """Returns -log p(x|z) + log q(u|x) for each image's own `z` and for `other`, and log p(z), float64 `[3, N]`."""
        import tensorflow as tf

        found, start = [], 0
        for batch in self._batches:
            counted = batch["weight"].numpy() > 0
            stop = start + int(counted.sum())
            # Padding gets a z of zeros, so that the batch keeps its shape; its results are dropped.
            codes = np.zeros([2, len(counted), z.shape[1]], np.float32)
            codes[:, counted] = z[start:stop], other[start:stop]
            start = stop
            draw = tf.constant(seed), tf.constant(number)
            found.append(self._reconstruct(batch["image"], batch["index"], tf.constant(codes), *draw).numpy()[counted])
            self._count(counted)
        return np.concatenate(found).astype(np.float64).T

    def _compute_terms(
        self, images: tf.Tensor, index: tf.Tensor, codes: tf.Tensor, seed: tf.Tensor, number: tf.Tensor
    ) -> tf.Tensor:
        import tensorflow as tf

        from tfdecouple.model.noise import normal_u_noise, u_noise

        config, quantizer = self._model.config, self._model.quantizer
        is_learned = normal_u_noise(config)
        u, log_q = u_noise(config.image_shape, seed, tf.fill(tf.shape(index), number), index, is_learned), 0.0
        if is_learned:
            u, log_q = self._model.dequantize(images, u)
        x = quantizer.within(quantizer.levels(images), u)
        terms = [log_q - self._model.likelihood(codes[i]).log_prob(x) for i in (0, 1)]
        return tf.stack([*terms, self._model.prior.log_prob(codes[0])], 1)

    def _count(self, counted: np.ndarray) -> None:
        self._done += int(counted.sum())
        self._on_batch(self._done)
