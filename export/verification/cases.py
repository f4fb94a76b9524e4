"""The inputs that are tried, and what the Keras model answers to them, for every endpoint that is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from export.endpoints import GLOBAL_CODE, IMAGE, LABEL, LOCAL_CODE, Array, Arrays, Endpoint, endpoints
from export.verification.archive import batches
from export.verification.gate import RefusedError
from export.verification.reference import KerasReference
from tfdecouple.config import Config, DataConfig
from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.data import load_images, open_source
from tfdecouple.errors import DataError
from tfdecouple.model import DecoupledModel
from tfdecouple.runtime.precision import full_float32

# Real images for the round trip, those of parity among them; fewer of larger ones.
_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS = 32, 32 * 32 * 32
# Crops of the embedded photographs can be had up to this size; larger ones are enlarged.
_PHOTOGRAPH_SIDE = 64
# Beyond this side an image takes a second and more: then there is one extreme image of each kind.
_LARGE = 48


@full_float32()
def make_cases(
    model: DecoupledModel, images: np.ndarray, seed: int = 0, tell: Callable[[str], Any] = lambda text: None
) -> Arrays:
    """Returns inputs and answers, by names that say what they are.

    `in/CASE/INPUT` and `out/CASE/OUTPUT/...` (the fields of `tolerance.Answer`) are compared. `real` and `extreme/KIND`
    are the images of the round trip, with their levels as the model has them. `given_back/KIND` says which of them the
    model itself gives back, `kept/KIND` which of these it gives back also where its codes are moved: those the files
    must keep. `labels/KIND` are the labels that they are encoded with, where z is a function of the label.

    Args:
        model: the model that is exported.
        images: real images, uint8 `[n, height, width, channels]`, at least as many as `batches` takes.
        seed: of the noise.
        tell: is told how far this is.

    Raises:
        RefusedError: for an endpoint whose outputs are not all answered by the model.
    """
    rng = np.random.default_rng(seed)
    side = max(model.config.image_shape[:2])
    sizes, offered = batches(side), endpoints(model.config)
    kinds = {"real": images, **extreme_images(model.config.image_shape, rng, 1 if side > _LARGE else 4)}
    parity = images[: sum(sizes)]
    answers = KerasReference(model, parity, rng)
    tell("  images that come back")
    cases: Arrays = {"batches": np.array(sizes)}
    # All images at once: what the endpoints ask of some of them is known then.
    back, kept = answers.kept(np.concatenate(list(kinds.values())))
    start = 0
    for kind, array in kinds.items():
        name = kind if kind == "real" else f"extreme/{kind}"
        cases[name] = np.asarray(model.quantize_images(array))
        cases[f"given_back/{kind}"] = back[start : start + len(array)]
        cases[f"kept/{kind}"] = kept[start : start + len(array)]
        if model.config.has_class_codes:
            # As `kept` took them: in turn, over the images of all kinds.
            cases[f"labels/{kind}"] = (start + np.arange(len(array), dtype=np.int32)) % model.config.classes
        start += len(array)
    drawn: Arrays = {}
    for endpoint in offered:
        tell(f"  {endpoint.name}")
        given = {one.name: _input(one, endpoint, answers, drawn, rng) for one in endpoint.inputs}
        for case, inputs in endpoint.cases(endpoint.name, answers, given).items():
            cases |= {f"in/{case}/{one.name}": inputs[one.name] for one in endpoint.inputs}
            outputs = endpoint.answer(answers, inputs)
            if lacking := [one.name for one in endpoint.outputs if one.name not in outputs]:
                raise RefusedError(
                    f"not published: endpoint {endpoint.name} cannot be compared: its answer lacks "
                    f"{', '.join(lacking)} (export/endpoints.py)"
                )
            for one in endpoint.outputs:
                for part, value in vars(outputs[one.name]).items():
                    cases[f"out/{case}/{one.name}/{part}"] = value
    return cases


def _input(
    array: Array, endpoint: Endpoint, answers: KerasReference, drawn: Arrays, rng: np.random.Generator
) -> np.ndarray:
    """An input for all images of parity; one of the same name is the same for all endpoints.

    Of two images the second is the one half of all further on: where their number is even, both ways to switch them
    are asked for once.
    """
    half = len(answers.images) // 2
    if array.holds == IMAGE:
        others = [one.name for one in endpoint.inputs if one.holds == IMAGE]
        return np.roll(answers.images, half * others.index(array.name), 0)
    if array.holds == LABEL:
        others = [one.name for one in endpoint.inputs if one.holds == LABEL]
        return np.roll(array.drawn(rng, len(answers.images)), half * others.index(array.name), 0)
    if array.holds in (GLOBAL_CODE, LOCAL_CODE):
        z, v = answers.codes(answers.images)[0]
        return v if array.holds == LOCAL_CODE or z is None else z
    if array.name not in drawn:
        drawn[array.name] = array.drawn(rng, len(answers.images))
    return drawn[array.name]


def extreme_images(shape: tuple[int, int, int], rng: np.random.Generator, most: int = 4) -> Mapping[str, np.ndarray]:
    """Returns images that no camera takes, uint8 `[n, height, width, channels]` of each kind, so many at most."""
    height, width, channels = shape
    board = np.indices((height, width)).sum(0)[:, :, None] % 2 * np.ones(channels, int) * 255
    return {
        "black": np.zeros((1, *shape), np.uint8),
        "white": np.full((1, *shape), 255, np.uint8),
        "noise": rng.integers(0, 256, (most, *shape), dtype=np.uint8),
        "0/255 noise": (rng.integers(0, 2, (most, *shape)) * 255).astype(np.uint8),
        "checkerboard": np.stack([board, 255 - board])[:most].astype(np.uint8),
    }


def real_images(config: Config) -> tuple[np.ndarray, str]:
    """Returns images that the run did not train on, and where they come from.

    They are of the run's own test split; where its data are not at hand, of the photographs that come with the
    installation.

    Raises:
        DataError: where neither can be read.
    """
    shape = height, width, channels = config.model.image_shape
    longer = max(height, width)
    needed = sum(batches(longer))
    count = max(needed, min(_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS // (height * width)))
    photographs, side = DataConfig(source="photographs"), min(longer, _PHOTOGRAPH_SIDE)
    rows, columns = (-(-one * side // longer) for one in (height, width))
    for data, taken in ((config.data, shape), (photographs, (rows, columns, 1 if channels == 1 else RGB_CHANNELS))):
        try:
            source = open_source(data, taken)
            # Of a large folder, whose unreadable images are left out, there may be fewer than its size says.
            images, _ = load_images(source, "test", min(count, source.sizes["test"]), at_most=True)
            available = len(images)
        except (DataError, OSError):
            continue
        if taken[:2] != (height, width):
            pictures = images if taken[-1] == RGB_CHANNELS else images[..., 0]
            images = np.stack([np.asarray(Image.fromarray(one).resize((width, height))) for one in pictures])
        # Of more channels than photographs have, these take turns.
        images = images.reshape(len(images), height, width, -1)[..., np.arange(channels) % taken[-1]]
        # A small test split is used again and again: parity needs its batches whole.
        wanted = max(available, needed)
        return np.resize(images, (wanted, *images.shape[1:])), f"{available} test images of {source.title}"
    raise DataError("neither the data of this run nor the embedded photographs can be read")
