"""The answers of the Keras model that files are compared with, to inputs and to perturbed inputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export.verification.tolerance import PERTURBATION
from tfdecouple.model import DecoupledModel
from tfdecouple.model.any_size import fit_images
from tfdecouple.model.outlier_scores import OutlierScores, scores_of

# Number of pixels that the model computes at once. Batches have one size, because TensorFlow traces each size anew.
_PIXELS_AT_ONCE = 16 * 32 * 32

Optional = np.ndarray | None


class Encoding(NamedTuple):
    """The codes of images: `z` and `z_log_variance`, `[n, d_z]` or None, and `v`, of the images' shape."""

    z: Optional
    z_log_variance: Optional
    v: np.ndarray


class KerasAnswers:
    """A Keras model that answers endpoints: codes, images and scores, as arrays with the batch axis first.

    Answers to equal rows of inputs are computed once. For a model without z, z is None.

    Args:
        model: the model, with weights.
        unperturbed: None to answer the inputs as they are; or the answers to them, to answer inputs that are perturbed,
            up or down, by a relative `PERTURBATION`; pixels are perturbed by this share of their range.
    """

    def __init__(self, model: DecoupledModel, unperturbed: KerasAnswers | None = None):
        model.require_initialized()
        self.config = model.config
        self._model, self._unperturbed = model, unperturbed
        self._rng = np.random.default_rng(0)
        self._known: dict[bytes, list[Optional]] = {}

    def encode(self, images: np.ndarray, labels: Optional = None) -> Encoding:
        """Returns the codes of uint8 images of any size; labels are used only if z is a function of the label."""
        labels = labels if self.config.has_class_codes else None
        return Encoding(*self._answer_rows("encode", self._encode, images, labels))  # type: ignore[arg-type]

    def decode(self, z: Optional, v: np.ndarray) -> np.ndarray:
        """Returns decoded images before rounding to pixels, float64, in units of bins: bin k is from k to k + 1."""
        (x,) = self._answer_rows("decode", self._decode, z, v)
        assert x is not None
        return self._model.quantizer.places(x.astype(np.float64))

    def z_from_noise(self, noise: Optional, labels: Optional = None) -> Optional:
        """Returns z from noise of the prior, and from labels if the model has labels; None for a model without z."""
        if not self.config.has_latent:
            return None
        if noise is None:
            assert labels is not None
            noise = np.zeros((len(labels), self.config.latent_dim), np.float32)
        return self._run(lambda *inputs: [self._model.z_from_noise(*inputs)], noise, labels)[0]

    def score(
        self, images: np.ndarray, z_noise: Optional, u_noise: np.ndarray, labels: Optional = None
    ) -> dict[str, np.ndarray]:
        """Returns the scores of `OutlierScores` that the model has, by name, each `[n]`."""
        if z_noise is None:
            z_noise = np.zeros((len(images), self.config.latent_dim), np.float32)
        if self._unperturbed is not None:
            z_noise = self._perturb_noise(images, z_noise)
            # u is perturbed in units of bins, so that x changes as much as for perturbed images.
            u_noise = self._perturb(u_noise, self.config.n_bins / 2)

        def compute(images: Any, z_noise: Any, u_noise: Any, labels: Any) -> list[tf.Tensor]:
            elbo, latents = self._model.elbo_and_latents(images, z_noise, u_noise, labels=labels)
            scores = scores_of(self._model, elbo, latents)
            return [score for score in scores if score is not None]

        names = [name for name in OutlierScores._fields if name != "prior_nats" or self.config.has_encoder]
        return dict(zip(names, self._run(compute, images, z_noise, u_noise, labels), strict=True))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Returns log p(y|x) of each label y for uint8 images x, `[n, classes]`."""
        return self._run(lambda bins: [tf.math.log_softmax(self._model.log_joint(bins))], self._to_bins(images))[0]

    def to_pixels(self, bins: np.ndarray) -> np.ndarray:
        """Returns uint8 pixels of values in units of bins; values outside all bins get the nearest bin."""
        quantizer = self._model.quantizer
        bins = np.floor(np.nan_to_num(bins, nan=-1))
        return (np.clip(bins, 0, quantizer.n_bins - 1) * quantizer.step).astype(np.uint8)

    def _encode(self, images: np.ndarray, labels: Optional) -> list[Optional]:
        padded, shrunk = fit_images(self.config, tf.constant(images))
        bins, mean, log_variance = self._to_bins(padded), None, None
        if labels is not None:
            mean = self.z_from_noise(None, labels)
        flow, encoder, quantizer = self._model.flow, self._model.encoder, self._model.quantizer
        if encoder is not None:
            to_encode = bins if shrunk is padded else self._to_bins(shrunk)
            mean, log_variance = self._run(lambda part: encoder.infer(quantizer.edges(part)), to_encode)
        v = self._run(lambda part, z: flow.forward_and_log_det(quantizer.centres(part), z)[:1], bins, mean)[0]
        return [mean, log_variance, v]

    def _decode(self, z: Optional, v: np.ndarray) -> list[np.ndarray]:
        if self._unperturbed is not None:
            z, v = None if z is None else self._perturb(z), self._perturb(v)
        return self._run(lambda z, v: self._model.flow.inverse_and_log_det(v, z)[:1], z, v)

    def _to_bins(self, images: Any) -> np.ndarray:
        bins = np.asarray(self._model.quantizer.levels(images))
        return bins if self._unperturbed is None else self._perturb(bins, self.config.n_bins / 2)

    def _perturb(self, values: np.ndarray, scale: float | None = None) -> np.ndarray:
        """Returns values perturbed up or down at random, by `PERTURBATION` relative to themselves or to `scale`."""
        signs = self._rng.choice(np.array([-1.0, 1.0]), values.shape)
        return (values + PERTURBATION * signs * (values if scale is None else scale)).astype(np.float32)

    def _perturb_noise(self, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Returns noise that changes z as much as perturbed images change it.

        Perturbed noise alone hardly changes a z of small variance, which rounding of its mean does change.
        """
        assert self._unperturbed is not None
        perturbed = self._perturb(noise)
        if not self.config.has_encoder:
            return perturbed
        (mean, log_variance, _), (other_mean, other_log_variance, _) = (
            answers.encode(images) for answers in (self._unperturbed, self)
        )
        assert log_variance is not None and other_log_variance is not None
        return (other_mean + np.exp(other_log_variance / 2) * perturbed - mean) / np.exp(log_variance / 2)

    def _answer_rows(
        self, question: str, compute: Callable[..., Sequence[Optional]], *inputs: Optional
    ) -> list[Optional]:
        """Returns the results of `compute` for all rows of the inputs, of which equal rows are computed once."""
        given = [array for array in inputs if array is not None]
        keys = [
            hashlib.sha256(b"|".join([question.encode(), *(array[row].tobytes() for array in given)])).digest()
            for row in range(len(given[0]))
        ]
        unknown = list({key: row for row, key in enumerate(keys) if key not in self._known}.values())
        if unknown:
            results = compute(*(None if array is None else array[unknown] for array in inputs))
            for number, row in enumerate(unknown):
                self._known[keys[row]] = [None if result is None else result[number] for result in results]
        columns = zip(*(self._known[key] for key in keys), strict=True)
        return [None if column[0] is None else np.stack(column) for column in columns]

    def _run(self, function: Callable[..., Any], *arrays: Optional) -> list[np.ndarray]:
        """Returns the results of a function of the model for any number of images, computed in batches of one size."""
        given = [array for array in arrays if array is not None]
        length, pixels = len(given[0]), max(math.prod(array.shape[1:3]) for array in given if array.ndim in (2, 4))
        at_once = max(2, min(64, _PIXELS_AT_ONCE // pixels))
        parts = []
        for start in range(0, length, at_once):
            rows = np.minimum(np.arange(start, start + at_once), length - 1)
            results = function(*(None if array is None else tf.constant(array[rows]) for array in arrays))
            parts.append([np.asarray(value)[: length - start] for value in results])
        return [np.concatenate(values) for values in zip(*parts, strict=True)]
