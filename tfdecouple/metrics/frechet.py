"""The Frechet distance between the features of samples and of test images (paper section 3.1, Tables 2 and 3).

The paper reports FID: this distance by one particular network, the Inception of 2015-12-05. Distances by other
extractors, and by conversions of that one which resize differently, cannot be compared with the paper's, so a distance
is called by its extractor's file. docs/understanding.md says how the network of FID becomes such a file.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.config.shapes import RGB_CHANNELS, Shape
from tfdecouple.errors import ConfigError, DataError, ExtractorError, UntrustedError, UserError, one_line
from tfdecouple.metrics.base import Metric, Result, say
from tfdecouple.metrics.drawn_images import drawn_indices, subset_batches
from tfdecouple.runtime.process import at_least
from tfdecouple.runtime.progress import Lines
from tfdecouple.storage.files import file_sha256

if TYPE_CHECKING:
    import tensorflow as tf

    from tfdecouple.data import Source
    from tfdecouple.model import DecoupledModel


class FrechetDistance(Metric):
    """The distance of samples, and that of training images, the floor."""

    name = "frechet"
    on_split = False

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --frechet, --trust, --frechet-images and --temperature."""
        group.add_argument(
            "--frechet",
            metavar="EXTRACTOR",
            help="also the Frechet distance by the features of a network, an ONNX or Keras file",
        )
        group.add_argument(
            "--trust",
            action="store_true",
            help="the extractor may be a Keras file (.keras), which can run code: only where you know where it comes "
            "from",
        )
        group.add_argument(
            "--frechet-images",
            type=int,
            default=10_000,
            metavar="N",
            help="samples, and test images to compare them with, for the Frechet distance (default 10000)",
        )
        group.add_argument(
            "--temperature", type=float, default=1.0, metavar="T", help="of samples' local code v (default 1)"
        )

    def check(self) -> None:
        """Refuses numbers out of range, a missing file, and a Keras file without --trust.

        Raises:
            ConfigError: naming the option.
        """
        options = self.options
        at_least(options, "frechet_images", 2)
        if not (math.isfinite(options.temperature) and options.temperature >= 0):
            raise ConfigError(f"--temperature is {options.temperature}; it must be a number, at least 0")
        if options.frechet is not None and not pathlib.Path(options.frechet).exists():
            raise ConfigError(f"--frechet: there is no file {options.frechet}; give the file of a feature extractor")
        if str(options.frechet).endswith(".keras") and not options.trust:
            raise ConfigError(
                f"--frechet {options.frechet}: a Keras file can run code; give --trust where you know where it comes "
                "from, or take an ONNX file"
            )

    def measure(self, evaluation: Any) -> Result:
        """Measures the distances."""
        options, source = self.options, evaluation.source
        report = frechet_report(
            evaluation.opened.model,
            source,
            pathlib.Path(options.frechet),
            count=options.frechet_images,
            trust=options.trust,
            reference=min(options.frechet_images, source.sizes["test"]),
            temperature=options.temperature,
            seed=options.seed,
            batch_size=evaluation.batch_size,
            say=say,
        )
        return Result(report, summary(report, source.title))


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
    import scipy.linalg

    product = _square_root(covariance_a) @ _square_root(covariance_b)
    overlap = scipy.linalg.svdvals(product).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap
    return max(float(distance), 0.0)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """Returns the symmetric square root of a symmetric positive semi-definite matrix."""
    import scipy.linalg

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
        Plain values for JSON: `name`, "Frechet distance (FILE NAME)"; `distance` and `floor`, in squared units of the
        features; `samples`, `test_images` and `floor_images`, how many of each; `features`, their number;
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
    for line in warnings:
        say(f"warning: {line}")
    distance, floor = (
        frechet_distance(moments.mean, moments.covariance, of_test.mean, of_test.covariance)
        for moments in (of_samples, of_train)
    )
    return {
        "name": f"Frechet distance ({network.file_name})",
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
        f"The extractor's sha256 is {report['extractor']['sha256']}.",
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
        import tensorflow as tf

        from tfdecouple import randomness

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


class Extractor:
    """An opened feature extractor; `open_extractor` makes one.

    Attributes:
        file_name: of the file, without its folder.
        sha256: of the file's bytes, hexadecimal. Weights that an ONNX file keeps in a second file are not covered.

    Args:
        path: of the file.
        run: computes features of uint8 `[n, height, width, 3]`.
        sha256: as the attribute.
    """

    def __init__(self, path: pathlib.Path, run: Callable[[np.ndarray], Any], sha256: str):
        self.file_name = path.name
        self.sha256 = sha256
        self._run = run

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the features of images.

        Args:
            images: uint8 `[n, height, width, 3]`, or of one channel, which is repeated.

        Returns:
            float `[n, features]`.

        Raises:
            ExtractorError: where the extractor fails, or gives features of another rank or that are not finite.
        """
        from tfdecouple.runtime.precision import full_float32

        if images.shape[-1] == 1:
            images = np.repeat(images, RGB_CHANNELS, -1)
        try:
            with full_float32():
                features = np.asarray(self._run(images))
        # Whatever a runtime raises; images that are too small for a network are the usual cause.
        except Exception as error:
            raise ExtractorError(
                f"the extractor {self.file_name} fails on images of shape {images.shape}: {one_line(error)}"
            ) from error
        if features.ndim != 2 or len(features) != len(images):
            raise ExtractorError(
                f"the extractor {self.file_name} gave features of shape {features.shape} for {len(images)} images; "
                "they must be [images, features]"
            )
        if not np.isfinite(features).all():
            raise ExtractorError(f"the extractor {self.file_name} gave features that are not finite; use another")
        return features


def open_extractor(path: pathlib.Path, image_shape: Shape, trust: bool = False) -> Extractor:
    """Opens a feature extractor: a file named `.keras`, or else an ONNX file.

    It must have one input, uint8 images `[n, height, width, 3]`, and one output `[n, features]`. Images go in as they
    are: an extractor that needs another size resizes them itself, so that its file says how.

    Args:
        path: of the file. Code in a Keras file (Lambda layers) is not run as far as Keras knows.
        image_shape: height, width and channels of the images.
        trust: whether to open a Keras file, which may run code all the same.

    Raises:
        UntrustedError: for a Keras file without `trust`.
        ExtractorError: where the file is missing, unreadable or of another input or output.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ExtractorError(f"there is no extractor file {path}; name an ONNX (.onnx) or Keras (.keras) file")
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise ExtractorError(f"{path} cannot be read: {error.strerror or error}") from error
    height, width, channels = image_shape
    if channels not in (1, RGB_CHANNELS):
        raise ExtractorError(
            f"the images have {channels} channels, and the extractor {path.name} takes 3; only grey images and "
            "those of three channels can be compared by it"
        )
    if path.suffix == ".keras" and not trust:
        raise UntrustedError(
            f"{path} is a Keras file, which can run code where Keras does not notice; give --trust where you know "
            "where it comes from, or name an ONNX file"
        )
    return Extractor(path, (_open_keras if path.suffix == ".keras" else _open_onnx)(path, (height, width)), sha256)


def _open_onnx(path: pathlib.Path, sides: tuple[int, int]) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its own messages would come between ours; errors are raised anyway.
    options.log_severity_level = 4
    # ONNX Runtime rounds products to TF32 on its own account.
    wanted = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    available = onnxruntime.get_available_providers()
    providers = [(name, options) for name, options in wanted.items() if name in available]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    # Its exceptions have no common class of their own.
    except Exception as error:
        raise ExtractorError(
            f"{path} cannot be opened as ONNX: {one_line(error)}; name an ONNX (.onnx) or Keras (.keras) file"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    _require_one(path, len(inputs), len(outputs))
    dtype = inputs[0].type.removeprefix("tensor(").removesuffix(")")
    _check(path, dtype, list(inputs[0].shape), list(outputs[0].shape), sides)
    name = inputs[0].name
    return lambda images: session.run(None, {name: images})[0]


def _open_keras(path: pathlib.Path, sides: tuple[int, int]) -> Callable[[np.ndarray], Any]:
    import keras

    try:
        model = keras.saving.load_model(path, compile=False)
    # Zip, JSON, unknown classes, unsafe code: Keras raises what it likes.
    except Exception as error:
        raise ExtractorError(f"{path} cannot be opened as a Keras model: {one_line(error)}") from error
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    _require_one(path, len(inputs), len(outputs))
    _check(
        path,
        keras.backend.standardize_dtype(inputs[0].dtype),
        list(inputs[0].shape),
        list(outputs[0].shape),
        sides,
    )
    return model.predict_on_batch


def _require_one(path: pathlib.Path, inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (1, 1):
        raise ExtractorError(
            f"the extractor {path.name} has {inputs} inputs and {outputs} outputs; it needs one of each, "
            "uint8 images [n, height, width, 3] and features [n, features]"
        )


def _check(path: pathlib.Path, dtype: str, input_shape: list, output_shape: list, sides: tuple[int, int]) -> None:
    """Compares what a file declares, whose sizes are whole numbers where they are fixed, with what is needed."""
    if dtype != "uint8":
        raise ExtractorError(
            f"the extractor {path.name} takes {dtype} images; it must take uint8 with values 0..255 "
            "and scale them itself"
        )
    needed = (None, *sides, RGB_CHANNELS)
    fits = len(input_shape) == 4 and all(
        not isinstance(size, int) or size == wanted for size, wanted in zip(input_shape, needed, strict=True)
    )
    if not fits:
        raise ExtractorError(
            f"the extractor {path.name} takes images of shape {_shown(input_shape)}; these are "
            f"[n, {sides[0]}, {sides[1]}, {RGB_CHANNELS}] with any n, so it must take them and resize them itself"
        )
    if len(output_shape) != 2:
        raise ExtractorError(
            f"the extractor {path.name} gives features of shape {_shown(output_shape)}; they must be [n, features]"
        )


def _shown(shape: list) -> str:
    return "[" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + "]"
