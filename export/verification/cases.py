"""The inputs that the gate tries, what the Keras model answers to them, and how stable it is on each.

Of every answer the model is asked once, and once or twice more with its inputs moved by `judge.PERTURBATION`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from export.deployed.folding import fold
from export.signatures import endpoints
from export.verification.arrays import DRAWN, batches
from export.verification.judge import PERTURBATION, Answer, Floats, Pixels
from export.verification.run import RefusedError
from export.verification.weights import digests
from tfdecouple.config import Config, DataConfig
from tfdecouple.data import load_images, open_source
from tfdecouple.errors import DataError
from tfdecouple.model import DecoupledModel
from tfdecouple.runtime.progress import Lines
from tfdecouple.runtime.tf32 import full_float32

# Real images for the round trip, those of parity among them; fewer of larger ones.
_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS = 64, 64 * 32 * 32
# Crops of the embedded photographs can be had up to this size; larger ones are enlarged.
_PHOTOGRAPH_SIDE = 64
# Beyond this side an image takes a second and more: then the model is asked for one reaction, and for one image
# of each kind of noise.
_LARGE = 48
# Pixels that the model takes at once: always the same number of images, since each number is a graph of its own.
_PIXELS_AT_ONCE = 16 * 32 * 32
# How far from the border of a level, in bounds of the image, codes are made whose rounding shows smallest errors.
_MARGIN = 3.0

Arrays = dict[str, np.ndarray]
Codes = tuple[np.ndarray | None, np.ndarray]


def make_cases(
    model: DecoupledModel, images: np.ndarray, seed: int = 0, tell: Callable[[str], Any] = lambda text: None
) -> Arrays:
    """Returns the arrays of the gate, by names that say what they are.

    `in/CASE/INPUT` and `out/CASE/OUTPUT/...` (see `judge.restored`) belong to the parity of each endpoint; `real` and
    `extreme/KIND` are the images of the round trip, with their levels as the model has them, and `kept/KIND` says
    which of them the model itself gives back, whether or not its codes are moved.

    Args:
        model: the model that is exported.
        images: real images, uint8 `[n, height, width, 3]`, at least as many as `batches` takes.
        seed: of the noise.
        tell: is told from time to time how far this is.

    Raises:
        RefusedError: for an endpoint to which there is no answer here.
    """
    known, answers = _Asking(model, images, seed, tell).everything()
    cases: Arrays = {"batches": np.array(batches(model.config.image_size))}
    for endpoint in endpoints(model.config):
        lacking = [one.name for one in endpoint.inputs if one.name not in known]
        lacking += [one.name for one in endpoint.outputs if one.name not in answers.get(endpoint.name, {})]
        if lacking:
            raise RefusedError(
                f"not published: endpoint {endpoint.name} cannot be compared: the gate knows no {', '.join(lacking)} "
                "of the model (export/verification/cases.py)"
            )
    for case, outputs in answers.items():
        name = "decode" if case == DRAWN else case
        endpoint = next(one for one in endpoints(model.config) if one.name == name)
        for array in endpoint.inputs:
            cases[f"in/{case}/{array.name}"] = known[
                f"{case}/{array.name}" if f"{case}/{array.name}" in known else array.name
            ]
        for array in endpoint.outputs:
            for part, value in outputs[array.name].arrays().items():
                cases[f"out/{case}/{array.name}/{part}"] = value
    return cases | {name: value for name, value in known.items() if name.startswith(("real", "extreme/", "kept/"))}


def weight_digests(model: DecoupledModel, layouts: Sequence[str]) -> Arrays:
    """Returns `weights/LAYOUT` of the cases: the digests of all folded weights, in each order of axes."""
    return {f"weights/{layout}": digests(fold(model, layout).arrays) for layout in layouts}


class _Asking:
    """One round of questions to a model."""

    def __init__(self, model: DecoupledModel, images: np.ndarray, seed: int, tell: Callable[[str], Any]):
        model.require_initialized()
        self.model, self.config = model, model.config
        self.rng = np.random.default_rng(seed)
        self.count = sum(batches(self.config.image_size))
        large = self.config.image_size > _LARGE
        self.reactions = 1 if large else 2
        self.kinds = {"real": images, **extreme_images(self.config.image_shape, self.rng, 1 if large else 4)}
        self.at_once = max(2, min(64, _PIXELS_AT_ONCE // self.config.image_size**2))
        every = sum(map(len, self.kinds.values()))
        answers = 1 + self.reactions
        passes = every + self.count // 2 + answers * (every + 3 * self.count) + self.reactions * self.count
        self.progress = Lines(tell, passes + (3 * answers * self.count if self.config.has_latent else 0))

    # --- the model's parts ---

    def run(self, function: Callable[..., Any], *arrays: np.ndarray | None, counts: bool = True) -> list[np.ndarray]:
        """Runs a part of the model on many images, some at once; returns its results as arrays."""
        length = len(next(array for array in arrays if array is not None))
        parts = []
        for start in range(0, length, self.at_once):
            place = np.minimum(np.arange(start, start + self.at_once), length - 1)
            made = function(*(None if array is None else tf.constant(array[place]) for array in arrays))
            parts.append([np.asarray(value)[: length - start] for value in made])
            if counts:
                self.progress.advance(min(self.at_once, length - start))
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def posterior(self, levels: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mean and log-variance of z; None without z."""
        encoder = self.model.encoder
        if encoder is None:
            return None, None
        mean, log_variance = self.run(
            lambda part: encoder.infer(part * (2 / self.config.n_bins) - 1), levels, counts=False
        )
        return mean, log_variance

    def local_codes(self, levels: np.ndarray, z: np.ndarray | None) -> np.ndarray:
        """The v of the given values of pixels, whole levels lying at k + 0.5."""
        scale = 2 / self.config.n_bins
        return self.run(lambda y, z: self.model.flow.forward_and_log_det(y * scale - 1, z)[:1], levels, z)[0]

    def decoded(self, z: np.ndarray | None, v: np.ndarray) -> np.ndarray:
        """The values of pixels behind the model's answer to codes, float64, level k from k to k + 1."""
        x = self.run(lambda z, v: self.model.flow.inverse_and_log_det(v, z)[:1], z, v)[0]
        return (x.astype(np.float64) + 1) * (self.config.n_bins / 2)

    def pixels(self, z: np.ndarray | None, v: np.ndarray) -> tuple[Pixels, list[np.ndarray]]:
        """The model's answer to codes, and the values of pixels behind it and behind the answers to moved codes."""
        values = [self.decoded(z, v)]
        for _ in range(self.reactions):
            values.append(self.decoded(None if z is None else self.moved(z), self.moved(v)))
        return Pixels.measured(values[0], values[1:], self.config.n_bins), values

    def moved(self, values: np.ndarray, scale: float | None = None) -> np.ndarray:
        """Values moved up or down by a share of themselves, or of `scale`."""
        signs = self.rng.choice(np.array([-1.0, 1.0]), values.shape)
        change = PERTURBATION * signs * (values if scale is None else scale)
        return (values + change).astype(np.float32)

    # --- the questions ---

    @full_float32()
    def everything(self) -> tuple[Arrays, dict[str, dict[str, Answer]]]:
        """Returns inputs by their names, and the answers of each case by the names of outputs."""
        config, count = self.config, self.count
        images = {kind: np.asarray(self.model.quantize_images(array)) for kind, array in self.kinds.items()}
        a = self.kinds["real"][:count]
        known: Arrays = {"images": a, "images_a": a, "images_b": np.roll(a, 1, 0)}
        known |= {kind if kind == "real" else f"extreme/{kind}": array for kind, array in images.items()}
        levels = np.asarray(self.model.levels_of(tf.constant(np.concatenate(list(self.kinds.values())))))
        z, log_variance = self.posterior(levels)
        v = self.local_codes(levels + np.float32(0.5), z)
        answers = {"encode": self.encode(levels[:count], z, log_variance, v)}
        if config.has_latent:
            answers["encode_global"] = {
                "z_mean": answers["encode"]["z"],
                "z_log_variance": answers["encode"].pop("z_log_variance"),
            }
        answer, values = self.pixels(z, v)
        start = 0
        for kind, array in images.items():
            part = slice(start, start + len(array))
            known[f"kept/{kind}"] = np.all([self.same(other[part], array) for other in values], 0)
            start = part.stop
        z, v = None if z is None else z[:count], v[:count]
        known |= {"v": v, **({} if z is None else {"z": z})}
        answers["decode"] = {"images": _first(answer, count)}
        answers |= self.noise(known, levels[:count], z, answer.bound)
        if z is not None:
            answers |= self.mixtures(known, z, v)
        return known, answers

    def encode(
        self, levels: np.ndarray, z: np.ndarray | None, log_variance: np.ndarray | None, v: np.ndarray
    ) -> dict[str, Answer]:
        """Codes of images, of which more than these levels may have been encoded."""
        others: dict[str, list[np.ndarray]] = {"z": [], "z_log_variance": [], "v": []}
        for _ in range(self.reactions):
            near = self.moved(levels, self.config.n_bins / 2)
            mean, other = self.posterior(near)
            if mean is not None and other is not None:
                others["z"].append(mean)
                others["z_log_variance"].append(other)
            others["v"].append(self.local_codes(near + np.float32(0.5), mean))
        codes: dict[str, np.ndarray | None] = {"z": z, "z_log_variance": log_variance, "v": v}
        return {
            name: Floats.measured(right[: len(levels)], others[name])
            for name, right in codes.items()
            if right is not None
        }

    def noise(
        self, known: Arrays, levels: np.ndarray, z: np.ndarray | None, bound: np.ndarray
    ) -> dict[str, dict[str, Answer]]:
        """What begins with noise, or with codes that are no images'."""
        config, count = self.config, self.count
        temperature = np.linspace(0.1, 1.0, count, dtype=np.float32)
        scale = temperature[:, None, None, None]
        z_noise, v_noise = self.normal(config.latent_dim), self.normal(*config.image_shape)
        u_noise = self.rng.random((count, *config.image_shape), np.float32)
        known |= {"u_noise": u_noise, "temperature": temperature}
        answers: dict[str, dict[str, Answer]] = {
            "score": {"bits_per_dim": self.score(known["images"], z_noise, u_noise)}
        }
        if z is not None:
            known["score/z_noise"] = z_noise
        # Half of the noise is such that every pixel comes to lie near the border of its level: as near as float32
        # allows, so that the rounding of each shows an error of a thousandth of a level.
        half = count // 2
        z_border = None if z is None else z[:half]
        v_border = self.local_codes(self.at_borders(levels[:half], bound[:half]), z_border)
        v_noise[:half] = v_border / scale[:half]
        drawn = None
        if z is not None:
            if z_border is not None:
                z_noise = z_noise.copy()
                z_noise[:half] = self.prior_noise(z_border)
            drawn = self.from_prior(z_noise)
            known |= {"z_noise": z_noise, f"{DRAWN}/z": np.concatenate([z[:half], drawn[half:]])}
        known |= {"v_noise": v_noise, f"{DRAWN}/v": np.concatenate([v_border, (scale * v_noise)[half:]])}
        answers["sample"] = {"images": self.pixels(drawn, scale * v_noise)[0]}
        answers[DRAWN] = {"images": self.pixels(known.get(f"{DRAWN}/z"), known[f"{DRAWN}/v"])[0]}
        return answers

    def at_borders(self, levels: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """Values within the given levels, each next to one of the two borders of its level."""
        margin = np.minimum(_MARGIN * bound, 0.25).reshape(-1, 1, 1, 1)
        low = self.rng.integers(0, 2, levels.shape).astype(bool)
        return (levels + np.where(low, margin, 1 - margin)).astype(np.float32)

    def score(self, images: np.ndarray, z_noise: np.ndarray, u_noise: np.ndarray) -> Floats:
        """Bits per dimension, with the noise given and with noise that is moved."""

        def bits(z_noise: np.ndarray, u_noise: np.ndarray) -> np.ndarray:
            return self.run(
                lambda *inputs: [self.model.elbo_from_noise(*inputs).bits_per_dim], images, z_noise, u_noise
            )[0]

        right = bits(z_noise, u_noise)
        return Floats.measured(right, [bits(self.moved(z_noise), self.moved(u_noise)) for _ in range(self.reactions)])

    def mixtures(self, known: Arrays, z: np.ndarray, v: np.ndarray) -> dict[str, dict[str, Answer]]:
        """What mixes the codes of two images: b is the image before a."""
        count = self.count
        alpha, beta = np.linspace(0, 1, count, dtype=np.float32), np.linspace(1, 0, count, dtype=np.float32)
        known |= {"alpha": alpha, "beta": beta}
        z_b, v_b = np.roll(z, 1, 0), np.roll(v, 1, 0)
        mixed_z = (1 - alpha)[:, None] * z + alpha[:, None] * z_b
        mixed_v = (1 - beta)[:, None, None, None] * v + beta[:, None, None, None] * v_b
        return {
            "switch": {"images_ab": self.pixels(z, v_b)[0], "images_ba": self.pixels(z_b, v)[0]},
            "interpolate": {"images": self.pixels(mixed_z, mixed_v)[0]},
        }

    def from_prior(self, noise: np.ndarray) -> np.ndarray:
        """The z of the prior's noise."""
        return self.run(lambda part: [self.model.z_from_noise(part)], noise, counts=False)[0]

    def prior_noise(self, z: np.ndarray) -> np.ndarray:
        """The prior's noise of z."""
        flow = self.model.prior_flow
        return z if flow is None else self.run(lambda part: flow.forward_and_log_det(part)[:1], z, counts=False)[0]

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal noise for every image of parity."""
        return self.rng.standard_normal((self.count, *shape)).astype(np.float32)

    def same(self, values: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Which images the values of pixels are."""
        n_bins = self.config.n_bins
        levels = np.clip(np.floor(np.nan_to_num(values, nan=-1)), 0, n_bins - 1)
        return (levels * (256 // n_bins) == images).reshape(len(images), -1).all(1)


def _first(answer: Pixels, count: int) -> Pixels:
    return Pixels(answer.right[:count], answer.bound[:count], answer.near[:count], answer.moved[:count], answer.step)


def extreme_images(shape: tuple[int, int, int], rng: np.random.Generator, noises: int = 4) -> Mapping[str, np.ndarray]:
    """Returns images that no camera takes, uint8 `[n, height, width, 3]` of each kind."""
    height, width, _ = shape
    board = np.indices((height, width)).sum(0)[:, :, None] % 2 * np.ones(3, int) * 255
    return {
        "black": np.zeros((1, *shape), np.uint8),
        "white": np.full((1, *shape), 255, np.uint8),
        "noise": rng.integers(0, 256, (noises, *shape), dtype=np.uint8),
        "0/255 noise": (rng.integers(0, 2, (noises, *shape)) * 255).astype(np.uint8),
        "checkerboard": np.stack([board, 255 - board]).astype(np.uint8),
    }


def real_images(config: Config) -> tuple[np.ndarray, str]:
    """Returns images that the run did not train on, and where they come from.

    They are of the run's own test split; where its data are not at hand, of the photographs that come with the
    installation.
    """
    size = config.model.image_size
    needed = sum(batches(size))
    count = max(needed, min(_ROUND_TRIP_IMAGES, _ROUND_TRIP_PIXELS // size**2))
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
        wanted = max(available, needed)
        return np.resize(images, (wanted, *images.shape[1:])), f"{available} test images of {source.title}"
    raise DataError("neither the data of this run nor the embedded photographs can be read")
