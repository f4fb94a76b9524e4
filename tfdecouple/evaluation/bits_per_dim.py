"""Bits per dimension of a model on a set of images: the evidence lower bound, every image counted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.model import DecoupledModel


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """The bound and its parts, means over the images.

    Attributes:
        bits_per_dim: the negative ELBO in bits per colour value; an upper bound of the model's true bits/dim.
        standard_error: of `bits_per_dim`, over images.
        reconstruction, kl, dequantization: its parts in nats per image.
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


class Evaluator:
    """Measures bits/dim on one or more devices.

    The noise of an image depends on the seed and the image's index alone, and sums are taken in float64: neither the
    batch size nor the number of devices changes the result beyond rounding.

    Args:
        model: the model.
        strategy: the devices; None for the default one.
    """

    def __init__(self, model: DecoupledModel, strategy: tf.distribute.Strategy | None = None):
        self._model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        self._parts = tf.function(self._distributed_parts, autograph=False, reduce_retracing=True)

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
            batches: dicts of `image` (uint8 `[batch, height, width, 3]`), `index` (`[batch]`) and `weight` (`[batch]`,
                0 for padding), all of one batch size that the number of devices divides.
            samples: draws of (z, u) per image.
            seed: of these draws.
            on_batch: called with the number of images done after each batch.

        Raises:
            NotInitializedError: for a model without weights.
        """
        self._model.require_initialized()
        rows: list[np.ndarray] = []
        done = 0
        for batch in self._strategy.experimental_distribute_dataset(batches):
            parts = self._parts(batch["image"], batch["index"], tf.constant(seed), tf.constant(samples))
            weights = np.concatenate([w.numpy() for w in self._strategy.experimental_local_results(batch["weight"])])
            values = np.concatenate([p.numpy() for p in self._strategy.experimental_local_results(parts)])
            rows.append(values[weights > 0])
            done += len(rows[-1])
            if on_batch:
                on_batch(done)
        nats = np.concatenate(rows).astype(np.float64)
        totals = self._model.nats_to_bits_per_dim(nats.sum(1))
        error = totals.std(ddof=1) / np.sqrt(len(totals)) if len(totals) > 1 else float("nan")
        reconstruction, kl, dequantization = nats.mean(0)
        return BitsPerDim(
            float(totals.mean()), float(error), float(reconstruction), float(kl), float(dequantization), done, samples
        )

    def _distributed_parts(self, images: Any, index: Any, seed: tf.Tensor, samples: tf.Tensor) -> Any:
        return self._strategy.run(self._mean_parts, args=(images, index, seed, samples))

    def _mean_parts(self, images: tf.Tensor, index: tf.Tensor, seed: tf.Tensor, samples: tf.Tensor) -> tf.Tensor:
        """Returns the three parts of each image, means over the samples, float64 `[batch, 3]`."""

        def add_sample(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            z_noise, u_noise = self._noise(randomness.fold(seed, "evaluate", number), index)
            elbo = self._model.elbo_from_noise(images, z_noise, u_noise)
            return number + 1, total + tf.cast(tf.stack(elbo[:3], -1), tf.float64)

        start = tf.zeros([tf.shape(images)[0], 3], tf.float64)
        _, total = tf.while_loop(lambda number, _: number < samples, add_sample, (tf.constant(0), start))
        return total / tf.cast(samples, tf.float64)

    def _noise(self, seed: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        config = self._model.config

        def draw(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own = randomness.fold(seed, i)
            return (
                randomness.normal([config.latent_dim], randomness.fold(own, "z")),
                randomness.uniform(config.image_shape, randomness.fold(own, "u")),
            )

        return tf.map_fn(draw, index, fn_output_signature=(tf.float32, tf.float32))
