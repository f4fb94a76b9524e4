"""How well scores of images tell outliers from the images of a run: AUROC and false positives of each score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.data.codecs import codec_bits_per_dim
from tfdecouple.errors import RunError
from tfdecouple.metrics.detection import detection
from tfdecouple.model.noise import normal_u_noise, u_noise, z_noise
from tfdecouple.model.outlier_scores import outlier_scores
from tfdecouple.model.round_trip import listed
from tfdecouple.runtime.precision import full_float32

MINUS_CODEC = "bits_per_dim_minus_codec"
CODEC = "webp"
# By name, what each is; all are such that outliers are to have more, `shell` by its size.
SCORES = {
    "bits_per_dim": "bits/dim",
    MINUS_CODEC: f"bits/dim less lossless {CODEC}'s",
    "prior_nats": "-log p(z), nats",
    "shell": "|v| off its shell, sd",
    "typicality": "latents off their typical set, sd",
}
# A batch of images, padded: "image", "index" and "weight" as of `evaluation_batches`, and perhaps "label".
Batch = Mapping[str, Any]
Scored = dict[str, np.ndarray]


class Scorer:
    """Scores images, on one device. What an image gets depends on the seed and its index, not on its batch.

    Args:
        model: with weights.
        samples: draws of (z, u) per image, over which scores are averaged.
        seed: of these draws.
    """

    def __init__(self, model: Any, samples: int = 1, seed: int = 0):
        model.require_initialized()
        self._model, self._samples, self._seed = model, samples, seed
        self._draw = tf.function(self._of_a_draw, autograph=False)

    @full_float32()
    def __call__(self, images: np.ndarray, index: np.ndarray) -> Scored:
        """Scores images.

        Args:
            images: uint8 `[n, height, width, channels]`; the same number each time, or each number is traced anew.
            index: of each in its split.

        Returns:
            By name of `SCORES` but the codec's, float64 `[n]`; without z there is no `prior_nats`.
        """
        sums: dict[str, np.ndarray] = {}
        for number in range(self._samples):
            given = tf.constant(images), tf.constant(np.asarray(index, np.int64)), tf.constant(number)
            for name, values in self._draw(*given).items():
                sums[name] = sums.get(name, 0.0) + values.numpy().astype(np.float64)
        return {name: total / self._samples for name, total in sums.items()}

    def with_codec(self, images: np.ndarray, index: np.ndarray, count: int) -> Scored:
        """As a call, of the first `count` images alone, with bits/dim less those of the lossless codec beside them."""
        found = {name: values[:count] for name, values in self(images, index).items()}
        seen = np.asarray(self._model.quantize_images(images[:count]))
        return {**found, MINUS_CODEC: found["bits_per_dim"] - codec_bits_per_dim(seen, CODEC)}

    def _of_a_draw(self, images: tf.Tensor, index: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
        config, batch = self._model.config, images.shape[0]
        which = self._seed, tf.fill([batch], number), index
        noise = z_noise(config.latent_dim, *which), u_noise(config.image_shape, *which, normal_u_noise(config))
        # The loop over images hides how many there are.
        z, u = (tf.ensure_shape(one, [batch, *one.shape[1:]]) for one in noise)
        return outlier_scores(self._model, images, z, u).named()

    def all_of(
        self, batches: Iterable[Batch], what: str, on_batch: Callable[[int], None] = lambda done: None
    ) -> Scored:
        """Scores the images of batches, with the lossless codec's bits beside the model's.

        Args:
            batches: of one size.
            what: they are, for messages.
            on_batch: called with the number of images done.

        Returns:
            By name of `SCORES`, and "index" and "label" (-1 for none), `[n]`, in their order.

        Raises:
            RunError: where a score is not finite.
        """
        rows: list[Scored] = []
        for batch in batches:
            image, index, weight = (np.asarray(batch[name]) for name in ("image", "index", "weight"))
            # What fills up the last batch is at its end.
            count = int((weight > 0).sum())
            label = np.asarray(batch.get("label", np.full(len(index), -1)))
            rows.append({**self.with_codec(image, index, count), "index": index[:count], "label": label[:count]})
            on_batch(sum(len(row["index"]) for row in rows))
        scored = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        for name in scored.keys() & SCORES.keys():
            bad = np.flatnonzero(~np.isfinite(scored[name]))
            if len(bad):
                raise RunError(
                    f"{name} of {what} is not finite for {len(bad)} of {len(scored['index'])} images "
                    f"(number {listed(scored['index'][bad].tolist())}); the weights are damaged or training diverged"
                )
        return scored


def detections(known: Scored, outliers: Scored, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns by the name of each score how well it tells outliers, as plain JSON (`Detection`)."""
    return {
        name: detection(unusual(name, known[name]), unusual(name, outliers[name]), seed).to_dict()
        for name in SCORES
        if name in known
    }


def unusual(name: str, values: np.ndarray) -> np.ndarray:
    """Returns values of a score such that more means more unusual."""
    return np.abs(values) if name == "shell" else values


# --- images that nobody took; each is drawn by the seed and its index, whatever batch it is in ---


def noise_images(shape: tuple[int, int, int], index: np.ndarray, seed: int) -> np.ndarray:
    """Returns images of uniform noise, one for each index, uint8 `[n, height, width, channels]`."""
    return np.stack([_drawn(shape, seed, number) for number in index])


def constant_images(shape: tuple[int, int, int], index: np.ndarray, seed: int) -> np.ndarray:
    """Returns images of one colour each, drawn uniformly, one for each index."""
    colours = np.stack([_drawn((1, 1, shape[-1]), seed, number) for number in index])
    return np.broadcast_to(colours, (len(index), *shape)).copy()


def _drawn(shape: tuple[int, int, int], seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, int(number)]).integers(0, 256, shape, np.uint8)


def permuted(images: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Returns images with their pixels in another order, of each image its own: the colours stay, nothing else does.

    Args:
        images: uint8 `[n, height, width, channels]`.
        index: of each, by which it is permuted.
        seed: likewise.
    """
    pixels = images.reshape(len(images), -1, images.shape[-1])
    orders = [np.random.default_rng([seed, int(number)]).permutation(pixels.shape[1]) for number in index]
    return np.stack([one[order] for one, order in zip(pixels, orders, strict=True)]).reshape(images.shape)
