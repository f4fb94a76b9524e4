"""Is z used? What it costs, what it knows of the image, and what the image costs with the z of another one.

A model whose flow is strong enough by itself can ignore z; bits/dim alone do not show it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.errors import DataError, RunError, UserError
from tfdecouple.metrics.base import Estimate, Metric, Result, draws, estimated

if TYPE_CHECKING:
    import tensorflow as tf

# A unit is active where the posterior mean varies more than this over images (Burda et al., 2016, section 5.2).
ACTIVE_VARIANCE = 0.01

# The mutual information compares every image with every other: at most with so many.
INFORMATION_IMAGES = 4096

# Numbers in the largest array of that comparison; memory, not a result, depends on it.
_CHUNK_NUMBERS = 2**21

# Dimensions of z that the table lists; the file has them all.
_LISTED = 12


class UseOfZ(Metric):
    """The use of z."""

    name = "latent_use"
    needs_z = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --latent-use."""
        group.add_argument("--latent-use", action="store_true", help="also whether z is used")

    def measure(self, evaluation: Any) -> Result:
        """Measures over as many draws as the ELBO."""
        from tfdecouple.runtime.progress import Counter

        options = self.options
        with Counter("use of z", evaluation.count * (1 + options.samples)) as counter:
            use = measure_latent_use(
                evaluation.opened.model,
                evaluation.batches(),
                split=options.split,
                averaged_weights=evaluation.opened.averaged,
                samples=options.samples,
                seed=options.seed,
                on_batch=counter,
            )
        return Result(use.to_dict(), _lines(use))


def _lines(use: LatentUse) -> list[str]:
    dimensions = len(use.mean_variance)
    method = "exact" if use.kl_method == "exact" else f"Monte Carlo, {draws(use.samples)} an image"
    costs = estimated(use.shuffling_costs, 4)
    lines = [
        f"use of z: {dimensions} numbers, {use.prior} prior, {use.images:,} images",
        f"    KL(q(z|x) || p(z))   {estimated(use.kl, 3)} nats an image ({method})",
        f"    information I(x; z)  {estimated(use.mutual_information, 3)} nats, over {use.information_images:,} "
        f"images (can show at most {use.information_limit:.2f})",
        f"    active units         {use.active_units} of {dimensions} (variance of the posterior mean above 0.01)",
        f"    bits/dim             {estimated(use.bits_per_dim, 4)}, and with the z of another image "
        f"{estimated(use.shuffled_bits_per_dim, 4)}: {costs} worse",
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
    """How a model uses z on a set of images; nats are per image.

    Attributes:
        prior: "normal" or "flow".
        split: name of the split.
        images: how many images were counted, each once.
        samples: draws of (z, u) per image.
        averaged_weights: whether the weights are running averages over training.
        kl: KL(q(z|x) || p(z)), what z costs. Exact for the normal prior of a model without labels, otherwise from the
            draws.
        kl_method: "exact" or "Monte Carlo".
        kl_to_normal: for each dimension, KL(q(z_i|x) || N(0, 1)), exact, mean over images. Where `kl` is exact these
            add up to it; other priors have no such terms, and there they only say how far z_i is from N(0, 1).
        information: for each dimension, KL(q(z_i|x) || q(z_i)) to its aggregated posterior q(z_i), the mean of
            q(z_i|x') over images: an estimate of I(x; z_i), whatever the prior.
        mean_variance: for each dimension, the variance over images of the posterior mean.
        active_units: how many of these are above 0.01.
        mutual_information: I(x; z) under q: the mean of log q(z|x) - log mean over images q(z|x'), the image itself
            among them. It errs to the low side, and cannot show more than `information_limit`.
        information_limit: log of `information_images`.
        information_images: how many images the informations are over, drawn where they are not all.
        bits_per_dim: the negative ELBO with the image's own z, in bits per colour value.
        shuffled_bits_per_dim: the same with the reconstruction term of another image's z.
        shuffling_costs: their difference image by image; 0 where the flow ignores z.
    """

    prior: str
    split: str
    images: int
    samples: int
    averaged_weights: bool
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

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as plain JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Posteriors:
    """q(z|x) of N images.

    Attributes:
        mean, stddev: float64 `[N, d_z]`, of float32 precision.
        index: of the images in their split, int64 `[N]`.
    """

    mean: np.ndarray
    stddev: np.ndarray
    index: np.ndarray

    def of(self, chosen: np.ndarray) -> Posteriors:
        """Returns those of some images."""
        return Posteriors(self.mean[chosen], self.stddev[chosen], self.index[chosen])


def require_latent(model: Any) -> None:
    """Refuses a model without z.

    Raises:
        UserError: in one line.
    """
    if not model.config.has_latent:
        raise UserError("this model has no z (model.conditioning is 'none'), so there is no use of z to measure")
    if getattr(model.config, "has_class_codes", False):
        raise UserError(
            "z of this model is a function of the label (model.prior is 'classes'), so there is no q(z|x) to measure; "
            "--classify measures what z knows of the label"
        )


def measure_latent_use(
    model: Any,
    batches: tf.data.Dataset,
    *,
    split: str,
    averaged_weights: bool,
    samples: int = 1,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> LatentUse:
    """Measures how a model uses z, on one device.

    Draws go by the seed and the image's index: the batch size changes nothing beyond rounding.

    Args:
        model: the model, or whatever has its `config`, `prior`, `posterior`, `likelihood`, `quantizer`,
            `nats_to_bits_per_dim` and `require_initialized`, and where q(u|x) is learned its `dequantize`.
        batches: dicts of `image` (uint8, `[batch, ...]`), `index` (`[batch]`) and `weight` (`[batch]`, 0
            for padding); read 1 + `samples` times.
        split: name of the split that the images are of, to be stated.
        averaged_weights: whether the weights of the model are averages over training, to be stated.
        samples: draws of (z, u) per image.
        seed: of the draws and of the shuffling.
        on_batch: called with the number of images done, over all passes, after each batch.

    Raises:
        UserError: for a model without z.
        DataError: for fewer than 2 images, or samples below 1.
        NotInitializedError: for a model without weights.
        RunError: where a posterior or a likelihood is not finite.
    """
    from tfdecouple.runtime.precision import full_float32

    require_latent(model)
    model.require_initialized()
    if samples < 1:
        raise DataError(f"samples is {samples}; it must be at least 1")
    with full_float32():
        return _measured(_Passes(model, batches, on_batch), model, split, averaged_weights, samples, seed)


def _measured(passes: _Passes, model: Any, split: str, averaged_weights: bool, samples: int, seed: int) -> LatentUse:
    from tfdecouple import randomness

    posteriors = passes.encode()
    count, dimensions = posteriors.mean.shape
    if count < 2:
        raise DataError(f"{count} image of {split} is too few to see the use of z; at least 2 are needed")

    exact = model.config.prior == "normal" and not getattr(model.config, "has_classes", False)
    kl_to_normal = gaussian_kl(posteriors)
    # Drawn, since folders are sorted by class.
    known = np.sort(_random_order(count, randomness.fold(seed, "information"))[:INFORMATION_IMAGES])
    kl, own, shuffled = np.zeros(count), np.zeros(count), np.zeros(count)
    total, each = np.zeros(len(known)), np.zeros(dimensions)
    for number in range(samples):
        z = _draw(model, posteriors, seed, number)
        other = z[derangement(count, randomness.fold(seed, "shuffle", number))]
        kl += log_density(z, posteriors).sum(1) - passes.log_prior(z)
        draw_own, draw_shuffled = passes.reconstruction(posteriors, z, other, seed, number)
        own += draw_own
        shuffled += draw_shuffled
        draw_total, draw_each = information(z[known], posteriors.of(known))
        total += draw_total
        each += draw_each
    kl = kl_to_normal.sum(1) if exact else kl / samples
    bits, shuffled_bits = (model.nats_to_bits_per_dim(nats / samples + kl) for nats in (own, shuffled))
    bad = np.flatnonzero(~np.isfinite(bits + shuffled_bits))
    if len(bad):
        from tfdecouple.model.round_trip import listed

        raise RunError(
            f"the ELBO with its own z or another image's is not finite for {len(bad)} of {count} images of {split} "
            f"(number {listed(posteriors.index[bad])}); "
            "the weights are damaged or training diverged: see docs/divergence.md"
        )
    variance = posteriors.mean.var(0, ddof=1)
    return LatentUse(
        prior=model.config.prior,
        split=split,
        images=count,
        samples=samples,
        averaged_weights=averaged_weights,
        kl=Estimate.over(kl),
        kl_method="exact" if exact else "Monte Carlo",
        kl_to_normal=tuple(map(float, kl_to_normal.mean(0))),
        information=tuple(map(float, each / samples)),
        mean_variance=tuple(map(float, variance)),
        active_units=int((variance > ACTIVE_VARIANCE).sum()),
        mutual_information=Estimate.over(total / samples),
        information_limit=math.log(len(known)),
        information_images=len(known),
        bits_per_dim=Estimate.over(bits),
        shuffled_bits_per_dim=Estimate.over(shuffled_bits),
        shuffling_costs=Estimate.over(shuffled_bits - bits),
    )


def gaussian_kl(posteriors: Posteriors) -> np.ndarray:
    """Returns KL(q(z_i|x) || N(0, 1)) of each image and dimension, float64 `[N, d_z]`, in nats."""
    variance = np.square(posteriors.stddev)
    return (np.square(posteriors.mean) + variance - 1 - np.log(variance)) / 2


def log_density(z: np.ndarray, posteriors: Posteriors) -> np.ndarray:
    """Returns log q(z_i|x) of each image's own z `[N, d_z]`, float64 `[N, d_z]`."""
    normed = (z - posteriors.mean) / posteriors.stddev
    return -np.square(normed) / 2 - np.log(posteriors.stddev) - math.log(2 * math.pi) / 2


def information(z: np.ndarray, posteriors: Posteriors) -> tuple[np.ndarray, np.ndarray]:
    """Compares how likely each z is under its own image and under all of them.

    Args:
        z: a draw of each q(z|x), `[N, d_z]`.
        posteriors: of the same N images.

    Returns:
        log q(z|x) - log mean over x' of q(z|x') of each image, float64 `[N]`, at most log N; and of each dimension by
        itself, the mean over images, float64 `[d_z]`. In nats.
    """
    import tensorflow as tf

    count, dimensions = z.shape
    mean, log_stddev = tf.constant(posteriors.mean), tf.constant(np.log(posteriors.stddev))
    inverse = tf.constant(1 / posteriors.stddev)
    own = log_density(z, posteriors)
    rows = max(1, _CHUNK_NUMBERS // (count * dimensions))
    together, apart = [], np.zeros(dimensions)
    for start in range(0, count, rows):
        chunk = tf.constant(z[start : start + rows])[:, None]
        # [rows, N, d_z], in float64: the densities of one z differ by hundreds of nats.
        densities = -tf.square((chunk - mean) * inverse) / 2 - log_stddev - math.log(2 * math.pi) / 2
        together.append(tf.reduce_logsumexp(tf.reduce_sum(densities, 2), 1).numpy())
        apart += tf.reduce_sum(tf.reduce_logsumexp(densities, 1), 0).numpy()
    total = own.sum(1) - (np.concatenate(together) - math.log(count))
    return total, own.mean(0) - (apart / count - math.log(count))


def derangement(count: int, seed: Any) -> np.ndarray:
    """Returns a random permutation of `count` numbers, int64 `[count]`, that leaves none where it was.

    The numbers lie on a circle in random order and each is followed by the next; 2 or more are needed.
    """
    order = _random_order(count, seed)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _random_order(count: int, seed: Any) -> np.ndarray:
    import tensorflow as tf

    from tfdecouple import randomness

    keys = randomness.uniform([count], randomness.base_seed(seed), tf.float64)
    return np.argsort(keys.numpy(), kind="stable")


def _draw(model: Any, posteriors: Posteriors, seed: int, number: int) -> np.ndarray:
    """Returns draw `number` of each q(z|x), float64 `[N, d_z]`: the same z as in the ELBO of this seed."""
    import tensorflow as tf

    from tfdecouple.model.noise import z_noise

    count = len(posteriors.index)
    noise = z_noise(model.config.latent_dim, seed, tf.fill([count], number), posteriors.index)
    return posteriors.mean + posteriors.stddev * noise.numpy()


class _Passes:
    """What is computed batch by batch, each function traced once for a shape of batch."""

    def __init__(self, model: Any, batches: tf.data.Dataset, on_batch: Callable[[int], None] | None):
        import tensorflow as tf

        self._model = model
        self._batches = batches
        self._on_batch = on_batch
        self._done = 0
        self._posterior = tf.function(self._posterior_of, autograph=False, reduce_retracing=True)
        self._log_prior = tf.function(lambda z: model.prior.log_prob(z), autograph=False, reduce_retracing=True)
        self._reconstructions = tf.function(self._reconstructions_of, autograph=False, reduce_retracing=True)

    def encode(self) -> Posteriors:
        """Returns q(z|x) of every image.

        Raises:
            RunError: where one is not finite.
        """
        means, stddevs, indices = [], [], []
        for batch in self._batches:
            counted = batch["weight"].numpy() > 0
            mean, stddev = self._posterior(batch["image"])
            means.append(mean.numpy()[counted])
            stddevs.append(stddev.numpy()[counted])
            indices.append(batch["index"].numpy()[counted])
            self._report(counted)
        if not means:
            raise DataError("there are no images to measure")
        mean, stddev = (np.concatenate(values).astype(np.float64) for values in (means, stddevs))
        index = np.concatenate(indices).astype(np.int64)
        bad = np.flatnonzero(~(np.isfinite(mean).all(1) & np.isfinite(stddev).all(1) & (stddev > 0).all(1)))
        if len(bad):
            from tfdecouple.model.round_trip import listed

            raise RunError(
                f"q(z|x) is not finite for {len(bad)} of {len(mean)} images (number {listed(index[bad])}); "
                "the weights are damaged or training diverged: see docs/divergence.md"
            )
        return Posteriors(mean, stddev, index)

    def log_prior(self, z: np.ndarray, rows: int = 1024) -> np.ndarray:
        """Returns log p(z), float64 `[N]`, for z `[N, d_z]`."""
        import tensorflow as tf

        chunks = [z[start : start + rows].astype(np.float32) for start in range(0, len(z), rows)]
        return np.concatenate([self._log_prior(tf.constant(chunk)).numpy() for chunk in chunks]).astype(np.float64)

    def reconstruction(
        self, posteriors: Posteriors, z: np.ndarray, other: np.ndarray, seed: int, number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns -log p(x|z) + log q(u|x) of each image with its own z and another's, both float64 `[N]`, in nats."""
        import tensorflow as tf

        found, start = [], 0
        for batch in self._batches:
            counted = batch["weight"].numpy() > 0
            chosen = slice(start, start + int(counted.sum()))
            start = chosen.stop
            both = []
            for codes in (z, other):
                # Padding gets a z of zeros: the batch keeps its shape, and what comes of it is dropped.
                filled = np.zeros([len(counted), z.shape[1]], np.float32)
                filled[counted] = codes[chosen]
                both.append(tf.constant(filled))
            pair = self._reconstructions(batch["image"], batch["index"], *both, tf.constant(seed), tf.constant(number))
            found.append(pair.numpy()[counted])
            self._report(counted)
        own, shuffled = np.concatenate(found).astype(np.float64).T
        return own, shuffled

    def _posterior_of(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        posterior = self._model.posterior(images)
        return posterior.mean(), posterior.stddev()

    def _reconstructions_of(
        self,
        images: tf.Tensor,
        index: tf.Tensor,
        own: tf.Tensor,
        other: tf.Tensor,
        seed: tf.Tensor,
        number: tf.Tensor,
    ) -> tf.Tensor:
        import tensorflow as tf

        from tfdecouple.model.noise import normal_u_noise, u_noise

        config, quantizer = self._model.config, self._model.quantizer
        learned = normal_u_noise(config)
        u = u_noise(config.image_shape, seed, tf.fill(tf.shape(index), number), index, learned)
        log_q = 0.0
        if learned:
            u, log_q = self._model.dequantize(images, u)
        x = quantizer.within(quantizer.levels(images), u)
        return tf.stack([log_q - self._model.likelihood(z).log_prob(x) for z in (own, other)], 1)

    def _report(self, counted: np.ndarray) -> None:
        self._done += int(counted.sum())
        if self._on_batch:
            self._on_batch(self._done)
