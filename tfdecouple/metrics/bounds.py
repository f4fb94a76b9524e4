"""The bounds of each image over draws of z and of the dequantisation noise, on one or more devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.data import own_share
from tfdecouple.runtime.tf32 import full_float32

# Draws of a batch in one call of TensorFlow, which cannot be interrupted and says nothing meanwhile.
_DRAWS_A_CALL = 16


class ElboModel(Protocol):
    """What is needed of a model; a density that is known in closed form can stand in its place.

    Attributes:
        config: has `latent_dim`, the size of z, and `image_shape`.
    """

    config: Any

    def require_initialized(self) -> None:
        """Raises NotInitializedError for a model without weights."""

    def elbo_from_noise(self, images: Any, z_noise: tf.Tensor, u_noise: tf.Tensor) -> Any:
        """Returns -log p(x|z), log q(z|x) - log p(z) and log q(u|x) first, each `[batch]`, in nats."""

    def nats_to_bits_per_dim(self, nats: Any) -> Any:
        """Turns nats per image into bits per colour value."""


@dataclasses.dataclass(frozen=True)
class ImageBounds:
    """The bounds of N images, in their order, each over k draws of (z, u).

    Attributes:
        parts: float64 `[N, 3]`, means over the draws of -log p(x|z), log q(z|x) - log p(z) and log q(u|x), in nats;
            their sum is the negative ELBO.
        log_mean_weight: float64 `[N]`, the log of the mean over the draws of p(x, z) / q(z, u|x), in nats: the
            importance-weighted bound.
        effective_draws: float64 `[N]`, (sum of weights)**2 / sum of squared weights, from 1 to k.
    """

    parts: np.ndarray
    log_mean_weight: np.ndarray
    effective_draws: np.ndarray

    @property
    def negative_elbo(self) -> np.ndarray:
        """The sum of the parts, float64 `[N]`, in nats."""
        reconstruction, kl, dequantization = self.parts.T
        # In the order in which log weights are summed, so that at k = 1 both bounds are equal to the last bit.
        return reconstruction + kl + dequantization


class DrawBounds:
    """Computes the bounds of each image.

    Draw number n of an image depends on the seed, n and the image's index alone, and sums are taken in float64:
    neither the batch size, nor `at_once`, nor the number of devices changes a result beyond rounding.

    Args:
        model: the model.
        strategy: the devices; None for the default one.
        at_once: how many draws of each image go through the model together. One is best for batches that fill the
            device; more help where there are few images and many draws.
    """

    def __init__(self, model: ElboModel, strategy: tf.distribute.Strategy | None = None, at_once: int = 1):
        self._model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        self._at_once = at_once
        # Seed and numbers of draws are tensors: one trace for each shape of batch.
        self._sums = tf.function(self._distributed, autograph=False, reduce_retracing=True)
        self._from_all = tf.function(self._all_gathered, autograph=False, reduce_retracing=True)

    def __call__(
        self,
        batches: tf.data.Dataset,
        *,
        samples: int,
        seed: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> ImageBounds:
        """Computes the bounds.

        Args:
            batches: dicts of `image` (uint8 `[batch, height, width, 3]`), `index` (`[batch]`) and `weight` (`[batch]`,
                0 for padding), all of one batch size that the number of devices divides.
            samples: draws of (z, u) per image, k.
            seed: of these draws.
            on_batch: called with the number of images done after each batch, and within one that takes many draws with
                as many as that work stands for.

        Raises:
            NotInitializedError: for a model without weights.
        """
        self._model.require_initialized()
        step = self._at_once * max(1, _DRAWS_A_CALL // self._at_once)
        parts, log_sums = [np.zeros([0, 3])], [np.zeros([0, 2])]
        done = 0
        for batch in self._distributed_batches(batches):
            counted = self._gathered(batch["weight"]) > 0
            images = int(counted.sum())
            batch_parts, batch_log_sums = np.zeros([images, 3]), np.full([images, 2], -math.inf)
            for first in range(0, samples, step):
                last = min(first + step, samples)
                with full_float32():
                    sums = self._sums(batch["image"], batch["index"], *map(tf.constant, (seed, first, last)))
                rows = self._gathered(sums)[counted]
                batch_parts += rows[:, :3]
                # The weights of a model that has diverged need not be finite: whoever reads them says so, not NumPy.
                with np.errstate(invalid="ignore"):
                    batch_log_sums = np.logaddexp(batch_log_sums, rows[:, 3:])
                if on_batch:
                    on_batch(done + images * last // samples)
            parts.append(batch_parts)
            log_sums.append(batch_log_sums)
            done += images
        log_sum, log_sum_of_squares = np.concatenate(log_sums).T
        with np.errstate(invalid="ignore", over="ignore"):
            effective = np.exp(2 * log_sum - log_sum_of_squares)
        return ImageBounds(np.concatenate(parts) / samples, log_sum - math.log(samples), effective)

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
        self, images: tf.Tensor, index: tf.Tensor, seed: tf.Tensor, first: tf.Tensor, last: tf.Tensor
    ) -> tf.Tensor:
        """Sums over the draws from number `first` to before `last`.

        Returns:
            Of each image the sums of its three parts, the log of the sum of its weights and the log of the sum of their
            squares, float64 `[batch, 5]`.
        """
        batch = tf.shape(images)[0]
        repeated = tf.repeat(images, self._at_once, 0)

        def add_draws(number: tf.Tensor, parts: tf.Tensor, log_sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            numbers = number + tf.range(self._at_once)
            which = seed, tf.tile(numbers, [batch]), tf.repeat(index, self._at_once)
            config = self._model.config
            elbo = self._model.elbo_from_noise(
                repeated, z_noise(config.latent_dim, *which), u_noise(config.image_shape, *which)
            )
            new = tf.reshape(tf.cast(tf.stack(elbo[:3], -1), tf.float64), [batch, self._at_once, 3])
            log_weights = -(new[..., 0] + new[..., 1] + new[..., 2])
            # The last draws of a chunk can be too many: they count as weights of 0.
            wanted = numbers < last
            new_parts = parts + tf.reduce_sum(tf.where(wanted[:, None], new, 0.0), 1)
            log_weights = tf.where(wanted, log_weights, -math.inf)
            # A running sum of exponentials, of the weights and of their squares, which never leaves the logarithm.
            both = tf.concat([log_sums[:, None], tf.stack([log_weights, 2 * log_weights], -1)], 1)
            # The loop wants to see that shapes stay, and the noise hides how many images there are.
            return (
                number + self._at_once,
                tf.ensure_shape(new_parts, parts.shape),
                tf.ensure_shape(tf.reduce_logsumexp(both, 1), log_sums.shape),
            )

        start = (
            first,
            tf.zeros([batch, 3], tf.float64),
            tf.fill([batch, 2], tf.constant(-math.inf, tf.float64)),
        )
        _, parts, log_sums = tf.while_loop(lambda number, *_: number < last, add_draws, start)
        return tf.concat([parts, log_sums], 1)


def z_noise(latent_dim: int, seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the noise of z of some draws, each a function of the seed, its number and the image's index alone.

    Args:
        latent_dim: size of z, 0 or more.
        seed: as for `randomness.fold`.
        number: which draw of its image, integers `[n]`.
        index: of the image in its split, integers `[n]`.

    Returns:
        Standard normal, float32 `[n, latent_dim]`.
    """
    return _each(lambda own: randomness.normal([latent_dim], randomness.fold(own, "z")), seed, number, index)


def u_noise(image_shape: Sequence[int], seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """As `z_noise`, of the pixels: uniform in [0, 1), float32 `[n, height, width, 3]`."""
    return _each(lambda own: randomness.uniform(image_shape, randomness.fold(own, "u")), seed, number, index)


def _each(draw: Callable[[tf.Tensor], tf.Tensor], seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    base = randomness.fold(seed, "evaluate")
    return tf.map_fn(lambda place: draw(randomness.fold(base, *place)), (number, index), fn_output_signature=tf.float32)
