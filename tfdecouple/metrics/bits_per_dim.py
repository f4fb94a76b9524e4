"""The metrics of bits per dimension by two bounds: the ELBO, and the importance-weighted bound, which is tighter.

Both are upper bounds, in expectation, of -log2 p(image) per colour value, where p(image) is the integral of the density
over the pixel's bin and over z (paper equation 2). The importance-weighted bound (Burda et al., "Importance Weighted
Autoencoders", 2016) takes the mean over k draws inside the logarithm; it falls with k, and is the ELBO at k = 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.metrics.base import Estimate, Metric, Result, describe_draws, require_finite
from tfdecouple.runtime.option_types import add_number

if TYPE_CHECKING:
    import tensorflow as tf

ELBO = "ELBO"
IMPORTANCE_WEIGHTED = "importance-weighted"


class BitsPerDim(Metric):
    """The metric that `evaluate` always computes: bits per dimension by the ELBO, and the terms of the ELBO."""

    name = "bits_per_dim"

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the option --samples to `group`, an argument group of the parser of `evaluate`."""
        add_number(group, "--samples", 1, "draws per image for the ELBO, --latent-use and --outliers", 1)

    def is_requested(self) -> bool:
        """Returns True, because `evaluate` always computes this metric."""
        return True

    def compute(self, evaluation: Any) -> Result:
        """Returns the ELBO in bits/dim, with its three terms in nats per image."""
        elbo = _evaluate_bound(evaluation, ELBO, self.options.samples)
        terms = [
            f"    {term:15} {getattr(elbo, term).to_text(2):>22} nats an image"
            for term in ("reconstruction", "kl", "dequantization")
        ]
        return Result(elbo.to_dict(), [_first_line(elbo, ELBO), *terms])


class ImportanceWeighted(Metric):
    """The metric of bits per dimension by the importance-weighted bound."""

    name = "importance"

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the option --importance to `group`, an argument group of the parser of `evaluate`."""
        text = "also the importance-weighted bound over N draws per image, a tighter one; 0 for none"
        add_number(group, "--importance", 0, text)

    def compute(self, evaluation: Any) -> Result:
        """Returns the importance-weighted bound, its distance below the ELBO, and the number of effective draws."""
        bound = _evaluate_bound(evaluation, IMPORTANCE_WEIGHTED, self.options.importance)
        lines = [
            _first_line(bound, "importance-weighted bound"),
            f"    {bound.gain.to_text(4)} below the ELBO over the same draws",
            f"    {bound.effective_draws:.2f} effective draws of {bound.k}",
        ]
        return Result(bound.to_dict(), lines)


def _evaluate_bound(evaluation: Any, bound: str, k: int) -> Bound:
    from tfdecouple.runtime.progress import Counter

    evaluator = BoundEvaluator(evaluation.opened.model, evaluation.strategy)
    with Counter(f"{bound}, {describe_draws(k)} an image", evaluation.count) as counter:
        return evaluator(
            evaluation.batches(),
            bound=bound,
            k=k,
            seed=evaluation.options.seed,
            on_batch=counter,
            refuse_non_finite=True,
        )


def _first_line(bound: Bound, name: str) -> str:
    bits = Estimate(bound.bits_per_dim, bound.standard_error).to_text(4)
    return f"{bits} bits/dim: {name}, {describe_draws(bound.k)} an image, {bound.images:,} images"


@dataclasses.dataclass(frozen=True)
class Bound:
    """A bound on the bits per dimension, averaged over images.

    Attributes:
        bound: the kind of the bound, `ELBO` or `IMPORTANCE_WEIGHTED`.
        k: the number of draws of (z, u) per image, averaged outside the logarithm by the ELBO, inside by the other.
        images: the number of images.
        bits_per_dim: the bound in bits per colour value.
        standard_error: the standard error of `bits_per_dim`, from the spread over images.
        reconstruction, kl, dequantization: the terms of the ELBO over the same draws, in nats per image: -log p(x|z),
            log q(z|x) - log p(z), log q(u|x).
        gain: the distance of the bound below the ELBO over the same draws, in bits/dim; 0 for the ELBO.
        effective_draws: the mean over images of (sum of weights)**2 / sum of squared weights, from 1 to k. If it is
            near 1, few draws dominate the bound, and more draws would lower it.
    """

    bound: str
    k: int
    images: int
    bits_per_dim: float
    standard_error: float
    reconstruction: Estimate
    kl: Estimate
    dequantization: Estimate
    gain: Estimate
    effective_draws: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes by name, as plain values for JSON."""
        return dataclasses.asdict(self)

    def to_log_row(self) -> dict[str, float]:
        """Returns the numbers for a row of the training log: the bound, the means of its terms, and the counts."""
        terms = {name: getattr(self, name).mean for name in ("reconstruction", "kl", "dequantization")}
        bits = {"bits_per_dim": self.bits_per_dim, "standard_error": self.standard_error}
        return {**bits, **terms, "images": self.images, "samples": self.k}


class BoundEvaluator:
    """A function that computes a bound on the bits per dimension of images, on one or more devices.

    Draw number n of an image depends only on the seed, on n and on the image's index, and sums are taken in float64.
    So the batch size and the number of devices change a result by rounding alone. For a model without z only u is
    drawn.

    Args:
        model: a `DecoupledModel` with weights, or a density with its `config`, `require_initialized`,
            `elbo_from_noise` and `nats_to_bits_per_dim`.
        strategy: the devices; None for the default device.
    """

    def __init__(self, model: Any, strategy: tf.distribute.Strategy | None = None):
        import tensorflow as tf

        self._model = model
        self._has_classes = getattr(model.config, "has_classes", False)
        self._strategy = strategy or tf.distribute.get_strategy()
        # The seed and the number of the draw are tensors, so that TensorFlow traces each batch shape only once.
        self._compute_on_devices = tf.function(
            lambda *inputs: self._strategy.run(self._compute_draw, args=inputs), autograph=False, reduce_retracing=True
        )

    def __call__(
        self,
        batches: tf.data.Dataset,
        *,
        bound: str = ELBO,
        k: int = 1,
        seed: int = 0,
        on_batch: Callable[[int], None] = lambda done: None,
        refuse_non_finite: bool = False,
    ) -> Bound:
        """Returns a bound on the bits per dimension, averaged over the images of all batches.

        Args:
            batches: dicts of `image` (uint8, `[batch, ...]`), `index` (`[batch]`) and `weight` (`[batch]`, 0 for
                padding), all of one batch size that the number of devices divides; and `label` (`[batch]`) for a model
                with labels, which is required only where z is a function of the label.
            bound: the kind of the bound, `ELBO` or `IMPORTANCE_WEIGHTED`.
            k: the number of draws per image, at least 1.
            seed: the seed of the draws.
            on_batch: a callback that receives the progress after each draw, as a number of images.
            refuse_non_finite: whether an infinite or undefined bound of an image raises RunError.

        Raises:
            DataError: if a label that the model needs is missing.
            NotInitializedError: if the model has no weights.
            RunError: if a bound is not finite and `refuse_non_finite` is set; the message names the images.
        """
        self._model.require_initialized()
        terms, log_sums, index = self._sum_over_draws(batches, k, seed, on_batch)
        terms, (log_sum, log_sum_of_squares) = terms / k, log_sums.T
        # The terms are added in the order of the log weights, so that at k = 1 both bounds are equal to the last bit.
        negative_elbo = terms[:, 0] + terms[:, 1] + terms[:, 2]
        nats = negative_elbo if bound == ELBO else math.log(k) - log_sum
        if refuse_non_finite:
            require_finite("the bound", np.column_stack([nats, terms]), index)
        bits, elbo_bits = (self._model.nats_to_bits_per_dim(values) for values in (nats, negative_elbo))
        # NumPy would warn about infinite numbers, which a diverged model can produce.
        with np.errstate(invalid="ignore", over="ignore"):
            total, gain = Estimate.from_values(bits), Estimate.from_values(elbo_bits - bits)
            reconstruction, kl, dequantization = map(Estimate.from_values, terms.T)
            effective_draws = float(np.exp(2 * log_sum - log_sum_of_squares).mean())
        return Bound(
            bound=bound,
            k=k,
            images=len(nats),
            bits_per_dim=total.mean,
            standard_error=total.standard_error,
            reconstruction=reconstruction,
            kl=kl,
            dequantization=dequantization,
            gain=gain,
            effective_draws=effective_draws,
        )

    def _sum_over_draws(
        self, batches: tf.data.Dataset, k: int, seed: int, on_batch: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns sums over the k draws of each image: of the terms, and of the importance weights.

        Returns:
            The sums of the three terms in nats, float64 `[images, 3]`; the logs of the sum of the weights
            p(x, z) / q(z, u|x) and of the sum of their squares, float64 `[images, 2]`; and the images' indices.
        """
        import tensorflow as tf

        from tfdecouple.runtime.precision import full_float32

        terms, log_sums, indices = [np.zeros([0, 3])], [np.zeros([0, 2])], [np.zeros(0, np.int64)]
        done = 0
        for batch in self._distribute(batches):
            counted = self._gather(batch["weight"]) > 0
            images = int(counted.sum())
            batch_terms, batch_log_sums = np.zeros([images, 3]), np.full([images, 2], -math.inf)
            labels = batch.get("label") if self._has_classes else None
            for number in range(k):
                with full_float32():
                    draw = self._compute_on_devices(
                        batch["image"], labels, batch["index"], tf.constant(seed), tf.constant(number)
                    )
                rows = self._gather(draw)[counted].astype(np.float64)
                batch_terms += rows
                log_weights = -(rows[:, 0] + rows[:, 1] + rows[:, 2])
                # NumPy would warn about infinite weights, which a diverged model can produce.
                with np.errstate(invalid="ignore"):
                    batch_log_sums = np.logaddexp(batch_log_sums, np.stack([log_weights, 2 * log_weights], 1))
                on_batch(done + images * (number + 1) // k)
            terms.append(batch_terms)
            log_sums.append(batch_log_sums)
            indices.append(self._gather(batch["index"])[counted])
            done += images
        return np.concatenate(terms), np.concatenate(log_sums), np.concatenate(indices)

    def _distribute(self, batches: tf.data.Dataset) -> Any:
        from tfdecouple.data import slice_for_replicas

        if self._strategy.num_replicas_in_sync == 1:
            # A strategy would add a second input pipeline, and closing a pipeline can take as long as it has run.
            return batches
        return self._strategy.distribute_datasets_from_function(lambda context: slice_for_replicas(batches, context))

    def _gather(self, values: Any) -> np.ndarray:
        """Returns an array of the values from all devices, in the order of the batch, on every worker."""
        return self._strategy.gather(values, axis=0).numpy()

    def _compute_draw(
        self, images: tf.Tensor, labels: tf.Tensor | None, index: tf.Tensor, seed: tf.Tensor, number: tf.Tensor
    ) -> tf.Tensor:
        """Returns the three terms of each image's ELBO for one draw of the noise, `[batch, 3]`, in nats."""
        import tensorflow as tf

        from tfdecouple.model.noise import normal_u_noise, u_noise, z_noise

        config = self._model.config
        draw = seed, tf.fill(tf.shape(index), number), index
        noise = z_noise(config.latent_dim, *draw), u_noise(config.image_shape, *draw, normal_u_noise(config))
        options = {} if labels is None else {"labels": labels}
        return tf.stack(self._model.elbo_from_noise(images, *noise, **options)[:3], -1)


def describe_grey(images: np.ndarray) -> str:
    """Returns a note on how to read the bits/dim of grey images in three equal channels; "" for other images.

    >>> describe_grey(np.zeros((1, 2, 2, 3), np.uint8)) != "", describe_grey(np.arange(12).reshape(1, 2, 2, 3))
    (True, '')

    Args:
        images: the images, uint8 `[n, height, width, channels]`.
    """
    if images.shape[-1] == RGB_CHANNELS and len(images) and (images == images[..., :1]).all():
        height, width = images.shape[1:3]
        return (
            f"the first {len(images):,} images are grey, in three equal channels: in bits per grey pixel the figure is "
            f"three times as large (--set 'model.image_shape=[{height},{width},1]' trains on one channel)"
        )
    return ""
