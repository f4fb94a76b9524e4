"""The test vectors of an export: inputs for every endpoint, and the answers of the Keras model to them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from PIL import Image

from export import LOG
from export.endpoint_functions import EndpointFunctions
from export.endpoints import (
    GLOBAL_CODE,
    IMAGE,
    LABEL,
    LOCAL_CODE,
    TEMPERATURES,
    UNIFORM,
    Array,
    Arrays,
    Endpoint,
    list_endpoints,
)
from export.verification.comparison import PERTURBATION, Answer
from export.verification.verify import require_no_problems
from tfdecouple import randomness
from tfdecouple.config import DataConfig
from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape
from tfdecouple.data.batches import load_images
from tfdecouple.data.hard_images import make_hard_images
from tfdecouple.data.image_file import crop_and_resize
from tfdecouple.data.sources import open_source
from tfdecouple.errors import DataError, ExactnessWarning
from tfdecouple.model import DecoupledModel
from tfdecouple.model.codes import Codes
from tfdecouple.numerics.tf32 import full_float32

# Limits of the real images that are encoded and decoded: their count, and the pixels of all together.
_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS = 32, 32 * 32 * 32
# Sample photographs are cropped to at most this side in pixels, and the crops are enlarged for models of larger images.
_PHOTOGRAPH_SIDE = 64
# If a side has more pixels than this, one hard image of each type, such as noise, is tried: each takes a second.
_LARGE = 48
# The types of hard images that are encoded and decoded: {name in vectors and model card: kind in `make_hard_images`}.
_HARD = {
    "black and white": "black, white",
    "noise": "noise",
    "0/255 noise": "noise of 0 and 255",
    "checkerboard": "checkerboard, black and white",
}
# The count of times that the inputs of endpoints that return single numbers are perturbed.
_SCORE_PERTURBATIONS = 6
# The Keras model runs on batches of about this many pixels, all of one size, because TensorFlow traces each size anew.
_PIXELS_AT_ONCE = 16 * 32 * 32

MaybeArray = np.ndarray | None


def choose_batch_sizes(side: int) -> tuple[int, int, int]:
    """Returns the sizes of the three batches that verify a file; `side` is the longer side of the images in pixels.

    The Keras model computes its answers in batches of other sizes. So the comparison detects a file in which one image
    of a batch changes the answer to another image.
    """
    for most, largest in ((32, 17), (64, 8), (128, 4)):
        if side <= most:
            return (1, 3, largest)
    return (1, 2, 1)


@full_float32()
def make_test_vectors(model: DecoupledModel, images: np.ndarray, any_size: bool = False) -> Arrays:
    """Returns the test vectors of a model, {name: array} of inputs and the model's answers, for images of one size.

    `in/ENDPOINT/INPUT` are inputs, `out/ENDPOINT/OUTPUT/FIELD` the Keras model's answers (fields of `Answer`), and
    `batches` has the batch sizes. `images/TYPE` are quantised images to encode and decode, `labels/TYPE` their labels,
    if z is a function of the label. `kept/TYPE` has a bool for each image: whether the Keras model recovers the image
    exactly, from its codes and from codes changed by a relative 1e-6. If so, files must recover the image.

    `images` are real images, uint8 `[n, height, width, channels]`, n at least the sum of `choose_batch_sizes`.
    RefusedError is raised if the answer of an endpoint's function is not that of the model's own method.
    """
    rng, config = np.random.default_rng(0), model.config
    height, width = images.shape[1:3]
    sizes, most = choose_batch_sizes(max(height, width)), 1 if max(height, width) > _LARGE else 4
    plain, *perturbed = (KerasAnswers(model, seed) for seed in (None, *range(_SCORE_PERTURBATIONS)))
    vectors: Arrays = {"batches": np.array(sizes)}
    LOG.info("  images to encode and decode")
    hard = make_hard_images(images.shape[1:], most)
    for name, tried in {"real": images, **{name: hard[kind][:most] for name, kind in _HARD.items()}}.items():
        pixels = np.asarray(model.quantizer.quantize_pixels(tried))
        labels = np.arange(len(pixels), dtype=np.int32) % config.classes if config.has_label_codes else None
        z, v = plain.encode(pixels, labels)
        decoded = [answers.to_pixels(answers.decode(z, v))[:, :height, :width] for answers in (plain, perturbed[0])]
        vectors[f"images/{name}"] = pixels
        vectors[f"kept/{name}"] = np.all([(recovered == pixels).all((1, 2, 3)) for recovered in decoded], 0)
        if labels is not None:
            vectors[f"labels/{name}"] = labels
    images = images[: sum(sizes)]
    codes = _make_codes(plain, images, rng)
    for endpoint in list_endpoints(config, any_size):
        LOG.info("  %s", endpoint.name)
        inputs = {array.name: _make_input(array, endpoint, images, codes, rng) for array in endpoint.inputs}
        vectors |= {f"in/{endpoint.name}/{name}": array for name, array in inputs.items()}
        # A single number, such as a score, hardly changes in one image of five by chance; an array of numbers does not.
        count = 1 if any(output.shape for output in endpoint.outputs) else _SCORE_PERTURBATIONS
        right, *changed = (endpoint.answer(answers, inputs) for answers in (plain, *perturbed[:count]))
        answers: dict[str, Answer] = {}
        for output in endpoint.outputs:
            n_bins = model.quantizer.n_bins if output.dtype == "uint8" else 0
            value, *others = (np.asarray(outputs[output.name]) for outputs in (right, *changed))
            answers[output.name] = Answer.from_model(value, others, n_bins, output.scale)
            fields = vars(answers[output.name])
            vectors |= {f"out/{endpoint.name}/{output.name}/{field}": array for field, array in fields.items()}
        require_no_problems(_compare_with_methods(model, endpoint, inputs, answers))
    return vectors


def _compare_with_methods(
    model: DecoupledModel, endpoint: Endpoint, inputs: Arrays, answers: Mapping[str, Answer]
) -> Iterator[str]:
    """Yields a problem for each output whose `answers` differ from the model's own method for one of three images."""
    stable = np.flatnonzero(np.all([np.isfinite(answer.bound) for answer in answers.values()], 0))
    if not len(stable):
        return
    rows = stable[[0, len(stable) // 2, -1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExactnessWarning)
        reference = endpoint.reference(model, {"seed": rows, **{name: array[rows] for name, array in inputs.items()}})
    for name, answer in answers.items():
        chosen = Answer(answer.values[rows], answer.bound[rows], answer.n_bins)
        if problem := chosen.compare_file(np.asarray(reference[name]))[1]:
            yield f"endpoint {endpoint.name} differs from the model's own method: {name}: {problem}"


def _make_input(
    array: Array, endpoint: Endpoint, images: np.ndarray, codes: Mapping[str, MaybeArray], rng: np.random.Generator
) -> np.ndarray:
    """Returns the test values of an input of `endpoint`, specified by `array`, with a row for each image."""
    count = len(images)
    if array.holds in (IMAGE, LABEL):
        # Images of b are those of a shifted by half the batch. If the batch is even, each pair of images occurs in both
        # orders. Labels are shifted by one, so that they differ within a pair.
        alike = [other.name for other in endpoint.inputs if other.holds == array.holds]
        values, shift = (images, count // 2) if array.holds == IMAGE else (draw_values(array, rng, count), 1)
        return np.roll(values, shift * alike.index(array.name), 0)
    if (code := codes.get(str(array.holds))) is not None:
        return code
    if array.name in ("z_noise", "v_noise"):
        # The method `sample` of the model draws this noise for a seed that is the number of the row.
        seeds = (randomness.derive_seed(row, array.name[0]) for row in range(count))
        return np.stack([tf.random.stateless_normal(array.shape, seed) for seed in seeds])
    return draw_values(array, rng, count)


def _make_codes(answers: KerasAnswers, images: np.ndarray, rng: np.random.Generator) -> dict[str, MaybeArray]:
    """Returns z and v, by `Array.holds`: codes of images in the first half of the rows, then codes of samples.

    Codes of images decode to the middle of a bin, so that an error below half a bin changes no pixel. Values decoded
    from codes of samples lie anywhere in a bin, so that small errors change pixels.
    """
    config, count = answers.config, len(images)
    labels = np.arange(count, dtype=np.int32) % config.classes if config.has_labels else None
    z, v = answers.encode(images, labels if config.has_label_codes else None)
    z_noise = rng.standard_normal((count, config.latent_dim), np.float32) if config.has_encoder else None
    temperatures = np.linspace(*TEMPERATURES, count)[:, None, None, None]
    sampled_v = temperatures * rng.standard_normal(v.shape)
    sampled_z = answers.z_from_noise(z_noise, labels)
    is_sample = np.arange(count) >= count // 2
    mixed_z = None if z is None else np.where(is_sample[:, None], sampled_z, z)
    return {GLOBAL_CODE: mixed_z, LOCAL_CODE: np.where(is_sample[:, None, None, None], sampled_v, v).astype(np.float32)}


def draw_values(array: Array, rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns `count` test values of an input, `[count, *array.shape]`: noise, labels, or evenly spaced scalars."""
    if not isinstance(array.holds, str):
        first, last = array.holds
        return np.linspace(first, last, count, dtype=np.float32)
    if array.holds == LABEL:
        lowest, end = array.labels
        return (lowest + np.arange(count) % (end - lowest)).astype(np.int32)
    if array.holds == UNIFORM:
        return rng.random((count, *array.shape), np.float32)
    return rng.standard_normal((count, *array.shape), np.float32)


def make_picture(image_shape: ImageShape, centre_crop: int) -> Arrays:
    """Returns a picture of waves, uint8 `[height, width, channels]`, and `fitted`, cropped and resized as in training.

    `centre_crop` is the side in pixels of the centre that is cropped; 0 for the largest.
    """
    side, channels = 2 * max(*image_shape, centre_crop), image_shape[-1]
    y, x, channel = np.ogrid[: side + 3, : side + 40, :channels]
    picture = np.abs((5 * x + 3 * y + 85 * channel) % 510 - 255).astype(np.uint8)
    return {"picture": picture, "fitted": crop_and_resize(picture, image_shape, centre_crop)}


def load_real_images(data: DataConfig, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Returns test images, uint8 `[n, *shape]`, of the run's data, and a description of their source.

    If the run's data cannot be read, the images come from the sample photographs; DataError if neither can be read.
    """
    height, width, channels = shape
    longer = max(height, width)
    needed = sum(choose_batch_sizes(longer))
    count = max(needed, min(_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS // (height * width)))
    side = min(longer, _PHOTOGRAPH_SIDE)
    rows, columns = (-(-length * side // longer) for length in (height, width))
    photograph_shape = rows, columns, 1 if channels == 1 else RGB_CHANNELS
    for options, source_shape in ((data, shape), (DataConfig(source="photographs"), photograph_shape)):
        try:
            source = open_source(options, source_shape)
            # Some files of a large folder may be unreadable, so `at_most` accepts fewer images.
            images, _ = load_images(source, "test", min(count, source.sizes["test"]), at_most=True)
        except (DataError, OSError):
            continue
        available = len(images)
        if source_shape[:2] != (height, width):
            pictures = images if source_shape[-1] == RGB_CHANNELS else images[..., 0]
            images = np.stack([np.asarray(Image.fromarray(picture).resize((width, height))) for picture in pictures])
        # A model may have more channels than a photograph; then the channels of the photograph repeat.
        images = images.reshape(available, height, width, -1)[..., np.arange(channels) % source_shape[-1]]
        # The images of a small test split repeat, because the batches must be full.
        return np.resize(images, (max(available, needed), *shape)), f"{available} test images of {source.title}"
    raise DataError("neither the data of this run nor the sample photographs can be read")


class KerasAnswers(EndpointFunctions):
    """The Keras model as the reference of the verification: computes NumPy arrays for `Endpoint.answer`.

    With a `seed`, this object answers slightly changed inputs: each value is changed at random, up or down, by a
    relative 1e-6, a pixel by this fraction of its range.
    """

    def __init__(self, model: DecoupledModel, seed: int | None = None):
        super().__init__(model)
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._codes: dict[bytes, Codes] = {}

    def encode(self, images: np.ndarray, labels: MaybeArray = None) -> Codes:
        """Returns the Keras model's codes of uint8 images; several endpoints encode the same ones, once in all."""
        key = images.tobytes() + (b"" if labels is None else labels.tobytes())
        if key not in self._codes:
            self._codes[key] = super().encode(images, labels)
        return self._codes[key]

    def decode(self, z: MaybeArray, v: np.ndarray) -> np.ndarray:
        """Returns the images that the Keras model decodes, float64, in units of bins: k to k + 1 lies in bin k."""
        z, v = None if z is None else self._perturb(z), self._perturb(v)
        return self._quantizer.scale_to_bins(self._invert_flow(z, v)[0].astype(np.float64))

    def to_pixels(self, bins: np.ndarray) -> np.ndarray:
        """Converts values in units of bins to uint8 pixels; a value outside the bins gets the nearest bin's pixel."""
        bins = np.floor(np.nan_to_num(bins, nan=-1))
        return (np.clip(bins, 0, self._quantizer.n_bins - 1) * self._quantizer.pixels_per_bin).astype(np.uint8)

    def _find_bins(self, images: tf.Tensor) -> np.ndarray:
        return self._perturb(np.asarray(super()._find_bins(images)), self._quantizer.n_bins / 2)

    def _perturb(self, values: np.ndarray, scale: float | None = None) -> np.ndarray:
        if self._rng is None:
            return values
        signs = self._rng.choice(np.array([-1.0, 1.0]), values.shape)
        return (values + PERTURBATION * signs * (values if scale is None else scale)).astype(np.float32)

    def _run(self, function: Callable, *arrays: tf.Tensor) -> list[np.ndarray]:
        given = [None if array is None else np.asarray(array) for array in arrays]
        inputs = [array for array in given if array is not None]
        length, pixels = len(inputs[0]), max(math.prod(array.shape[1:3]) for array in inputs)
        at_once = max(2, min(64, _PIXELS_AT_ONCE // pixels))
        parts = []
        for start in range(0, length, at_once):
            rows = np.minimum(np.arange(start, start + at_once), length - 1)
            results = function(*(None if array is None else tf.constant(array[rows]) for array in given))
            parts.append([np.asarray(value)[: length - start] for value in results])
        return [np.concatenate(values) for values in zip(*parts, strict=True)]
