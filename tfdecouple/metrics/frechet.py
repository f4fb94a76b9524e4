"""The metric of the Frechet distance between samples and images of a data set, in the features of a network."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape
from tfdecouple.errors import DataError, UserError, one_line
from tfdecouple.metrics.metric import Evaluation, Metric, Option, Result
from tfdecouple.storage.files import hash_file
from tfdecouple.system.progress import Counter

if TYPE_CHECKING:
    from tfdecouple.config import Config
    from tfdecouple.model import DecoupledModel

# Type of a function from uint8 images `[n, height, width, channels]` to their features, float `[n, features]`.
Extractor = Callable[[np.ndarray], np.ndarray]


class FrechetDistance(Metric):
    """The metric of the Frechet distance between samples of a model and images of --frechet-split, with its floor.

    For the Inception network of 2015-12-05 it is the paper's FID (section 3.1, Tables 2 and 3). The floor is the
    distance between training images and the same images, or test images if --frechet-split has training images. It is
    above 0, because two finite sets of images differ even if both come from one distribution. All images are quantised
    to the model's number of bits.
    """

    name = "frechet"
    added_options = {
        "frechet": Option(
            str | None, None, "also the Frechet distance of samples by the features of a network, an ONNX file"
        ),
        "frechet_images": Option(int, 10_000, "samples of --frechet, and images to compare them with", least=2),
        "frechet_split": Option(
            Literal["train", "validation", "test", "train+validation"],
            "test",
            "images of --frechet; train+validation are all that training may use",
        ),
        "temperature": Option(float, 1.0, "temperature of v of the samples of --frechet"),
    }

    @property
    def split(self) -> str:
        return str(self.options.frechet_split)

    def prepare_inputs(self, config: Config) -> None:
        self._extractor = open_feature_extractor(self.options.frechet, config.model.image_shape)

    def compute(self, evaluation: Evaluation) -> Result:
        """Returns the Frechet distance of samples and its floor, in squared units of features, and warnings."""
        from tfdecouple.data.batches import read_chosen_batches

        options, model, source = self.options, evaluation.opened.model, evaluation.source
        samples, split = options.frechet_images, self.split
        floor_split = "test" if "train" in split else "train"

        def draw_images(names: str) -> Iterator[np.ndarray]:
            # Images of several splits are drawn as if the splits were one.
            splits, end = names.split("+"), 0
            total = sum(source.open_split(part).size for part in splits)
            drawn = np.random.default_rng(options.seed).permutation(total)[:samples]
            if len(drawn) < 2:
                raise DataError(f"the number of {names} images is {len(drawn)}; a covariance needs at least 2")
            for part in splits:
                start, end = end, end + source.sizes[part]
                indices = drawn[(start <= drawn) & (drawn < end)] - start
                for batch in read_chosen_batches(source, part, indices, batch_size=evaluation.batch_size):
                    yield model.quantizer.quantize_pixels(batch["image"]).numpy()

        compared = {
            f"{split} images": draw_images(split),
            f"{floor_split} images": draw_images(floor_split),
            "samples": draw_model_samples(model, samples, options.temperature, options.seed),
        }
        moments = {name: compute_feature_moments(self._extractor, batches) for name, batches in compared.items()}
        of_images, of_floor, of_samples = moments.values()
        features = len(of_images.mean)
        warnings = []
        for name, moment in moments.items():
            if moment.images <= features:
                reason = "their covariance is singular and the distance far too large; take more images"
                warnings.append(f"{moment.images:,} {name} are no more than the {features:,} features: {reason}")
            if moment.images < samples:
                reason = f"are fewer than the {samples:,} samples: a distance is larger than with as many"
                warnings.append(f"{moment.images:,} {name}, all of the data set, {reason}")
        path = pathlib.Path(options.frechet)
        values = {
            "name": f"Frechet distance ({path.name})",
            "distance": compute_frechet_distance(of_samples, of_images),
            "floor": compute_frechet_distance(of_floor, of_images),
            "samples": samples,
            "images": of_images.images,
            "floor_split": floor_split,
            "floor_images": of_floor.images,
            "features": features,
            # An ONNX file may keep its weights in a second file, which this digest does not cover.
            "extractor": {"file": path.name, "sha256": hash_file(path)},
            "temperature": options.temperature,
            "seed": options.seed,
            "warnings": warnings,
        }
        lines = [
            f"{values['name']}, {features:,} features, to {of_images.images:,} {split} images of {source.title}:",
            f"  {samples:,} samples at temperature {options.temperature:g}: {values['distance']:.4g}",
            f"  {of_floor.images:,} {floor_split} images (the floor): {values['floor']:.4g}",
            *(f"Warning: {line}" for line in warnings),
        ]
        return Result(values, lines)


class Moments(NamedTuple):
    """The count of images, and the mean `[features]` and covariance `[features, features]` of the images' features."""

    images: int
    mean: np.ndarray
    covariance: np.ndarray


def compute_feature_moments(extractor: Extractor, batches: Iterable[np.ndarray]) -> Moments:
    """Returns mean and covariance, in float64, of the features that `extractor` computes for images in batches."""
    features = np.concatenate([extractor(images) for images in batches]).astype(np.float64)
    return Moments(len(features), features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def compute_frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the squared 2-Wasserstein distance between the Gaussians with the moments `a` and `b`, at least 0.

    The result is |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A^(1/2) B A^(1/2))^(1/2)) for means m and covariances A and B,
    which may be singular. The last trace is computed as the sum of the singular values of A^(1/2) B^(1/2). The roots of
    the eigenvalues of A^(1/2) B A^(1/2) would be less precise: small roots would have half as many exact digits.
    """
    import scipy.linalg

    def square_root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = scipy.linalg.eigh(matrix)
        # Eigenvalues no larger than rounding errors count as 0, because a square root would enlarge the errors.
        noise = len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
        return (vectors * np.sqrt(np.where(values > noise, values, 0))) @ vectors.T

    overlap = scipy.linalg.svdvals(square_root(a.covariance) @ square_root(b.covariance)).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(float(np.square(a.mean - b.mean).sum() + traces - 2 * overlap), 0.0)


def draw_model_samples(model: DecoupledModel, count: int, temperature: float, seed: int) -> Iterator[np.ndarray]:
    """Yields uint8 batches of `count` samples; sample k depends only on k, `seed`, `temperature` and the model."""
    from tfdecouple import randomness
    from tfdecouple.model.codes import CHUNK

    with Counter("sampling", count, unit="samples") as counter:
        for start in range(0, count, CHUNK):
            # The last batch is cut, because a draw of another size would make TensorFlow trace the model again.
            samples = model.sample(CHUNK, temperature, randomness.derive_seed(seed, "frechet", start)).numpy()
            done = min(start + CHUNK, count)
            yield samples[: done - start]
            counter(done)


def open_feature_extractor(path: pathlib.Path | str, image_shape: ImageShape) -> Extractor:
    """Opens an ONNX file; returns a function from uint8 images to features, float `[n, features]`.

    The network gets images with the height and width of `image_shape`, and must resize them if it needs another size.
    Grey images are repeated to three channels. The network is tried on two images. UserError is raised if the file is
    missing or its network does not fit, and by the returned function for features that are not finite.
    """
    import onnxruntime

    path, options = pathlib.Path(path), onnxruntime.SessionOptions()
    if not path.is_file():
        raise UserError(f"there is no extractor file {path}; name an ONNX (.onnx) file")
    if image_shape[-1] not in (1, RGB_CHANNELS):
        raise UserError(f"the images have {image_shape[-1]} channels; --frechet needs grey images or three channels")
    # Level 4 logs fatal errors only. All other errors need no log, because ONNX Runtime raises them as exceptions.
    options.log_severity_level = 4
    # By default ONNX Runtime would compute products on a GPU in TF32, which is less precise than float32.
    providers = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    available = [pair for pair in providers.items() if pair[0] in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=available)
        name = session.get_inputs()[0].name
    # Every exception is caught, because ONNX Runtime raises many exception classes for broken files.
    except Exception as error:
        raise UserError(f"{path} cannot be opened as ONNX: {one_line(error)}; name another file") from error

    def extract(images: np.ndarray) -> np.ndarray:
        if images.shape[-1] == 1:
            images = np.repeat(images, RGB_CHANNELS, -1)
        try:
            (output,) = session.run(None, {name: images})
        # Every exception is caught, because ONNX Runtime has several classes for inputs that do not fit.
        except Exception as error:
            shown = f"fails on images of shape {images.shape}: {one_line(error)}"
            needs = f"one input, uint8 images [n, height, width, {RGB_CHANNELS}] of any n and of these images' size"
            raise UserError(f"the extractor {path.name} {shown}; it needs {needs}, and one output, features") from error
        features = np.asarray(output)
        if features.shape[:-1] != (len(images),) or not np.isfinite(features).all():
            shown = f"of shape {features.shape} for {len(images)} images"
            raise UserError(f"the extractor {path.name} gave features {shown}; they must be finite [images, features]")
        return features

    extract(np.resize(np.arange(256, dtype=np.uint8), (2, *image_shape)))
    return extract
