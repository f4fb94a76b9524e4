"""The test vectors of an export: inputs for every endpoint, and the answers of the Keras model to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from export.endpoints import GLOBAL_CODE, IMAGE, LABEL, LOCAL_CODE, Array, Arrays, Endpoint, endpoints, find_endpoint
from export.verification.comparison import RefusedError
from export.verification.keras_answers import KerasAnswers
from export.verification.tolerance import Answer
from tfdecouple.config import DataConfig
from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.data import load_images, open_source
from tfdecouple.errors import DataError
from tfdecouple.model import DecoupledModel
from tfdecouple.runtime.precision import full_float32

# Largest numbers of real images, and of their pixels, that are encoded and decoded.
_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS = 32, 32 * 32 * 32
# Largest side of crops of the sample photographs, in pixels; for larger models they are enlarged.
_PHOTOGRAPH_SIDE = 64
# Side in pixels above which one extreme image of each kind is tried, because an image takes a second or more.
_LARGE = 48


def choose_batch_sizes(side: int) -> tuple[int, int, int]:
    """Returns the three batch sizes for calls of endpoints, for images whose longer side has `side` pixels.

    The model computes its answers in other batches, so that the comparison shows if images in a batch interact.
    """
    for most, largest in ((32, 17), (64, 8), (128, 4)):
        if side <= most:
            return (1, 3, largest)
    return (1, 2, 1)


def choose_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Returns the heights and widths at which files for images of any size are verified; the model's come first."""
    return [(height, width), (height + 1, width * 2 // 3), (height * 3 // 2 - 3, width * 2 + 5)]


@full_float32()
def make_vectors(
    model: DecoupledModel,
    images: np.ndarray,
    report: Callable[[str], Any] = lambda text: None,
    any_size: bool = False,
) -> Arrays:
    """Returns the test vectors of a model for images of one size, arrays by name.

    Inputs are `in/ENDPOINT/INPUT`, right outputs are `out/ENDPOINT/OUTPUT/FIELD` (the fields of `tolerance.Answer`),
    and `batches` has the batch sizes. `real` and `extreme/KIND` are quantised images to encode and decode. `kept/KIND`
    says for each image whether the model itself recovers it, from its codes and from perturbed codes; if so, files must
    recover it. `labels/KIND` has the labels of the images, if z is a function of the label.

    `images` are real images, uint8 `[n, height, width, channels]`, at least the sum of `choose_batch_sizes`. `any_size`
    says whether the endpoints are those for images of any height and width.

    Raises:
        RefusedError: if the model's answer lacks an output of an endpoint.
    """
    rng, config = np.random.default_rng(0), model.config
    side = max(images.shape[1:3])
    sizes = choose_batch_sizes(side)
    plain = KerasAnswers(model)
    perturbed = KerasAnswers(model, plain)
    vectors: Arrays = {"batches": np.array(sizes)}
    report("  images to encode and decode")
    kinds = {"real": images, **make_extreme_images(images.shape[1:], rng, 1 if side > _LARGE else 4)}
    every = np.asarray(model.quantizer.quantize(np.concatenate([*kinds.values()])))
    labels = np.arange(len(every), dtype=np.int32) % config.classes if config.has_class_codes else None
    z, _, v = plain.encode(every, labels)
    height, width = every.shape[1:3]
    decoded = (answers.to_pixels(answers.decode(z, v)) for answers in (plain, perturbed))
    same = [one[:, :height, :width] == every for one in decoded]
    kept = np.all(same, 0).reshape(len(every), -1).all(1)
    start = 0
    for kind, array in kinds.items():
        rows = slice(start, start + len(array))
        start += len(array)
        vectors[kind if kind == "real" else f"extreme/{kind}"], vectors[f"kept/{kind}"] = every[rows], kept[rows]
        if labels is not None:
            vectors[f"labels/{kind}"] = labels[rows]
    inputs = _Inputs(plain, images[: sum(sizes)], rng)
    for endpoint in endpoints(config, any_size):
        report(f"  {endpoint.name}")
        given = {array.name: inputs.make(array, endpoint) for array in endpoint.inputs}
        vectors |= {f"in/{endpoint.name}/{name}": array for name, array in given.items()}
        right, other = (endpoint.answer(answers, given) for answers in (plain, perturbed))
        if lacking := [one.name for one in endpoint.outputs if one.name not in right]:
            raise RefusedError(
                f"not published: endpoint {endpoint.name} cannot be compared: its answer lacks {', '.join(lacking)} "
                "(export/endpoints.py)"
            )
        for one in endpoint.outputs:
            both = right[one.name], other[one.name]
            is_image = one.dtype == "uint8"
            answer = Answer.from_bins(*both, config.n_bins) if is_image else Answer.from_floats(*both, one.scale)
            vectors |= {f"out/{endpoint.name}/{one.name}/{field}": part for field, part in vars(answer).items()}
    return vectors


class _Inputs:
    """A generator of inputs for endpoints; all endpoints share the inputs of a name."""

    def __init__(self, answers: KerasAnswers, images: np.ndarray, rng: np.random.Generator):
        self._answers, self._images, self._rng = answers, images, rng
        self._made: Arrays = {}

    def make(self, array: Array, endpoint: Endpoint) -> np.ndarray:
        """Returns the values of one input, `array`, of an endpoint, for all images."""
        if array.holds in (IMAGE, LABEL):
            # The second images are the first images shifted by half their number. If the number is even, each pair
            # occurs in both orders, so that the Keras model computes its answers only once.
            alike = [one.name for one in endpoint.inputs if one.holds == array.holds]
            whole = self._images if array.holds == IMAGE else array.draw(self._rng, len(self._images))
            return np.roll(whole, len(whole) // 2 * alike.index(array.name), 0)
        if array.name not in self._made:
            codes = array.holds in (GLOBAL_CODE, LOCAL_CODE)
            self._made |= self._codes() if codes else {array.name: array.draw(self._rng, len(self._images))}
        return self._made[array.name]

    def _codes(self) -> Arrays:
        """Returns "z" and "v": codes of images in the first half, and codes of samples in the second half.

        Codes of images decode to the middle of a bin, which hides errors below half a bin; codes of samples show them.
        """
        sample = find_endpoint(self._answers.config, "sample")
        given = {array.name: self.make(array, sample) for array in sample.inputs if array.name != "v_noise"}
        encoding = self._answers.encode(self._images, given.get("labels"))
        noise = self._rng.standard_normal(encoding.v.shape, np.float32)
        codes = {
            "z": self._answers.z_from_noise(given.get("z_noise"), given.get("labels")),
            "v": given["temperature"][:, None, None, None] * noise,
        }
        half = len(self._images) // 2
        mixed = {}
        for name, of_samples in codes.items():
            if of_samples is not None:
                mixed[name] = np.concatenate([getattr(encoding, name)[:half], of_samples[half:]])
        return mixed


def make_extreme_images(
    shape: tuple[int, int, int], rng: np.random.Generator, most: int = 4
) -> Mapping[str, np.ndarray]:
    """Returns artificial extreme images by kind, uint8 `[n, height, width, channels]` with n at most `most`."""
    height, width, channels = shape
    board = np.indices((height, width)).sum(0)[:, :, None] % 2 * np.ones(channels, int) * 255
    return {
        "black": np.zeros((1, *shape), np.uint8),
        "white": np.full((1, *shape), 255, np.uint8),
        "noise": rng.integers(0, 256, (most, *shape), dtype=np.uint8),
        "0/255 noise": (rng.integers(0, 2, (most, *shape)) * 255).astype(np.uint8),
        "checkerboard": np.stack([board, 255 - board])[:most].astype(np.uint8),
    }


def load_real_images(data: DataConfig, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Returns images that the run was not trained on, and a description of their source.

    They are test images of the run's data, or of the sample photographs if the run's data cannot be read.

    Raises:
        DataError: if neither source can be read.
    """
    height, width, channels = shape
    longer = max(height, width)
    needed = sum(choose_batch_sizes(longer))
    count = max(needed, min(_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS // (height * width)))
    side = min(longer, _PHOTOGRAPH_SIDE)
    rows, columns = (-(-one * side // longer) for one in (height, width))
    of_photographs = rows, columns, 1 if channels == 1 else RGB_CHANNELS
    for options, taken in ((data, shape), (DataConfig(source="photographs"), of_photographs)):
        try:
            source = open_source(options, taken)
            # A large folder may have fewer readable images than files, so `at_most` accepts fewer images.
            images, _ = load_images(source, "test", min(count, source.sizes["test"]), at_most=True)
        except (DataError, OSError):
            continue
        available = len(images)
        if taken[:2] != (height, width):
            pictures = images if taken[-1] == RGB_CHANNELS else images[..., 0]
            images = np.stack([np.asarray(Image.fromarray(one).resize((width, height))) for one in pictures])
        # If the model has more channels than a photograph, the channels of the photograph repeat.
        images = images.reshape(available, height, width, -1)[..., np.arange(channels) % taken[-1]]
        # The images of a small test split repeat, because the batches must be full.
        return np.resize(images, (max(available, needed), *shape)), f"{available} test images of {source.title}"
    raise DataError("neither the data of this run nor the sample photographs can be read")
