"""The inputs that the gate tries, and what the Keras model answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from export.endpoints import endpoints
from export.gate.arrays import BATCHES, DRAWN, group
from tfdecouple.config import Config, DataConfig
from tfdecouple.data import load_images, open_source
from tfdecouple.errors import DataError
from tfdecouple.model import DecoupledModel

# Real images for the round trip beside those of parity, at 32 x 32; fewer of larger ones.
_ROUND_TRIP_PIXELS = 64 * 32 * 32
# Crops of the embedded photographs can be had up to this size; larger ones are enlarged.
_PHOTOGRAPH_SIDE = 64


def make_cases(model: DecoupledModel, images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns the arrays of the gate, by names that say what they are.

    `in/ENDPOINT/INPUT` and `out/ENDPOINT/OUTPUT` belong to the parity of each endpoint; `real` and `extreme/KIND` are
    the images of the round trip, with their levels as the model has them.

    Args:
        model: the model that is exported.
        images: real images, uint8 `[n, height, width, 3]`, at least the sum of `BATCHES`.
        seed: of the noise.
    """
    config = model.config
    count = sum(BATCHES)
    a, b = images[:count], np.roll(images[:count], 1, 0)
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((count, *shape)).astype(np.float32)

    z_noise, v_noise = normal(config.latent_dim), normal(*config.image_shape)
    u_noise = rng.random((count, *config.image_shape), np.float32)
    temperature = np.linspace(0.1, 1.0, count, dtype=np.float32)
    alpha, beta = np.linspace(0, 1, count, dtype=np.float32), np.linspace(1, 0, count, dtype=np.float32)
    codes = model.encode(a)
    z: Any = None if codes.z is None else np.asarray(codes.z)
    v = np.asarray(codes.v)
    known = {
        "images": a,
        "images_a": a,
        "images_b": b,
        "z": z,
        "v": v,
        "z_noise": z_noise,
        "v_noise": v_noise,
        "u_noise": u_noise,
        "temperature": temperature,
        "alpha": alpha,
        "beta": beta,
    }
    answers: dict[str, dict[str, object]] = {"encode": {"z": z, "v": v}, "decode": {"images": model.decode(z, v)}}
    scaled = temperature[:, None, None, None] * v_noise
    drawn = model.z_from_noise(z_noise) if config.has_latent else None
    answers["sample"] = {"images": model.decode(drawn, scaled)}
    answers["score"] = {"bits_per_dim": model.elbo_from_noise(a, z_noise, u_noise).bits_per_dim}
    if config.has_latent:
        posterior = model.posterior(a)
        answers["encode_global"] = {
            "z_mean": posterior.mean(),
            "z_log_variance": 2 * np.log(np.asarray(posterior.stddev())),
        }
        z_b, v_b = np.roll(z, 1, 0), np.roll(v, 1, 0)
        answers["switch"] = {"images_ab": model.decode(z, v_b), "images_ba": model.decode(z_b, v)}
        mixed_z = (1 - alpha)[:, None] * z + alpha[:, None] * z_b
        mixed_v = (1 - beta)[:, None, None, None] * v + beta[:, None, None, None] * v_b
        answers["interpolate"] = {"images": model.decode(mixed_z, mixed_v)}
    cases: dict[str, np.ndarray] = {}
    for endpoint in endpoints(config):
        for array in endpoint.inputs:
            cases[f"in/{endpoint.name}/{array.name}"] = known[array.name]
        for array in endpoint.outputs:
            cases[f"out/{endpoint.name}/{array.name}"] = np.asarray(answers[endpoint.name][array.name])
    cases |= {f"in/{DRAWN}/v": scaled, f"out/{DRAWN}/images": np.asarray(answers["sample"]["images"])}
    if drawn is not None:
        cases[f"in/{DRAWN}/z"] = np.asarray(drawn)
    cases["real"] = images
    cases |= {f"extreme/{kind}": extreme for kind, extreme in extreme_images(config.image_shape, rng).items()}
    return {
        name: np.asarray(model.quantize_images(array)) if name.startswith(("real", "extreme/")) else array
        for name, array in cases.items()
    }


def extreme_images(shape: tuple[int, int, int], rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Returns images that no camera takes, uint8 `[n, height, width, 3]` of each kind."""
    height, width, _ = shape
    board = np.indices((height, width)).sum(0)[:, :, None] % 2 * np.ones(3, int) * 255
    return {
        "black": np.zeros((1, *shape), np.uint8),
        "white": np.full((1, *shape), 255, np.uint8),
        "noise": rng.integers(0, 256, (4, *shape), dtype=np.uint8),
        "0/255 noise": (rng.integers(0, 2, (4, *shape)) * 255).astype(np.uint8),
        "checkerboard": np.stack([board, 255 - board]).astype(np.uint8),
    }


def keeps_extreme_images(model: DecoupledModel, cases: Mapping[str, np.ndarray]) -> bool:
    """Returns whether the model itself gives all extreme images of the gate back."""
    images = np.concatenate(list(group(cases, "extreme/").values()))
    return bool(np.array_equal(model.decode(*model.encode(images)), images))


def real_images(config: Config) -> tuple[np.ndarray, str]:
    """Returns images that the run did not train on, and where they come from.

    They are of the run's own test split; where its data are not at hand, of the photographs that come with the
    installation.
    """
    size = config.model.image_size
    count = max(sum(BATCHES), _ROUND_TRIP_PIXELS // size**2)
    photographs = DataConfig(source="photographs")
    for data, side in ((config.data, size), (photographs, min(size, _PHOTOGRAPH_SIDE))):
        try:
            source = open_source(data, side)
            available = min(count, source.sizes["test"])
            images, _ = load_images(source, "test", available)
        except (DataError, OSError):
            continue
        if side != size:
            images = np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in images])
        # A small test split is used again and again: parity needs its batches whole.
        wanted = max(available, sum(BATCHES))
        return np.resize(images, (wanted, *images.shape[1:])), f"{available} test images of {source.title}"
    raise DataError("neither the data of this run nor the embedded photographs can be read")
