"""Checks of `doctor` that each device computes the bundled numbers, and that several devices train as one does."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfdecouple.config import override
from tfdecouple.doctor import small_model
from tfdecouple.doctor.result import DEFAULT, Result, Task, Variant

# Largest relative distance of each kind of number but the gradient; docs/gpu.md, "The bounds", has the measurements.
BOUND = 1e-4
# Number of steps that several devices train, and largest distance of their weights from the weights of one device,
# relative to the change of the weights. Adam divides by the gradient's size and so enlarges rounding in tiny gradients.
STEPS, WEIGHTS_BOUND = 10, 1e-3
_NAMES = {
    "z": "z",
    "v": "v",
    "x": "x of codes",
    "bits_per_dim": "bits/dim",
    "sampled": "x of noise",
    "gradient": "gradient",
}


@functools.cache
def load_model_on(device: str, folder: pathlib.Path) -> Any:
    """Returns the trained model of a run folder, with its weights on a device."""
    import tensorflow as tf

    from tfdecouple.runs.opened_run import load_model

    with tf.device(device):
        return load_model(folder)


def compute_numbers(
    device: str, images: np.ndarray, folder: pathlib.Path = small_model.FOLDER
) -> dict[str, np.ndarray]:
    """Returns codes, images, samples and bits/dim, computed by the trained model on a device, by name."""
    import tensorflow as tf

    model = load_model_on(device, folder)
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


def _make_step(strategy: Any, settings: Sequence[str] = ()) -> tuple[Any, Any]:
    """Returns the state and the step of a training of the small model."""
    from tfdecouple.training.state import TrainingState
    from tfdecouple.training.step import TrainStep

    batch = [f"training.{name}={small_model.IMAGES}" for name in ("batch_size", "evaluation_batch_size")]
    config = override(small_model.load_config(), [*batch, "training.ema_decay=0.0", *settings])
    with strategy.scope():
        state = TrainingState(config)
    return state, TrainStep(config, state, strategy)


@functools.cache
def _make_step_on(device: str, settings: tuple[str, ...]) -> tuple[Any, Any]:
    from tfdecouple.training.workers import get_mirrored_strategy

    return _make_step(get_mirrored_strategy((device,)), settings)


def compute_gradient(
    device: str, images: np.ndarray, settings: Sequence[str] = (), folder: pathlib.Path = small_model.FOLDER
) -> np.ndarray:
    """Returns the gradient of all weights in one training step on a device, float32 `[weights]`, read from Adam."""
    from tfdecouple.runs.run_folder import load_weights

    state, step = _make_step_on(device, tuple(settings))
    load_weights(folder, state.model, averaged=False)
    for values in (state.optimizer.means, state.optimizer.variances):
        for variable in values.values():
            variable.assign(np.zeros(variable.shape, np.float32))
    step([images], 0)
    means = state.optimizer.means
    scale = 1 - small_model.load_config().training.beta_1
    return np.concatenate([means[name].numpy().ravel() for name in sorted(means)]) / scale


def measure_distances(numbers: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the relative distance of each kind of number from the right numbers, in the Euclidean norm.

    >>> measure_distances({"z": np.array([3.0, 4.1])}, {"z": np.array([3.0, 4.0])})
    {'z': 0.02}
    """
    return {
        name: round(float(np.linalg.norm(np.float64(value) - right[name]) / np.linalg.norm(right[name])), 9)
        for name, value in numbers.items()
    }


def compare_numbers(task: Task) -> Iterator[Result]:
    """Yields a result for each device: whether its numbers equal the bundled numbers within their bounds."""
    right, images = small_model.load_numbers(), small_model.load_images(small_model.IMAGES)
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        numbers = compute_numbers(device, images) if task.variant == DEFAULT else {}
        numbers["gradient"] = compute_gradient(device, images, task.variant.settings)
        yield check_numbers(device, task.variant, measure_distances(numbers, right))


def check_numbers(device: str, variant: Variant, distances: Mapping[str, float]) -> Result:
    """Returns the result of one device: whether its distances are within their bounds; NaN is outside."""
    listed = ", ".join(f"{_NAMES[name]} {f'{value:.0e}' if value else 0}" for name, value in distances.items())
    bounds = dict.fromkeys(_NAMES, BOUND) | {"gradient": variant.gradient}
    wrong = [name for name, value in distances.items() if not value <= bounds[name]]
    message = f"off the bundled numbers by: {listed}"
    if wrong:
        message += f"; too far: {', '.join(_NAMES[name] for name in wrong)}"
    advice = (
        f"do not train here with {' '.join(variant.settings)}"
        if variant.settings
        else f"{device} does not compute in full float32: look for variables that lower the precision (TF_*, "
        "NVIDIA_*, XLA_FLAGS), for errors of its memory (nvidia-smi -q -d ECC), try another driver"
    )
    figures = {"device": device, "variant": variant.name, "off": dict(distances)}
    return Result(f"{device}, {variant.name}", not wrong, message, advice, figures)


def compare_devices(task: Task) -> Iterator[Result]:
    """Yields one result: whether training on all devices together gives the same weights as on one device."""
    from tfdecouple.training.workers import make_strategy

    count = len(task.devices)
    batch = count * max(2, small_model.IMAGES // count)
    images = small_model.load_images(STEPS * batch).reshape(STEPS, batch, 16, 16, 3)
    start, alone = _train_weights(make_strategy(1), images)
    together = _train_weights(make_strategy(count), images)[1]
    yield check_weights(f"weights after {STEPS} steps, 1 device against {count}", start, alone, together)


def _train_weights(strategy: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all weights, `[weights]`, before and after training on `images`, batches `[steps, batch, 16, 16, 3]`."""
    import tensorflow as tf

    from tfdecouple.runs.run_folder import load_weights

    state, step = _make_step(strategy, [f"training.batch_size={images.shape[1]}", "training.warmup_steps=1"])
    load_weights(small_model.FOLDER, state.model, averaged=False)

    def read_weights() -> np.ndarray:
        return np.concatenate([variable.numpy().ravel() for _, variable in sorted(state.trainable.items())])

    start = read_weights()
    data = tf.data.Dataset.from_tensor_slices(images)
    for number, batch in enumerate(strategy.experimental_distribute_dataset(data)):
        step([batch], number)
    return start, read_weights()


def check_weights(what: str, start: np.ndarray, alone: np.ndarray, together: np.ndarray) -> Result:
    """Returns a result: whether the weights from several devices equal those from one, within `WEIGHTS_BOUND`."""
    off = float(np.linalg.norm(together - alone) / np.linalg.norm(alone - start))
    figures = {"off": off, "bitwise": bool(np.array_equal(alone, together))}
    message = f"off by {off:.0e} of how far they moved, at most {np.abs(together - alone).max():.0e}"
    advice = (
        "train on one device (--devices 1) until this holds; try NCCL_P2P_DISABLE=1 and nvidia-smi topo -m, other "
        "versions of the driver and NCCL, and report it"
    )
    return Result(what, off <= WEIGHTS_BOUND, "equal to the bit" if figures["bitwise"] else message, advice, figures)
