"""Bits per dimension of a model on a set of images: the evidence lower bound, every image counted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.image_shapes import COLOURS
from tfdecouple.metrics.bounds import BoundEvaluator
from tfdecouple.metrics.estimate import Estimate
from tfdecouple.model import DecoupledModel


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
    if images.shape[-1] == COLOURS and len(images) and (images == images[..., :1]).all():
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

    def __init__(self, model: DecoupledModel, strategy: tf.distribute.Strategy | None = None):
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
