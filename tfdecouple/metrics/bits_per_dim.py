"""Bits per dimension of images: by the ELBO and by the tighter importance-weighted bound."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.data.drawn_images import draw_uncropped_images
from tfdecouple.metrics.metric import Estimate, Evaluation, Metric, Option, Result, format_table, require_finite_values
from tfdecouple.system.progress import Counter, format_count

if TYPE_CHECKING:
    import tensorflow as tf

    from tfdecouple.model import DecoupledModel

ELBO = "ELBO"
IMPORTANCE_WEIGHTED = "importance-weighted"
_TERMS = ("reconstruction", "kl", "dequantization")


class BitsPerDim(Metric):
    """The metric that `evaluate` always computes: bits per dimension by the ELBO, and the terms of the ELBO in nats."""

    name = "bits_per_dim"
    added_options = {"samples": Option(int, 1, "draws per image for the ELBO, --latent-use and --outliers", least=1)}

    def is_requested(self) -> bool:
        return True

    def compute(self, evaluation: Evaluation) -> Result:
        elbo, line = _evaluate_bound(evaluation, ELBO, self.options.samples)
        terms = [[term, f"{getattr(elbo, term).to_text(2)} nats per image"] for term in _TERMS]
        return Result(dataclasses.asdict(elbo), [line, *format_table(terms)])


class ImportanceWeighted(Metric):
    """The metric of bits per dimension by the importance-weighted bound, from --importance draws per image."""

    name = "importance"
    _HELP = "also the importance-weighted bound over N draws per image, tighter than the ELBO; 0 for none"
    added_options = {"importance": Option(int, 0, _HELP)}

    def compute(self, evaluation: Evaluation) -> Result:
        bound, line = _evaluate_bound(evaluation, IMPORTANCE_WEIGHTED, self.options.importance)
        gain = f"    {bound.gain.to_text(4)} below the ELBO over the same draws"
        return Result(dataclasses.asdict(bound), [line, gain])


def _evaluate_bound(evaluation: Evaluation, bound: str, k: int) -> tuple[Bound, str]:
    evaluator = BoundEvaluator(evaluation.opened.model, evaluation.strategy)
    batches, seed = evaluation.make_image_batches(), evaluation.options.seed
    draws = f"{format_count(k, 'draw')} per image"
    with Counter(f"{bound}, {draws}", evaluation.count) as counter:
        result = evaluator(batches, bound=bound, k=k, seed=seed, on_batch=counter, refuse_non_finite=True)
    bits, name = Estimate(result.bits_per_dim, result.standard_error).to_text(4), bound + " bound" * (bound != ELBO)
    return result, f"{bits} bits/dim: {name}, {draws}, {result.images:,} images"


class OwnSize(Metric):
    """The metric of bits/dim (the ELBO) of images at their original size."""

    name = "own_size"
    help = "also bits/dim of the images at their own size, neither cropped nor resized (folders and photographs)"

    def compute(self, evaluation: Evaluation) -> Result:
        from tfdecouple import randomness

        options, model = self.options, evaluation.opened.model
        images = draw_uncropped_images(evaluation.source, options.split, options.images, options.seed)
        rows = []
        with Counter("ELBO at own size", len(images)) as counter:
            for index, (name, read) in enumerate(images.items()):
                image = read()
                seeds = [randomness.derive_seed(options.seed, "own size", index, k) for k in range(options.samples)]
                bits = np.mean([float(model.bound(image[None], seed=seed).bits_per_dim[0]) for seed in seeds])
                rows.append({"image": name, "height": image.shape[0], "width": image.shape[1], "bits_per_dim": bits})
                counter(index + 1)
        bits_per_dim = np.array([row["bits_per_dim"] for row in rows])
        require_finite_values("the bound", bits_per_dim, np.arange(len(rows)))
        mean, draws = Estimate.from_values(bits_per_dim), format_count(options.samples, "draw")
        lines = [f"{mean.to_text(4)} bits/dim: ELBO at own size, {draws} per image, {len(rows):,} images"]
        for name, height, width, bits in map(dict.values, rows[:20]):
            lines.append(f"    {bits:.4f}  {width} x {height}  {name}")
        values = {"bits_per_dim": mean.mean, "standard_error": mean.standard_error, "samples": options.samples}
        return Result({**values, "images": rows}, lines)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A bound on the bits per dimension, averaged over images, with its terms.

    In expectation, it is an upper bound of -log2 p(image) per colour value, where p(image) is the integral of the
    density over the bins of the pixels and over z (paper equation 2). The ELBO averages the log importance weights of
    the draws; the importance-weighted bound (Burda et al., 2016) is the log of the average weight.
    """

    bound: str  # `ELBO` or `IMPORTANCE_WEIGHTED`
    k: int  # draws of z and of the dequantisation noise u per image
    images: int
    bits_per_dim: float  # bits per colour value
    standard_error: float  # from the spread over images
    # The terms of the ELBO over these draws, in nats per image: -log p(x|z), log q(z|x) - log p(z), log q(u|x).
    reconstruction: Estimate
    kl: Estimate
    dequantization: Estimate
    gain: Estimate  # how far the bound is below the ELBO over these draws, in bits/dim; 0 for the ELBO

    def to_log_row(self) -> dict[str, float]:
        """Returns this bound as a dict for a row of the training log: the bound, its terms, counts of images, draws."""
        terms = {name: getattr(self, name).mean for name in _TERMS}
        bits = {"bits_per_dim": self.bits_per_dim, "standard_error": self.standard_error}
        return {**bits, **terms, "images": self.images, "samples": self.k}


class BoundEvaluator:
    """A callable that computes a bound on the bits per dimension of images, on one or more devices.

    The draw with index n of an image depends only on the seed, on n and on the index of the image, and sums are taken
    in float64. So the batch size and the count of devices change a result by rounding alone. For a model without z,
    only the dequantisation noise u is drawn.

    `model` is a `DecoupledModel` with weights, or another density that has the attributes `config`, `quantizer` and
    `bound`. `strategy` has the devices; None for the default device.
    """

    def __init__(self, model: DecoupledModel, strategy: tf.distribute.Strategy | None = None):
        import tensorflow as tf

        from tfdecouple import randomness

        self._model = model
        self._has_labels = getattr(model.config, "has_labels", False)
        self._strategy = strategy or tf.distribute.get_strategy()
        config = model.config

        def compute_terms(
            images: tf.Tensor, labels: tf.Tensor | None, index: tf.Tensor, seed: tf.Tensor, number: tf.Tensor
        ) -> tf.Tensor:
            """Returns the three terms of each image's ELBO, in nats, `[batch, 3]`, for the draw with this `number`."""
            draw = seed, number, index
            z = randomness.draw_z_noise(config.latent_dim, *draw)
            u = randomness.draw_u_noise(config.image_shape, *draw, config.has_dequantizer)
            options = {} if labels is None else {"labels": labels}
            return tf.stack(model.bound(images, noise=(z, u), **options)[:3], -1)

        # Seed and index of the draw are tensors, so that TensorFlow traces anew for a new batch shape only.
        self._compute_on_devices = tf.function(
            lambda *inputs: self._strategy.run(compute_terms, args=inputs), autograph=False, reduce_retracing=True
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
        """Returns a bound on the bits per dimension, from `k` draws per image, averaged over the images of all batches.

        `batches` is a dataset of `make_evaluation_batches`, whose batch size is a multiple of the number of devices.
        The callback `on_batch` receives the number of evaluated images after each draw. With `refuse_non_finite`, a
        bound that is not finite raises RunError, with the indices of the images.
        """
        import tensorflow as tf

        from tfdecouple.data.batches import slice_for_replicas
        from tfdecouple.numerics.tf32 import full_float32

        if self._strategy.num_replicas_in_sync > 1:
            # A single device reads `batches` directly, because a distributed dataset can take long to close.
            batches = self._strategy.distribute_datasets_from_function(functools.partial(slice_for_replicas, batches))
        # Both lists get one array per batch: the ELBO terms, `[draws, images, terms]`, and the indices of the images.
        terms, indices, done = [], [], 0
        for batch in batches:
            counted = self._gather_from_devices(batch["weight"]) > 0
            images, rows = int(counted.sum()), []
            labels = batch.get("label") if self._has_labels else None
            for number in range(k):
                with full_float32():
                    draw = tf.constant(seed), tf.constant(number)
                    values = self._compute_on_devices(batch["image"], labels, batch["index"], *draw)
                rows.append(self._gather_from_devices(values)[counted].astype(np.float64))
                on_batch(done + images * (number + 1) // k)
            terms.append(np.stack(rows))
            indices.append(self._gather_from_devices(batch["index"])[counted])
            done += images
        draws = np.concatenate(terms, 1)
        nats = draws.mean(0)
        # The terms are added in the same order twice, so that both bounds are identical for k = 1.
        elbo_nats = nats[:, 0] + nats[:, 1] + nats[:, 2]
        log_weights = -(draws[..., 0] + draws[..., 1] + draws[..., 2])
        convert, dimensions = self._model.quantizer.convert_to_bits_per_dim, math.prod(self._model.config.image_shape)
        # Without this context NumPy would warn about the infinite weights of a diverged model.
        with np.errstate(invalid="ignore", over="ignore"):
            bound_nats = elbo_nats if bound == ELBO else math.log(k) - np.logaddexp.reduce(log_weights)
            if refuse_non_finite:
                require_finite_values("the bound", np.column_stack([bound_nats, nats]), np.concatenate(indices))
            bits, elbo_bits = (convert(values, dimensions) for values in (bound_nats, elbo_nats))
            mean, error = dataclasses.astuple(Estimate.from_values(bits))
            terms_and_gain = map(Estimate.from_values, (*nats.T, elbo_bits - bits))
        return Bound(bound, k, len(bits), mean, error, *terms_and_gain)

    def _gather_from_devices(self, values: tf.Tensor) -> np.ndarray:
        return self._strategy.gather(values, axis=0).numpy()
