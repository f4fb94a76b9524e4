"""Checks of `doctor` with a small trained model: do all devices compute the same numbers, train alike, invert exactly?

`benchmarks/doctor_model.py` makes the run folder `doctor/model/`. Beside the checkpoint, its `numbers.npz` has unseen
photographs, and what the model computes from some of them in float32 on a CPU.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfdecouple.config import Config, override
from tfdecouple.data.sample_images import make_extreme_images
from tfdecouple.doctor.check_runner import DEFAULT, Result, Task
from tfdecouple.errors import ExactnessWarning

MODEL = pathlib.Path(__file__).parent / "model"
NUMBERS = "numbers.npz"
# Number of photographs in `numbers.npz`, and of those from which its numbers were computed, in one batch.
PHOTOGRAPHS, IMAGES = 128, 16
# Largest allowed relative difference (Euclidean norm) of computed arrays from the arrays in `numbers.npz`. Gradients
# have another bound, `Variant.gradient`. docs/gpu.md, "The bounds", has the measurements.
BOUND = 1e-4
# Number of training steps after which weights trained on several devices are compared with weights trained on one, and
# the largest allowed difference relative to the change in training. The bound exceeds rounding errors, because Adam's
# steps are large for tiny gradients, too.
STEPS, WEIGHTS_BOUND = 10, 1e-3


def load_small_config() -> Config:
    """Returns the config of `doctor`'s small model: encoder, prior flow, and a flow of 3 levels for 16 x 16 images."""
    return Config.from_json(MODEL / "config.json")


def load_photographs(count: int) -> np.ndarray:
    """Returns photographs that the small model was not trained on, uint8 `[count, 16, 16, 3]`, repeated if needed."""
    return np.resize(np.load(MODEL / NUMBERS)["images"], (count, 16, 16, 3))


def make_training(strategy: Any, settings: Sequence[str] = (), folder: pathlib.Path = MODEL) -> tuple[Any, Any]:
    """Returns a `TrainingState` with the trained weights of `doctor`'s small model, and its `TrainStep` to train on."""
    from tfdecouple.runs.run_folder import RunFolder
    from tfdecouple.training.state import TrainingState
    from tfdecouple.training.step import TrainStep

    batch = [f"training.{name}={IMAGES}" for name in ("batch_size", "evaluation_batch_size")]
    config = override(load_small_config(), [*batch, "training.ema_decay=0.0", *settings])
    with strategy.scope():
        state = TrainingState(config)
    RunFolder(folder).load_weights(state.model, averaged=False)
    return state, TrainStep(config, state, strategy)


def compute_numbers(device: str, images: np.ndarray, folder: pathlib.Path = MODEL) -> dict[str, np.ndarray]:
    """Returns {name: array} of what the small model computes on a device: z, v, x, bits/dim and samples."""
    import tensorflow as tf

    from tfdecouple.runs.opened_run import load_model

    with tf.device(device):
        model, rng = load_model(folder), np.random.default_rng(1)
        z_noise = rng.standard_normal((IMAGES, model.config.latent_dim)).astype(np.float32)
        v_noise = rng.standard_normal((IMAGES, *model.config.image_shape)).astype(np.float32)
        u_noise = rng.random((IMAGES, *model.config.image_shape), np.float32)
        z, v = model.encode(images)[:2]
        x = model.flow.inverse_and_log_det(v, z)[0]
        bits = model.elbo_from_noise(images, z_noise, u_noise).bits_per_dim
        sampled = model.flow.inverse_and_log_det(0.7 * v_noise, model.z_from_noise(z_noise))[0]
    values = {"z": z, "v": v, "x": x, "bits_per_dim": bits, "sampled": sampled}
    return {name: np.asarray(value) for name, value in values.items()}


def compute_gradient(
    device: str, images: np.ndarray, settings: Sequence[str] = (), folder: pathlib.Path = MODEL
) -> np.ndarray:
    """Returns the gradient of all weights of `doctor`'s small model in a training step on a device, float32 `[n]`."""
    from tfdecouple.training.workers import get_mirrored_strategy

    state, step = make_training(get_mirrored_strategy((device,)), tuple(settings), folder)
    step([images], 0)
    # After the first step, Adam's running means of gradients are the gradient times 1 - beta_1.
    return _join(state.optimizer.means) / (1 - load_small_config().training.beta_1)


def _join(variables: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([variable.numpy().ravel() for _, variable in sorted(variables.items())])


def compare_numbers(task: Task) -> Iterator[Result]:
    """Yields a `Result` for each device: whether the small model computes there the stored arrays of `numbers.npz`."""
    right, images, variant = np.load(MODEL / NUMBERS), load_photographs(IMAGES), task.variant
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        numbers = compute_numbers(device, images) if variant == DEFAULT else {}
        numbers["gradient"] = compute_gradient(device, images, variant.settings)
        off = {name: _compare(value, right[name], right[name]) for name, value in numbers.items()}
        # The comparison is written so that NaN fails, too.
        wrong = [n for n, value in off.items() if not value <= (variant.gradient if n == "gradient" else BOUND)]
        listed = ", ".join(f"{name} {f'{value:.0e}' if value else 0}" for name, value in off.items())
        message = f"relative errors: {listed}" + (f"; too large: {', '.join(wrong)}" if wrong else "")
        advice = f"do not train here with {' '.join(variant.settings)}"
        if variant == DEFAULT:
            advice = f"{device} does not compute in full float32: look for variables that lower the precision (TF_*, "
            advice += "NVIDIA_*, XLA_FLAGS), for errors of its memory (nvidia-smi -q -d ECC), try another driver"
        figures = {"device": device, "variant": variant.name, "off": off}
        yield Result(f"{device}, {variant.name}", not wrong, message, advice, figures)


def _compare(value: np.ndarray, right: np.ndarray, scale: np.ndarray) -> float:
    """Returns |value - right| / |scale|, with Euclidean norms."""
    return round(float(np.linalg.norm(np.float64(value) - right) / np.linalg.norm(scale)), 9)


def compare_devices(task: Task) -> Iterator[Result]:
    """Yields one `Result`: whether training on all devices together gives the weights that one device gives."""
    from tfdecouple.training.workers import make_strategy

    count = len(task.devices)
    images = load_photographs(STEPS * count * max(2, IMAGES // count)).reshape(STEPS, -1, 16, 16, 3)
    start, alone = train_weights(make_strategy(1), images)
    together = train_weights(make_strategy(count), images)[1]
    off, is_bitwise = _compare(together, alone, alone - start), bool(np.array_equal(alone, together))
    message = "equal to the bit" if is_bitwise else f"off by {off:.0e} of the change in training"
    advice = "train on one device (--devices 1) until this holds; try NCCL_P2P_DISABLE=1 and nvidia-smi topo -m, other "
    advice += "versions of the driver and NCCL, and report it"
    what = f"weights after {STEPS} steps, 1 device against {count}"
    yield Result(what, off <= WEIGHTS_BOUND, message, advice, {"off": off, "bitwise": is_bitwise})


def train_weights(strategy: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of the small model, `[n]`, before and after one training step on each of the batches."""
    import tensorflow as tf

    state, step = make_training(strategy, [f"training.batch_size={images.shape[1]}", "training.warmup_steps=1"])
    start, data = _join(state.trainable), tf.data.Dataset.from_tensor_slices(images)
    for number, batch in enumerate(strategy.experimental_distribute_dataset(data)):
        step([batch], number)
    return start, _join(state.trainable)


def try_round_trips(task: Task) -> Iterator[Result]:
    """Yields a `Result` for each device: whether the small model reconstructs all images exactly from their codes."""
    import tensorflow as tf

    from tfdecouple.runs.opened_run import load_model

    photographs = load_photographs(64 if task.quick else PHOTOGRAPHS)
    kinds = {"photographs": photographs, **make_extreme_images(photographs.shape[1:], len(photographs))}
    # All images are run as one batch, because TensorFlow would trace the model again for each batch size.
    images, names = np.concatenate([*kinds.values()]), np.repeat([*kinds], [len(group) for group in kinds.values()])
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        with tf.device(device), warnings.catch_warnings():
            # The model warns of images that it might not reconstruct exactly. Here they are counted instead.
            warnings.simplefilter("ignore", ExactnessWarning)
            model = load_model(MODEL)
            is_lost = (np.asarray(model.decode(*model.encode(images))) != images).any((1, 2, 3))
        lost = {kind: int(is_lost[names == kind].sum()) for kind in kinds}
        listed = ", ".join(f"{count} of {len(kinds[kind])} {kind}" for kind, count in lost.items() if count)
        message = f"lost: {listed}" if listed else f"all {len(images)} images of {len(kinds)} kinds are exact"
        advice = f"{device} does not compute in full float32 or not the same way twice: look for variables that lower "
        advice += "the precision, and decode nothing there until then"
        yield Result(f"Keras, {device}", not listed, message, advice, {"device": device, "lost": lost})
