"""The Frechet distance between the features of samples and of test images (paper section 3.1, Tables 2 and 3).

The paper reports FID: this distance by one particular extractor, the Inception network of 2015-12-05. Only a distance
by that network is called FID here, and only the checksum of a file makes it that network, whatever the file is named
(see `inception`); any other is called by its extractor's file. Distances by other extractors, and by conversions that
resize differently, cannot be compared with the paper's.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import scipy.linalg
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.data.source import Source
from tfdecouple.errors import DataError, UserError
from tfdecouple.metrics.drawn_images import drawn_indices, subset_batches
from tfdecouple.metrics.extractors import Extractor, open_extractor
from tfdecouple.model import DecoupledModel
from tfdecouple.runtime.progress import Lines

# How many samples FID is taken of by convention.
FID_SAMPLES = 50_000


class Moments:
    """Mean and covariance of vectors that come in batches, in float64.

    Batches are merged exactly (Chan, Golub and LeVeque 1983): the result does not depend on how they are cut or on
    their order beyond rounding, and no difference of large sums is taken.

    Attributes:
        count: number of vectors so far.
        mean: float64 `[features]`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, vectors: np.ndarray) -> None:
        """Adds vectors, `[n, features]`, all batches with as many features."""
        number = len(vectors)
        if not number:
            return
        vectors = vectors.astype(np.float64)
        mean = vectors.mean(0)
        centred = vectors - mean
        if not self.count:
            self.mean, self._scatter = np.zeros_like(mean), np.zeros((len(mean), len(mean)))
        change = mean - self.mean
        total = self.count + number
        self._scatter += centred.T @ centred + np.outer(change, change) * (self.count * number / total)
        self.mean = self.mean + change * (number / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, float64 `[features, features]`, of at least two vectors."""
        return self._scatter / (self.count - 1)


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Returns the squared 2-Wasserstein distance between two Gaussians, which FID is for Inception features.

    It is |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A^(1/2) B A^(1/2))^(1/2)). The last trace is the sum of the singular
    values of A^(1/2) B^(1/2): the square roots of the eigenvalues of A^(1/2) B A^(1/2), without squaring them first,
    which would lose half the digits of the small ones. Singular covariances are no special case.

    Args:
        mean_a: float64 `[features]`.
        covariance_a: float64 `[features, features]`, symmetric and positive semi-definite.
        mean_b: as `mean_a`.
        covariance_b: as `covariance_a`.

    Returns:
        A number that is at least 0.
    """
    product = _square_root(covariance_a) @ _square_root(covariance_b)
    overlap = scipy.linalg.svdvals(product).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap
    return max(float(distance), 0.0)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """Returns the symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = scipy.linalg.eigh(matrix)
    # What rounding left of the zeros of a singular matrix; its root would be far larger.
    noise = len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return (vectors * np.sqrt(np.where(values > noise, values, 0))) @ vectors.T


def frechet_report(
    model: DecoupledModel,
    source: Source,
    extractor: pathlib.Path,
    *,
    count: int,
    reference: int,
    temperature: float,
    seed: int,
    batch_size: int,
    say: Callable[[str], None],
    trust: bool = False,
) -> dict[str, Any]:
    """Measures the Frechet distance between samples of a model and test images, and its floor.

    The floor is the distance between as many training images and the same test images: what a perfect model would
    reach, since with finitely many images the distance of equal distributions is above 0, the more so the fewer they
    are. All images are compared as the model sees them, which below 8 bits is with fewer levels.

    Args:
        model: the model, with weights.
        source: an opened data set with images of the model's size.
        extractor: the file of a network, see `open_extractor`.
        count: number of samples, and of training images for the floor (all of these, where there are fewer).
        reference: number of test images.
        temperature: of v, as for `DecoupledModel.sample`.
        seed: of the samples and of the draw of images.
        batch_size: images at once. No result depends on it beyond rounding.
        say: called with lines of progress.
        trust: whether the extractor may be a Keras file, see `open_extractor`.

    Returns:
        Plain values for JSON: `name`, "FID" where the extractor is the network of FID by its checksum, and
        "Frechet distance (FILE NAME)" for any other; `is_fid`, which of the two; `distance` and `floor`, in squared
        units of the features; `samples`, `test_images` and `floor_images`, how many of each; `features`, their number;
        `extractor`, a dict of `file` and `sha256`; `temperature`; `seed`; `warnings`, lines.

    Raises:
        ExtractorError: where the extractor cannot be used.
        UntrustedError: for a Keras file without `trust`.
        DataError: for more test images than there are, or a number below 2.
        UserError: for a temperature that is no number from 0 on.
        NotInitializedError: for a model without weights.
        InversionError: where a sample is not finite.
    """
    model.require_initialized()
    for name, value in (("samples", count), ("test images", reference)):
        if value < 2:
            raise DataError(f"the number of {name} is {value}; a covariance needs at least 2")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"the temperature is {temperature}; it must be a number, at least 0")
    network = open_extractor(extractor, model.config.image_shape, trust)
    floor_count = min(count, source.split("train").size)
    drawn = Drawn(model, source, seed, batch_size, say)
    if model.config.image_shape[-1] == 1:
        say("grey images go to the extractor as three equal channels")
    say(f"features of {reference:,} test images")
    of_test = moments_of(network, drawn.images("test", reference))
    say(f"features of {floor_count:,} training images")
    of_train = moments_of(network, drawn.images("train", floor_count))
    say(f"features of {count:,} samples at temperature {temperature:g}")
    of_samples = moments_of(network, drawn.samples(count, temperature))

    width = len(of_test.mean)
    name = "FID" if network.is_fid else f"Frechet distance ({network.file_name})"
    warnings = [
        f"{moments.count:,} {what} are no more than the {width:,} features: their covariance is singular and the "
        "distance far too large; take more"
        for what, moments in (("samples", of_samples), ("test images", of_test), ("training images", of_train))
        if moments.count <= width
    ]
    if floor_count < count:
        warnings.append(
            f"the floor is of {floor_count:,} training images, all there are, fewer than the {count:,} samples: "
            "it is too high beside the distance"
        )
    if network.is_fid and of_samples.count < FID_SAMPLES:
        warnings.append(
            f"FID is by convention of {FID_SAMPLES:,} samples; that of {of_samples.count:,} is higher, "
            "and comparable only with one of as many"
        )
    for line in warnings:
        say(f"warning: {line}")
    distance, floor = (
        frechet_distance(moments.mean, moments.covariance, of_test.mean, of_test.covariance)
        for moments in (of_samples, of_train)
    )
    return {
        "name": name,
        "is_fid": network.is_fid,
        "distance": distance,
        "floor": floor,
        "samples": of_samples.count,
        "test_images": of_test.count,
        "floor_images": of_train.count,
        "features": width,
        "extractor": {"file": network.file_name, "sha256": network.sha256},
        "temperature": temperature,
        "seed": seed,
        "warnings": warnings,
    }


def summary(report: dict[str, Any], title: str) -> list[str]:
    """Returns the lines that say what `frechet_report` returned.

    Args:
        report: that it returned.
        title: of the data set.
    """
    name = report["name"]
    return [
        f"{name}, {report['features']:,} features, to {report['test_images']:,} test images of {title}:",
        f"  {report['samples']:,} samples at temperature {report['temperature']:g}: {report['distance']:.4g}",
        f"  {report['floor_images']:,} training images (the floor): {report['floor']:.4g}",
        f"The extractor's sha256 is {report['extractor']['sha256']}. "
        + (
            "It is the Inception network of 2015-12-05."
            if report["is_fid"]
            else "This is not FID, which is by another extractor."
        ),
        *(f"Warning: {line}" for line in report["warnings"]),
    ]


def moments_of(extractor: Extractor, batches: Iterable[np.ndarray]) -> Moments:
    """Returns mean and covariance of the features of images, uint8 `[n, height, width, channels]`, batch by batch."""
    moments = Moments()
    for images in batches:
        moments.add(extractor(images))
    return moments


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Images to compare, in batches, uint8 `[batch, height, width, channels]`: of a data set, and samples of a model.

    Attributes:
        model: with weights.
        source: an opened data set with images of the model's size.
        seed: of the samples and of the draw of images.
        batch_size: images at once; none depends on it.
        say: called with lines of progress.
    """

    model: DecoupledModel
    source: Source
    seed: int
    batch_size: int
    say: Callable[[str], None]

    def images(self, split: str, count: int) -> Iterator[np.ndarray]:
        """Yields drawn images of a split, as the model sees them."""
        indices = drawn_indices(self.source, split, count, self.seed)
        for batch in subset_batches(self.source, split, indices, batch_size=self.batch_size, say=self.say):
            yield self.model.quantize_images(batch["image"]).numpy()

    def samples(self, count: int, temperature: float) -> Iterator[np.ndarray]:
        """Yields samples at a temperature of v; number k depends on the seed and k alone."""
        model, size = self.model, self.batch_size
        config = model.config
        own_seed = randomness.fold(self.seed, "frechet")

        def draw(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own = randomness.fold(own_seed, number)
            return (
                randomness.normal([config.latent_dim], randomness.fold(own, "z")),
                randomness.normal(config.image_shape, randomness.fold(own, "v")),
            )

        @tf.function(autograph=False)
        def noise(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.map_fn(draw, numbers, fn_output_signature=(tf.float32, tf.float32))

        progress = Lines(self.say, count, "samples")
        for start in range(0, count, size):
            # Batches of one size, or TensorFlow would trace everything once more for the last.
            z_noise, v_noise = noise(tf.range(start, start + size))
            labels = None
            if config.has_classes:
                labels = model.drawn_labels(start, start + size, randomness.fold(own_seed, "labels"))
            z = model.z_from_noise(z_noise, labels) if config.has_latent else None
            done = min(start + size, count)
            yield model.decode(z, temperature * v_noise).numpy()[: done - start]
            progress.advance(done - start)
