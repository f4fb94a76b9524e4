"""How many bits a model needs for images, by two bounds: the ELBO, and the importance-weighted one, which is tighter.

Both are upper bounds, in expectation, of -log2 p(image) per colour value, p(image) being the integral of the density
over the pixel's bin and over z (paper equation 2). The importance-weighted bound (Burda et al.,
"Importance Weighted Autoencoders", 2016) takes the mean over k draws inside the logarithm; it falls with k, and is the
ELBO at k = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import DataError, RunError
from tfdecouple.metrics.bounds import DrawBounds, ElboModel, ImageBounds
from tfdecouple.metrics.estimate import Estimate

ELBO = "ELBO"
IMPORTANCE_WEIGHTED = "importance-weighted"


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
        reconstruction, kl, dequantization: the parts of the ELBO over the same draws, in nats per image: -log p(x|z),
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
    """Measures both bounds on one or more devices.

    Draw number n of an image is the same for both bounds and whatever k, the batch size and the number of devices.
    Log weights are float64. A model without z has bounds too: their draws are then of u alone.

    Args:
        model: the model, or a density in its place.
        strategy: the devices; None for the default one.
        at_once: draws of each image that go through the model together; memory and speed, not a result, depend on it.
    """

    def __init__(self, model: ElboModel, strategy: tf.distribute.Strategy | None = None, at_once: int = 1):
        self._model = model
        self._bounds = DrawBounds(model, strategy, at_once)

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
            batches: dicts of `image` (uint8 `[batch, height, width, 3]`), `index` (`[batch]`) and `weight` (`[batch]`,
                0 for padding), all of one batch size that the number of devices divides.
            bound: `ELBO` or `IMPORTANCE_WEIGHTED`.
            k: draws per image, 1 or more.
            split: name of the split that the images are of, to be stated.
            averaged_weights: whether the weights of the model are averages over training, to be stated.
            seed: of the draws.
            on_batch: as for `DrawBounds`.

        Raises:
            DataError: where there is no image, or k is below 1.
            NotInitializedError: for a model without weights.
            RunError: where the bound of an image is not finite, naming it.
        """
        if k < 1:
            raise DataError(f"k is {k}; a bound needs at least 1 draw per image")
        images = self._bounds(batches, samples=k, seed=seed, on_batch=on_batch)
        if not len(images.parts):
            raise DataError(f"there are no images of {split} to measure")
        nats = images.negative_elbo if bound == ELBO else -images.log_mean_weight
        _require_finite(nats, images, split)
        bits, elbo_bits = (self._model.nats_to_bits_per_dim(values) for values in (nats, images.negative_elbo))
        total = Estimate.over(bits)
        reconstruction, kl, dequantization = map(Estimate.over, images.parts.T)
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


def _require_finite(nats: np.ndarray, images: ImageBounds, split: str) -> None:
    bad = np.flatnonzero(~(np.isfinite(nats) & np.isfinite(images.parts).all(1)))
    if len(bad):
        listed = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        raise RunError(
            f"the bound is not finite for {len(bad)} of {len(nats)} images of {split} (number {listed}); "
            "the weights are damaged or training diverged: see docs/divergence.md"
        )
