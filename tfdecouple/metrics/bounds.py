"""How many bits a model needs for images, by two bounds: the ELBO, and the importance-weighted one, which is tighter.

Both are upper bounds, in expectation, of -log2 p(image) per colour value, p(image) being the integral of the density
over the pixel's bin and over z (paper equation 2). The importance-weighted bound (Burda et al.,
"Importance Weighted Autoencoders", 2016) takes the mean over k draws inside the logarithm; it falls with k, and is the
ELBO at k = 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.data import own_share
from tfdecouple.errors import DataError, RunError
from tfdecouple.metrics.base import Estimate
from tfdecouple.model.noise import normal_u_noise, u_noise, z_noise
from tfdecouple.model.round_trip import listed
from tfdecouple.runtime.precision import full_float32

ELBO = "ELBO"
IMPORTANCE_WEIGHTED = "importance-weighted"

# Draws of a batch in one call of TensorFlow, which cannot be interrupted and says nothing meanwhile.
_DRAWS_A_CALL = 16


class ElboModel(Protocol):
    """What is needed of a model; a density that is known in closed form can stand in its place.

    Attributes:
        config: has `latent_dim`, the size of z, and `image_shape`; and `has_dequantizer`, where u is made of normal
            noise, and `has_classes`, where labels are wanted.
    """

    config: Any

    def require_initialized(self) -> None:
        """Raises NotInitializedError for a model without weights."""

    def elbo_from_noise(self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor, *, labels: Any) -> Any:
        """Returns -log p(x|z), log q(z|x) - log p(z) and log q(u|x) first, each `[batch]`, in nats.

        Labels are given where the config says `has_classes`.
        """

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Turns nats per image into bits per colour value."""


@dataclasses.dataclass(frozen=True)
class ImageBounds:
    """The bounds of N images, in their order, each over k draws of (z, u).

    Attributes:
        terms: float64 `[N, 3]`, means over the draws of -log p(x|z), log q(z|x) - log p(z) and log q(u|x), in nats;
            their sum is the negative ELBO.
        log_mean_weight: float64 `[N]`, the log of the mean over the draws of p(x, z) / q(z, u|x), in nats: the
            importance-weighted bound.
        effective_draws: float64 `[N]`, (sum of weights)**2 / sum of squared weights, from 1 to k.
        index: of the images in their split, int64 `[N]`.
    """

    terms: np.ndarray
    log_mean_weight: np.ndarray
    effective_draws: np.ndarray
    index: np.ndarray

    @property
    def negative_elbo(self) -> np.ndarray:
        """The sum of the terms, float64 `[N]`, in nats."""
        reconstruction, kl, dequantization = self.terms.T
        # In the order in which log weights are summed, so that at k = 1 both bounds are equal to the last bit.
        return reconstruction + kl + dequantization


@dataclasses.dataclass(frozen=True)
class Bound:
    """A bound of the bits/dim and all that one must know to compare it with another.

    Attributes:
        bound: "ELBO" or "importance-weighted".
        k: draws of (z, u) per image: averaged outside the logarithm for the ELBO, inside for the other.
        split: "train", "validation" or "test".
        images: how many images were counted, each once.
        averaged_weights: whether the weights are running averages over training.
        bits_per_dim: mean over images, in bits per colour value.
        standard_error: of `bits_per_dim`, from the spread over images.
        reconstruction, kl, dequantization: the terms of the ELBO over the same draws, in nats per image: -log p(x|z),
            log q(z|x) - log p(z), log q(u|x).
        gain: by how many bits/dim the bound is below the ELBO over the same draws; 0 for the ELBO.
        effective_draws: mean over images of (sum of weights)**2 / sum of squared weights, from 1 to k; near 1, a few
            draws carry the bound, and more of them would still lower it.
    """

    bound: str
    k: int
    split: str
    images: int
    averaged_weights: bool
    bits_per_dim: float
    standard_error: float
    reconstruction: Estimate
    kl: Estimate
    dequantization: Estimate
    gain: Estimate
    effective_draws: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as plain JSON."""
        return dataclasses.asdict(self)


class BoundEvaluator:
    """Measures the bounds of images on one or more devices.

    Draw number n of an image depends on the seed, n and the image's index alone, and sums are taken in float64: neither
    the bound, nor k, nor the batch size, nor `at_once`, nor the number of devices changes a result beyond rounding. A
    model without z has bounds too: their draws are then of u alone.

    Args:
        model: the model, or a density in its place.
        strategy: the devices; None for the default one.
        at_once: how many draws of each image go through the model together. One is best for batches that fill the
            device; more help where there are few images and many draws.
    """

    def __init__(self, model: ElboModel, strategy: tf.distribute.Strategy | None = None, at_once: int = 1):
        self._model = model
        self._labelled = getattr(model.config, "has_classes", False)
        self._strategy = strategy or tf.distribute.get_strategy()
        self._at_once = at_once
        # Seed and numbers of draws are tensors: one trace for each shape of batch.
        self._sums = tf.function(self._distributed, autograph=False, reduce_retracing=True)
        self._from_all = tf.function(self._all_gathered, autograph=False, reduce_retracing=True)

    def __call__(
        self,
        batches: tf.data.Dataset,
        *,
        bound: str = ELBO,
        k: int = 1,
        split: str,
        averaged_weights: bool,
        seed: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> Bound:
        """Measures a bound.

        Args:
            batches: dicts of `image` (uint8, `[batch, ...]`), `index` (`[batch]`) and `weight` (`[batch]`,
                0 for padding), all of one batch size that the number of devices divides; and `label` (`[batch]`) for a
                model that knows labels, which must be there only where z is a function of them.
            bound: `ELBO` or `IMPORTANCE_WEIGHTED`.
            k: draws per image, 1 or more.
            split: name of the split that the images are of, to be stated.
            averaged_weights: whether the weights of the model are averages over training, to be stated.
            seed: of the draws.
            on_batch: as for `per_image`.

        Raises:
            DataError: where there is no image, or no label that the model needs, or k is below 1.
            NotInitializedError: for a model without weights.
            RunError: where the bound of an image is not finite, naming it.
        """
        if k < 1:
            raise DataError(f"k is {k}; a bound needs at least 1 draw per image")
        images = self.per_image(batches, samples=k, seed=seed, on_batch=on_batch)
        if not len(images.terms):
            raise DataError(f"there are no images of {split} to measure")
        nats = images.negative_elbo if bound == ELBO else -images.log_mean_weight
        _require_finite(nats, images, split)
        bits, elbo_bits = (self._model.nats_to_bits_per_dim(values) for values in (nats, images.negative_elbo))
        total = Estimate.over(bits)
        reconstruction, kl, dequantization = map(Estimate.over, images.terms.T)
        return Bound(
            bound=bound,
            k=k,
            split=split,
            images=len(nats),
            averaged_weights=averaged_weights,
            bits_per_dim=total.mean,
            standard_error=total.standard_error,
            reconstruction=reconstruction,
            kl=kl,
            dequantization=dequantization,
            gain=Estimate.over(elbo_bits - bits),
            effective_draws=float(images.effective_draws.mean()),
        )

    def per_image(
        self,
        batches: tf.data.Dataset,
        *,
        samples: int,
        seed: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> ImageBounds:
        """Computes the bounds of each image.

        Args:
            batches: as for a call.
            samples: draws of (z, u) per image, k.
            seed: of these draws.
            on_batch: called with the number of images done after each batch, and within one that takes many draws with
                as many as that work stands for.

        Raises:
            DataError: where there is no label that the model needs.
            NotInitializedError: for a model without weights.
        """
        self._model.require_initialized()
        step = self._at_once * max(1, _DRAWS_A_CALL // self._at_once)
        terms, log_sums, indices = [np.zeros([0, 3])], [np.zeros([0, 2])], [np.zeros(0, np.int64)]
        done = 0
        for batch in self._distributed_batches(batches):
            counted = self._gathered(batch["weight"]) > 0
            images = int(counted.sum())
            batch_terms, batch_log_sums = np.zeros([images, 3]), np.full([images, 2], -math.inf)
            for first in range(0, samples, step):
                last = min(first + step, samples)
                with full_float32():
                    labels = batch.get("label") if self._labelled else None
                    sums = self._sums(batch["image"], labels, batch["index"], *map(tf.constant, (seed, first, last)))
                rows = self._gathered(sums)[counted]
                batch_terms += rows[:, :3]
                # The weights of a model that has diverged need not be finite: whoever reads them says so, not NumPy.
                with np.errstate(invalid="ignore"):
                    batch_log_sums = np.logaddexp(batch_log_sums, rows[:, 3:])
                if on_batch:
                    on_batch(done + images * last // samples)
            terms.append(batch_terms)
            log_sums.append(batch_log_sums)
            indices.append(self._gathered(batch["index"])[counted])
            done += images
        log_sum, log_sum_of_squares = np.concatenate(log_sums).T
        with np.errstate(invalid="ignore", over="ignore"):
            effective = np.exp(2 * log_sum - log_sum_of_squares)
        means = np.concatenate(terms) / samples
        return ImageBounds(means, log_sum - math.log(samples), effective, np.concatenate(indices))

    def _distributed_batches(self, batches: tf.data.Dataset) -> Iterable[Any]:
        if self._strategy.num_replicas_in_sync == 1:
            # The strategy would lead them through a second pipeline, which at times takes as long to end as it has run.
            return batches
        return self._strategy.distribute_datasets_from_function(lambda context: own_share(batches, context))

    def _gathered(self, values: Any) -> np.ndarray:
        """Returns the rows of all devices, in order, on every worker."""
        local = self._strategy.experimental_local_results(values)
        if len(local) < self._strategy.num_replicas_in_sync:
            return self._strategy.experimental_local_results(self._from_all(values))[0].numpy()
        return np.concatenate([rows.numpy() for rows in local])

    def _all_gathered(self, values: Any) -> Any:
        """Returns the rows of all devices on each device: some are those of other workers."""

        def gathered(rows: tf.Tensor) -> tf.Tensor:
            # The argument of a function is on no device; TensorFlow gathers only what is on one.
            return tf.distribute.get_replica_context().all_gather(tf.identity(rows), axis=0)

        return self._strategy.run(gathered, args=(values,))

    def _distributed(self, *inputs: Any) -> Any:
        return self._strategy.run(self._over_draws, args=inputs)

    def _over_draws(
        self,
        images: tf.Tensor,
        labels: tf.Tensor | None,
        index: tf.Tensor,
        seed: tf.Tensor,
        first: tf.Tensor,
        last: tf.Tensor,
    ) -> tf.Tensor:
        """Sums over the draws from number `first` to before `last`.

        Returns:
            Of each image the sums of its three terms, the log of the sum of its weights and the log of the sum of their
            squares, float64 `[batch, 5]`.
        """
        batch = tf.shape(images)[0]
        repeated = tf.repeat(images, self._at_once, 0)
        given = {"labels": tf.repeat(labels, self._at_once, 0)} if labels is not None else {}

        def add_draws(number: tf.Tensor, terms: tf.Tensor, log_sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            numbers = number + tf.range(self._at_once)
            which = seed, tf.tile(numbers, [batch]), tf.repeat(index, self._at_once)
            config = self._model.config
            elbo = self._model.elbo_from_noise(
                repeated,
                z_noise(config.latent_dim, *which),
                u_noise(config.image_shape, *which, normal_u_noise(config)),
                **given,
            )
            new = tf.reshape(tf.cast(tf.stack(elbo[:3], -1), tf.float64), [batch, self._at_once, 3])
            log_weights = -(new[..., 0] + new[..., 1] + new[..., 2])
            # The last draws of a chunk can be too many: they count as weights of 0.
            wanted = numbers < last
            new_terms = terms + tf.reduce_sum(tf.where(wanted[:, None], new, 0.0), 1)
            log_weights = tf.where(wanted, log_weights, -math.inf)
            # A running sum of exponentials, of the weights and of their squares, which never leaves the logarithm.
            both = tf.concat([log_sums[:, None], tf.stack([log_weights, 2 * log_weights], -1)], 1)
            # The loop wants to see that shapes stay, and the noise hides how many images there are.
            return (
                number + self._at_once,
                tf.ensure_shape(new_terms, terms.shape),
                tf.ensure_shape(tf.reduce_logsumexp(both, 1), log_sums.shape),
            )

        start = (
            first,
            tf.zeros([batch, 3], tf.float64),
            tf.fill([batch, 2], tf.constant(-math.inf, tf.float64)),
        )
        _, terms, log_sums = tf.while_loop(lambda number, *_: number < last, add_draws, start)
        return tf.concat([terms, log_sums], 1)


def _require_finite(nats: np.ndarray, images: ImageBounds, split: str) -> None:
    bad = np.flatnonzero(~(np.isfinite(nats) & np.isfinite(images.terms).all(1)))
    if len(bad):
        raise RunError(
            f"the bound is not finite for {len(bad)} of {len(nats)} images of {split} "
            f"(number {listed(images.index[bad])}); "
            "the weights are damaged or training diverged: see docs/divergence.md"
        )


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """The bound and its terms, means over the images.

    Attributes:
        bits_per_dim: the negative ELBO in bits per colour value; an upper bound of the model's true bits/dim.
        standard_error: of `bits_per_dim`, over images.
        reconstruction, kl, dequantization: its terms in nats per image.
        images: how many images were counted.
        samples: draws of (z, u) per image, whose log terms are averaged (an ELBO, not an importance-weighted bound).
    """

    bits_per_dim: float
    standard_error: float
    reconstruction: float
    kl: float
    dequantization: float
    images: int
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as plain JSON."""
        return dataclasses.asdict(self)


def note_on_grey(images: np.ndarray) -> str:
    """Returns what belongs beside the bits/dim of grey images, which have three equal channels here; "" for others.

    >>> note_on_grey(np.zeros((1, 2, 2, 3), np.uint8)) != "", note_on_grey(np.arange(12).reshape(1, 2, 2, 3))
    (True, '')

    Args:
        images: uint8 `[n, height, width, channels]`.
    """
    if images.shape[-1] == RGB_CHANNELS and len(images) and (images == images[..., :1]).all():
        height, width = images.shape[1:3]
        return (
            f"the first {len(images):,} images are grey, in three equal channels: in bits per grey pixel the figure is "
            f"three times as large (--set 'model.image_shape=[{height},{width},1]' trains on one channel)"
        )
    return ""


class Evaluator:
    """Measures bits/dim on one or more devices, as `BoundEvaluator` does, in the few figures of a training log.

    Bits/dim that are not finite are told, not refused: whoever trains judges them.

    Args:
        model: the model.
        strategy: the devices; None for the default one.
    """

    def __init__(self, model: ElboModel, strategy: tf.distribute.Strategy | None = None):
        self._model = model
        self._bounds = BoundEvaluator(model, strategy)

    def __call__(
        self,
        batches: tf.data.Dataset,
        *,
        samples: int = 1,
        seed: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> BitsPerDim:
        """Evaluates.

        Args:
            batches: dicts of `image` (uint8, `[batch, ...]`), `index` (`[batch]`) and `weight` (`[batch]`,
                0 for padding), all of one batch size that the number of devices divides; and `label` (`[batch]`) for a
                model that knows labels, which must be there only where z is a function of them.
            samples: draws of (z, u) per image.
            seed: of these draws.
            on_batch: called with the number of images done after each batch.

        Raises:
            DataError: where there is no label that the model needs.
            NotInitializedError: for a model without weights.
        """
        bounds = self._bounds.per_image(batches, samples=samples, seed=seed, on_batch=on_batch)
        total = Estimate.over(self._model.nats_to_bits_per_dim(bounds.negative_elbo))
        reconstruction, kl, dequantization = map(float, bounds.terms.mean(0))
        return BitsPerDim(
            total.mean, total.standard_error, reconstruction, kl, dequantization, len(bounds.terms), samples
        )
