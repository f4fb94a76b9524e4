"""Whether devices compute the same numbers: codes, images, the bound, and in every variant the gradient of a step."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfdecouple.config import override
from tfdecouple.doctor import small_model
from tfdecouple.doctor.result import DEFAULT, Result, Task, Variant

# Bound for each kind of number of a model in use, relative to its norm; docs/gpu.md, "The bounds", has measurements.
IN_USE = 1e-4
_NAMES = {
    "z": "z",
    "v": "v",
    "x": "x of codes",
    "bits_per_dim": "bits/dim",
    "sampled": "x of noise",
    "gradient": "gradient",
}


def takes(task: Task) -> bool:
    """Returns whether a variant changes the gradient on one device."""
    return "train" in task.variant.phases and not task.variant.together


@functools.cache
def _model_on(device: str, folder: pathlib.Path) -> Any:
    import tensorflow as tf

    from tfdecouple.runs import load_model

    with tf.device(device):
        return load_model(folder)


def numbers_in_use(device: str, images: np.ndarray, folder: pathlib.Path = small_model.FOLDER) -> dict[str, np.ndarray]:
    """Returns what the trained model computes of images, uint8 `[small_model.IMAGES, 16, 16, 3]`, on a device."""
    import tensorflow as tf

    model = _model_on(device, folder)
    shape, rng = model.config.image_shape, np.random.default_rng(small_model.SEED)
    z_noise = rng.standard_normal((small_model.IMAGES, model.config.latent_dim)).astype(np.float32)
    v_noise = rng.standard_normal((small_model.IMAGES, *shape)).astype(np.float32)
    u_noise = rng.random((small_model.IMAGES, *shape), np.float32)
    with tf.device(device):
        z, v = model.encode(images)
        x = model.flow.inverse_and_log_det(v, z)[0]
        elbo = model.elbo_from_noise(images, z_noise, u_noise)
        sampled = model.flow.inverse_and_log_det(0.7 * v_noise, model.z_from_noise(z_noise))[0]
    values = {"z": z, "v": v, "x": x, "bits_per_dim": elbo.bits_per_dim, "sampled": sampled}
    return {name: np.asarray(value) for name, value in values.items()}


@functools.cache
def _step_on(device: str, settings: tuple[str, ...]) -> tuple[Any, Any]:
    from tfdecouple.training.state import TrainingState
    from tfdecouple.training.step import TrainStep
    from tfdecouple.training.strategy import strategy_over

    config, strategy = override(small_model.step_config(), settings), strategy_over((device,))
    with strategy.scope():
        state = TrainingState(config)
    return state, TrainStep(config, state, strategy)


def gradient(
    device: str, images: np.ndarray, settings: Sequence[str] = (), folder: pathlib.Path = small_model.FOLDER
) -> np.ndarray:
    """Returns the gradient of a step of training, all weights in a row, from Adam's first means."""
    from tfdecouple.runs import load_weights

    state, step = _step_on(device, tuple(settings))
    load_weights(folder, state.model, averaged=False)
    for values in (state.optimizer.means, state.optimizer.variances):
        for variable in values.values():
            variable.assign(np.zeros(variable.shape, np.float32))
    step([images], 0)
    means = state.optimizer.means
    scale = 1 - small_model.load_config().training.beta_1
    return np.concatenate([means[name].numpy().ravel() for name in sorted(means)]) / scale


def distances(found: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns how far numbers are from the right ones, by their kind, relative to the norm of the right ones.

    >>> distances({"z": np.array([3.0, 4.1])}, {"z": np.array([3.0, 4.0])})
    {'z': 0.02}
    """
    return {
        name: round(float(np.linalg.norm(np.float64(value) - right[name]) / np.linalg.norm(right[name])), 9)
        for name, value in found.items()
    }


def run(task: Task) -> Iterator[Result]:
    """Yields for each device whether its numbers are those of the machine where the model was trained."""
    right, images = small_model.load_numbers(), small_model.load_images(small_model.IMAGES)
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        found = {"gradient": gradient(device, images, task.variant.settings)}
        if task.variant is DEFAULT:
            found = {**numbers_in_use(device, images), **found}
        yield judge(device, task.variant, distances(found, right))


def judge(device: str, variant: Variant, off: Mapping[str, float]) -> Result:
    """Returns whether the numbers of a device are within their bounds; NaN never is."""
    listed = ", ".join(f"{_NAMES[name]} {f'{value:.0e}' if value else 0}" for name, value in off.items())
    message, advice = f"off the bundled numbers by: {listed}", ""
    wrong = [name for name, value in off.items() if not value <= (variant.gradient if name == "gradient" else IN_USE)]
    if wrong:
        message += f"; too far: {', '.join(_NAMES[name] for name in wrong)}"
        advice = (
            f"do not train here with {' '.join(variant.settings)}"
            if variant.settings
            else f"{device} does not compute in full float32: look for variables that lower the precision (TF_*, "
            "NVIDIA_*, XLA_FLAGS), for errors of its memory (nvidia-smi -q -d ECC), try another driver"
        )
    figures = {"device": device, "variant": variant.name, "off": off}
    return Result(f"{device}, {variant.name}", not wrong, message, advice, figures)
