"""The Keras model as the reference of a verification: its answers, and how stable it is on each image.

Of every image and every code the model is asked once, and once more with them moved by `tolerance.PERTURBATION`.
Where codes of images are decoded to other images, the images are moved and not only their codes: what encoding rounds
can be made a hundred times larger by the z of another image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.endpoints import TEMPERATURES, Codes
from export.verification.tolerance import FLOOR, PERTURBATION, Answer, Floats, Pixels
from tfdecouple.model import DecoupledModel
from tfdecouple.model.objective import Latents
from tfdecouple.model.outlier_scores import OutlierScores, scores_of

# Pixels that the model takes at once: always the same number of images, since each number is a graph of its own.
_PIXELS_AT_ONCE = 16 * 32 * 32
# How far from the border of a level, in bounds of the image, codes are made whose rounding shows smallest errors.
_MARGIN = 3.0

Optional = np.ndarray | None


class KerasReference:
    """Answers of a model to images and codes, each kept for whoever asks again (`export.endpoints.Reference`).

    Args:
        model: with weights.
        images: uint8 `[n, height, width, channels]`: those of parity.
        rng: of what moves inputs.
    """

    def __init__(self, model: DecoupledModel, images: np.ndarray, rng: np.random.Generator):
        model.require_initialized()
        self.images = images
        self._model, self._config, self._rng = model, model.config, rng
        self._at_once = max(2, min(64, _PIXELS_AT_ONCE // math.prod(self._config.image_shape[:2])))
        self._known: dict[bytes, list[Optional]] = {}

    # --- what endpoints ask ---

    def codes(self, images: np.ndarray, labels: Optional = None) -> list[Codes]:
        """Returns z and v of images, by these labels or by all in turn; after them those of the images moved."""
        return [_z_and_v(one) for one in (self._codes(images, labels), self._moved_codes(images, labels))]

    def encode(self, images: np.ndarray, labels: Optional = None) -> dict[str, Answer]:
        """Returns the answers "z", "z_log_variance" (both only with z, the second with an encoder) and "v"."""
        right, moved = self._codes(images, labels), self._moved_codes(images, labels)
        names = ("z", "z_log_variance", "v")
        return {
            name: Floats.measured(value, other)
            for name, value, other in zip(names, right, moved, strict=True)
            if value is not None and other is not None
        }

    def decode(self, codes: Codes, *moved: Codes) -> Pixels:
        """Returns the answer in pixels to codes; given those of moved images, its reaction to the images."""
        right, *others = self._values(codes, *moved)
        return Pixels.measured(right, *others, n_bins=self._config.n_bins)

    def score(
        self, images: np.ndarray, z_noise: Optional, u_noise: np.ndarray, labels: Optional = None
    ) -> dict[str, Answer]:
        """Returns the answers of `outlier_scores`: as given, with images and noise moved, and of longer latents.

        The rounding of one weight moves all of v the same way, and the length of v by as much; of numbers moved up and
        down at random the changes cancel.
        """
        if z_noise is None:
            z_noise = np.zeros((len(images), self._config.latent_dim), np.float32)

        def ask(images: tf.Tensor, z_noise: tf.Tensor, u_noise: tf.Tensor, labels: Any) -> list[tf.Tensor]:
            elbo, latents = self._model.elbo_and_latents(images, z_noise, u_noise, labels=labels)
            return [
                one
                for each in (latents, _longer(latents))
                for one in scores_of(self._model, elbo, each)
                if one is not None
            ]

        right = self._run(ask, images, z_noise, u_noise, labels)
        # Of u in units of levels, so that x moves as that of images does.
        u_moved = self._moved(u_noise, self._config.n_bins / 2)
        moved = self._run(ask, images, self._moved_noise(images, z_noise), u_moved, labels)
        names = [name for name in OutlierScores._fields if name != "prior_nats" or self._config.has_encoder]
        count = len(names)
        return {
            name: Floats.measured(right[index], moved[index], right[count + index]) for index, name in enumerate(names)
        }

    def classify(self, images: np.ndarray) -> Floats:
        """Returns the answer of log p(y|x), of the images and of images that are moved."""

        def ask(levels: tf.Tensor) -> list[tf.Tensor]:
            joint = self._model.log_joint(levels)
            return [tf.math.log_softmax(joint), joint]

        levels = self._levels(images)
        moved = self._moved(levels, self._config.n_bins / 2)
        (right, joint), (other, _) = (self._run(ask, values) for values in (levels, moved))
        answer = Floats.measured(right, other)
        # Differences of numbers as large as a density of whole images, which are rounded as these are.
        return dataclasses.replace(answer, bound=answer.bound + np.float32(FLOOR) * np.abs(joint).max(1))

    def z_from_noise(self, noise: Optional, labels: Optional = None) -> Optional:
        """Returns the z of noise of the prior, and of labels, where the model knows them; None without z."""
        if not self._config.has_latent:
            return None
        if noise is None:
            assert labels is not None
            noise = np.zeros((len(labels), self._config.latent_dim), np.float32)
        return self._run(lambda *given: [self._model.z_from_noise(*given)], noise, labels)[0]

    def drawn(self, count: int) -> dict[str, np.ndarray]:
        """Returns what so many samples are made of, the values of the first half beside borders of levels.

        As near as float32 allows, so that the rounding of each shows an error of a thousandth of a level.
        """
        rng, half = np.random.default_rng(count), count // 2
        temperature = np.linspace(*TEMPERATURES, count, dtype=np.float32)
        z, v = self._rows("border", self._border, self.images[:half])
        assert v is not None
        v_noise = rng.standard_normal((count, *v.shape[1:]), np.float32)
        v_noise[:half] = v / temperature[:half, None, None, None]
        drawn = {"v_noise": v_noise, "temperature": temperature}
        labels = self._labels(count)
        if labels is not None:
            drawn["labels"] = labels
        if self._config.has_encoder:
            assert z is not None
            drawn["z_noise"] = rng.standard_normal((count, *z.shape[1:]), np.float32)
            drawn["z_noise"][:half] = self._noise_from_z(z, None if labels is None else labels[:half])
        return drawn

    def kept(self, images: np.ndarray, labels: Optional = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns which images the model itself gives back from their codes, and which also from codes moved a bit."""
        right, quantizer = np.asarray(self._model.quantize_images(images)), self._model.quantizer

        def same(values: np.ndarray) -> np.ndarray:
            levels = np.clip(np.floor(np.nan_to_num(values, nan=-1)), 0, quantizer.n_bins - 1)
            return (levels * quantizer.step == right).reshape(len(right), -1).all(1)

        back, *moved = (same(values) for values in self._values(_z_and_v(self._codes(images, labels))))
        return back, np.all([back, *moved], 0)

    # --- what it knows, and asks the model ---

    def _labels(self, count: int) -> Optional:
        """Labels in turn, int32; None for a model that knows none."""
        classes = self._config.classes
        return np.arange(count, dtype=np.int32) % classes if classes else None

    def _noise_from_z(self, z: np.ndarray, labels: Optional) -> np.ndarray:
        """The noise of the prior behind z, by its labels, where the model knows them."""
        flow, affine = self._model.prior_flow, self._model.prior_affine

        def ask(part: tf.Tensor, labels: tf.Tensor | None) -> list[tf.Tensor]:
            if affine is not None:
                part = tf.gather(affine(part)[0], labels, batch_dims=1)
            return [part if flow is None else flow.forward_and_log_det(part)[0]]

        return self._run(ask, z, labels)[0]

    def _rows(self, what: str, ask: Callable[..., Sequence[Optional]], *inputs: Optional) -> list[Optional]:
        """Returns the rows of the results of `ask` for each row of the inputs, asking for those not known yet."""
        given = [array for array in inputs if array is not None]
        keys = [
            hashlib.sha256(b"|".join([what.encode(), *(array[row].tobytes() for array in given)])).digest()
            for row in range(len(given[0]))
        ]
        # By key, so that an image that is there twice is asked for once.
        unknown = list({key: row for row, key in enumerate(keys) if key not in self._known}.values())
        if unknown:
            results = ask(*(None if array is None else array[unknown] for array in inputs))
            for number, row in enumerate(unknown):
                self._known[keys[row]] = [None if one is None else one[number] for one in results]
        columns = zip(*(self._known[key] for key in keys), strict=True)
        return [None if column[0] is None else np.stack(column) for column in columns]

    def _wanted(self, images: np.ndarray, labels: Optional) -> Optional:
        """The labels where z is a function of them: all in turn, where none are given."""
        if not self._config.has_class_codes:
            return None
        return self._labels(len(images)) if labels is None else labels

    def _codes(self, images: np.ndarray, labels: Optional = None) -> list[Optional]:
        def ask(images: np.ndarray, labels: Optional) -> list[Optional]:
            return self._encoded(self._levels(images), labels)

        return self._rows("codes", ask, images, self._wanted(images, labels))

    def _moved_codes(self, images: np.ndarray, labels: Optional) -> list[Optional]:
        return self._rows("moved codes", self._react, images, self._wanted(images, labels))

    def _react(self, images: np.ndarray, labels: Optional) -> list[Optional]:
        return self._encoded(self._moved(self._levels(images), self._config.n_bins / 2), labels)

    def _moved_noise(self, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Noise that is moved, by which z is that of moved images.

        Moved noise by itself hardly moves a z of small variance, which the rounding of its mean does.
        """
        moved = self._moved(noise)
        if not self._config.has_encoder:
            return moved
        mean, log_variance, _ = self._codes(images)
        its_mean, its_log_variance, _ = self._moved_codes(images, None)
        assert mean is not None and log_variance is not None and its_mean is not None and its_log_variance is not None
        return (its_mean + np.exp(its_log_variance / 2) * moved - mean) / np.exp(log_variance / 2)

    def _encoded(self, levels: np.ndarray, labels: Optional) -> list[Optional]:
        """Mean and log-variance of z, and v."""
        mean, log_variance = None, None
        if labels is not None:
            mean = self.z_from_noise(None, labels)
        encoder = self._model.encoder
        if encoder is not None:
            edges = self._model.quantizer.edges
            mean, log_variance = self._run(lambda part: encoder.infer(edges(part)), levels)
        return [mean, log_variance, self._local_codes(levels + np.float32(0.5), mean)]

    def _values(self, codes: Codes, *others: Codes) -> list[np.ndarray]:
        """The values behind the pixels of codes, level k from k to k + 1, float64; then those of moved codes.

        What is moved are the other codes, or the codes themselves.
        """

        def ask(*arrays: Optional) -> list[np.ndarray]:
            first, *rest = [(z, v) for z, v in zip(arrays[::2], arrays[1::2], strict=True) if v is not None]
            moved = [(None if z is None else self._moved(z), self._moved(v)) for z, v in rest or [first]]
            # One behind the other, so that few images are computed to fill a batch up.
            every = [first, *moved]
            whole = None if first[0] is None else np.concatenate([z for z, _ in every if z is not None])
            return np.split(self._decoded(whole, np.concatenate([v for _, v in every])), len(every))

        places = self._model.quantizer.places
        values = self._rows("values", ask, *(array for pair in (codes, *others) for array in pair))
        return [places(x.astype(np.float64)) for x in values if x is not None]

    def _border(self, images: np.ndarray) -> list[Optional]:
        levels, codes = self._levels(images), _z_and_v(self._codes(images))
        margin = np.minimum(_MARGIN * self.decode(codes).bound, 0.25).reshape(-1, 1, 1, 1)
        low = self._rng.integers(0, 2, levels.shape).astype(bool)
        values = levels + np.where(low, margin, 1 - margin)
        return [codes[0], self._local_codes(values.astype(np.float32), codes[0])]

    def _levels(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.levels_of(tf.constant(images)))

    def _local_codes(self, values: np.ndarray, z: Optional) -> np.ndarray:
        """The v of values of pixels, whole levels lying at k + 0.5."""
        flow, edges = self._model.flow, self._model.quantizer.edges
        return self._run(lambda y, z: flow.forward_and_log_det(edges(y), z)[:1], values, z)[0]

    def _decoded(self, z: Optional, v: np.ndarray) -> np.ndarray:
        return self._run(lambda z, v: self._model.flow.inverse_and_log_det(v, z)[:1], z, v)[0]

    def _moved(self, values: np.ndarray, scale: float | None = None) -> np.ndarray:
        """Values moved up or down by a share of themselves, or of `scale`."""
        signs = self._rng.choice(np.array([-1.0, 1.0]), values.shape)
        change = PERTURBATION * signs * (values if scale is None else scale)
        return (values + change).astype(np.float32)

    def _run(self, function: Callable[..., Any], *arrays: Optional) -> list[np.ndarray]:
        """Runs a function of the model on many images, some at once; returns its results as arrays."""
        length = len(next(array for array in arrays if array is not None))
        made = []
        for start in range(0, length, self._at_once):
            rows = np.minimum(np.arange(start, start + self._at_once), length - 1)
            results = function(*(None if array is None else tf.constant(array[rows]) for array in arrays))
            made.append([np.asarray(value)[: length - start] for value in results])
        return [np.concatenate(values) for values in zip(*made, strict=True)]


def _z_and_v(encoded: list[Optional]) -> Codes:
    """Of a mean, a log-variance and v."""
    z, _, v = encoded
    assert v is not None
    return z, v


def _longer(latents: Latents) -> Latents:
    """Latents that are longer by the share of themselves by which inputs are moved."""
    noise = latents.prior_noise
    longer = 1 + PERTURBATION
    return latents._replace(v=longer * latents.v, prior_noise=None if noise is None else longer * noise)
