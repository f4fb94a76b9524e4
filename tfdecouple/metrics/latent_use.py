"""A metric of how much a model uses z: KL of z, information about the image, and bits/dim with z of another image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.errors import DataError
from tfdecouple.metrics.metric import Estimate, Evaluation, Metric, Result, format_table, require_finite_values
from tfdecouple.system.progress import Counter, format_count

if TYPE_CHECKING:
    import tensorflow as tf

    from tfdecouple.model import DecoupledModel

# Count of dimensions of z in the printed table; the JSON file has all dimensions.
_LISTED = 12


class UseOfZ(Metric):
    """The metric of how much a model uses its global code z, which a strong flow can ignore at the same bits/dim."""

    name = "latent_use"
    help = "also how much the model uses z"
    needs_z = needs_posterior = True

    def compute(self, evaluation: Evaluation) -> Result:
        model, draws, seed = evaluation.opened.model, self.options.samples, self.options.seed
        with Counter("use of z", evaluation.count * (1 + draws)) as counter:
            use = compute_latent_use(model, evaluation.make_image_batches(), samples=draws, seed=seed, on_batch=counter)
        return Result(dataclasses.asdict(use), _format_latent_use(use))


def _format_latent_use(use: LatentUse) -> list[str]:
    dimensions = len(use.mean_variance)
    method = "exact" if use.kl_method == "exact" else f"Monte Carlo, {format_count(use.samples, 'draw')} per image"
    lines = [
        f"use of z: {dimensions} numbers, {use.prior} prior, {use.images:,} images",
        f"    KL(q(z|x) || p(z))   {use.kl.to_text(3)} nats per image ({method})",
        f"    information I(x; z)  {use.mutual_information.to_text(3)} nats, over {use.information_images:,} "
        f"images (the estimate is at most {use.information_limit:.2f})",
        f"    active units         {use.active_units} of {dimensions} (variance of the posterior mean above 0.01)",
        f"    bits/dim             {use.bits_per_dim.to_text(4)}, and with the z of another image "
        f"{use.shuffled_bits_per_dim.to_text(4)}: {use.shuffling_costs.to_text(4)} worse",
    ]
    order = sorted(range(dimensions), key=use.mean_variance.__getitem__, reverse=True)[:_LISTED]
    rows = [["dimension", "variance of mean", "KL to N(0, 1)"]]
    lines += format_table(rows + [[str(n), f"{use.mean_variance[n]:.4f}", f"{use.kl_to_normal[n]:.4f}"] for n in order])
    if dimensions > _LISTED:
        lines.append(f"    and {dimensions - _LISTED} dimensions with a smaller variance")
    return lines


@dataclasses.dataclass(frozen=True)
class LatentUse:
    """Metrics of how much a model uses z, over a set of images; all nats are per image."""

    prior: str
    images: int
    samples: int  # draws of z and of the dequantisation noise u per image
    kl: Estimate  # KL(q(z|x) || p(z))
    kl_method: str  # "exact" for the normal prior of a model without labels, else "Monte Carlo", from the draws
    kl_to_normal: tuple[float, ...]  # for each dimension, the mean over images of KL(q(z_i|x) || N(0, 1)), exact
    mean_variance: tuple[float, ...]  # for each dimension, the variance over images of the posterior mean
    active_units: int  # the number of dimensions with a `mean_variance` above 0.01 (Burda et al., 2016)
    # I(x; z) under q: the mean over images x of log q(z|x) minus the log of the mean of q(z|x') over all images x'. The
    # estimate is biased low, and at most `information_limit`, the log of the number of images.
    mutual_information: Estimate
    information_limit: float
    information_images: int
    bits_per_dim: Estimate  # the negative ELBO, in bits per colour value
    shuffled_bits_per_dim: Estimate  # the same with z of another image in the reconstruction term
    shuffling_costs: Estimate  # the difference of both; 0 if the flow ignores z


def compute_latent_use(
    model: DecoupledModel,
    batches: tf.data.Dataset,
    *,
    samples: int = 1,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> LatentUse:
    """Returns a `LatentUse`, metrics of how much a model uses z on a set of images, computed on one device.

    Draws depend on the seed and on the index of the image, so that the batch size changes a result by rounding alone.
    DataError is raised if there are fewer than 2 images, and RunError if a posterior or a likelihood is not finite.

    `model` is a `DecoupledModel` with weights, or another density that has the attributes `config`, `prior`,
    `posterior`, `likelihood`, `quantizer` and, if q(u|x) is learned, `dequantizer`. `batches`, a dataset of
    `make_evaluation_batches`, is read 1 + `samples` times. The callback `on_batch` receives, after each batch, the
    number of images finished in all passes so far.
    """
    import scipy.stats
    import tensorflow as tf

    from tfdecouple import randomness
    from tfdecouple.model.objective import dequantize
    from tfdecouple.numerics.tf32 import full_float32

    config, has_normal_noise = model.config, model.config.has_dequantizer

    @tf.function(autograph=False, reduce_retracing=True)
    def encode(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        distribution = model.posterior(batch["image"])
        return tf.stack([distribution.mean(), distribution.stddev()], 1)

    @tf.function(autograph=False, reduce_retracing=True)
    def compute_terms(batch: dict[str, tf.Tensor], codes: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Returns `[batch, 3]`: -log p(x|z) + log q(u|x) for two `codes` `[2, batch, d_z]`, log p(z) of the first."""
        images, index, log_q = batch["image"], batch["index"], 0.0
        u = randomness.draw_u_noise(config.image_shape, seed, number, index, has_normal_noise)
        if has_normal_noise:
            u, log_q = dequantize(model, model.quantizer.find_bins(images), u)
        x = model.quantizer.place_in_bins(model.quantizer.find_bins(images), u)
        terms = [log_q - model.likelihood(codes[i]).log_prob(x) for i in (0, 1)]
        return tf.stack([*terms, model.prior().log_prob(codes[0])], 1)

    with full_float32():
        rows, indices, done = [], [], 0
        for batch in batches:
            counted = batch["weight"].numpy() > 0
            rows.append(encode(batch).numpy()[counted])
            indices.append(batch["index"].numpy()[counted].astype(np.int64))
            on_batch(done := done + len(indices[-1]))
        index = np.concatenate(indices)
        mean, stddev = np.concatenate(rows).astype(np.float64).transpose(1, 0, 2)
        count, dimensions = mean.shape
        # A standard deviation of 0 counts as not finite, because a distribution without spread has no density.
        require_finite_values("q(z|x)", np.stack([mean, np.where(stddev > 0, stddev, math.nan)], 1), index)
        if count < 2:
            raise DataError(f"{count} image is too few to measure the use of z; at least 2 are needed")
        # The computing time of the mutual information grows with the square of the count of images. They are drawn at
        # random, because the first images of a folder that is sorted by class are of one class.
        informed = np.sort(np.random.default_rng(seed).permutation(count)[:4096])
        kl, matching, shuffled = np.zeros((3, count))
        information = np.zeros(len(informed))
        for number in range(samples):
            # `BoundEvaluator` draws the same noise for this seed, so that this metric and the ELBO use the same z.
            z = mean + stddev * randomness.draw_z_noise(config.latent_dim, seed, number, index).numpy()
            other = z[draw_derangement(count, [seed, number])]
            rows, start = [], 0
            for batch in batches:
                counted = batch["weight"].numpy() > 0
                stop = start + int(counted.sum())
                # Padding gets a z of zeros, so that the batch keeps its shape. The results of padding are dropped.
                codes = np.zeros([2, len(counted), dimensions], np.float32)
                codes[:, counted] = z[start:stop], other[start:stop]
                start = stop
                rows.append(compute_terms(batch, tf.constant(codes), tf.constant(number)).numpy()[counted])
                on_batch(count * (number + 1) + stop)
            nats = np.concatenate(rows).astype(np.float64).T
            kl += scipy.stats.norm.logpdf(z, mean, stddev).sum(1) - nats[2]
            matching, shuffled = matching + nats[0], shuffled + nats[1]
            information += compute_mutual_information(z[informed], mean[informed], stddev[informed])
    kl_to_normal = (np.square(mean) + np.square(stddev) - 1) / 2 - np.log(stddev)
    is_exact = config.prior == "normal" and not getattr(config, "has_labels", False)
    kl = kl_to_normal.sum(1) if is_exact else kl / samples
    convert, values = model.quantizer.convert_to_bits_per_dim, math.prod(config.image_shape)
    bits, shuffled_bits = (convert(nats / samples + kl, values) for nats in (matching, shuffled))
    require_finite_values("the ELBO with its own z or another image's", bits + shuffled_bits, index)
    variance = mean.var(0, ddof=1)
    return LatentUse(
        prior=config.prior,
        images=count,
        samples=samples,
        kl=Estimate.from_values(kl),
        kl_method="exact" if is_exact else "Monte Carlo",
        kl_to_normal=tuple(kl_to_normal.mean(0).tolist()),
        mean_variance=tuple(variance.tolist()),
        active_units=int((variance > 0.01).sum()),
        mutual_information=Estimate.from_values(information / samples),
        information_limit=math.log(len(informed)),
        information_images=len(informed),
        bits_per_dim=Estimate.from_values(bits),
        shuffled_bits_per_dim=Estimate.from_values(shuffled_bits),
        shuffling_costs=Estimate.from_values(shuffled_bits - bits),
    )


def compute_mutual_information(z: np.ndarray, mean: np.ndarray, stddev: np.ndarray) -> np.ndarray:
    """Returns the information that z has about each image in nats: log q(z|x) - log q(z), `[N]`.

    `z` is one draw from each q(z|x), a normal distribution with `mean` and `stddev`, and q(z) is the mean of q(z|x')
    over all images x'. All arrays are float64 `[N, d_z]`.
    """
    import scipy.special
    import scipy.stats

    precision, log_density = 1 / np.square(stddev), scipy.stats.norm.logpdf(z, mean, stddev).sum(1)
    # log q(z|x') = z . linear - z^2 . precision / 2 + constant. Parts of z limit the memory of the array [N, N].
    linear, constant = mean * precision, scipy.stats.norm.logpdf(0, mean, stddev).sum(1)
    parts = np.array_split(z, 1 + len(z) // 512)
    total = [scipy.special.logsumexp(part @ linear.T - part**2 @ precision.T / 2 + constant, 1) for part in parts]
    return log_density - np.concatenate(total) + math.log(len(z))


def draw_derangement(count: int, seed: int | list[int]) -> np.ndarray:
    """Returns a random permutation of `count` >= 2 indices, int64 `[count]`, that leaves no index in its place."""
    # On a circle of all indices in random order, each index is replaced by its neighbour.
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner
