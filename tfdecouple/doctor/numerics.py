"""Whether devices compute the same numbers, in each precision: codes, images, the bound, and the gradient of a step."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.doctor import trained
from tfdecouple.doctor.finding import Finding

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

# How far the gradient of a step may be from that of float32, relative to its norm, and how far each kind of number of a
# model in use, relative to the norm of it. What was measured is in docs/gpu.md, "The bounds".
GRADIENT = {"float32": 1e-3, "tf32": 0.05, "mixed_bfloat16": 0.2}
IN_USE = 1e-4

_CPU = "CPU:0"
_MEASURE = "tfdecouple.doctor.numerics:measure"
_NAMES = {
    "z": "z",
    "v": "v",
    "x": "x of codes",
    "bits_per_dim": "bits/dim",
    "sampled": "x of noise",
    "gradient": "gradient",
}


class Trial:
    """The trained model on one device, to be used and to take a step.

    Args:
        device: as TensorFlow calls it, such as "GPU:0".
        images: uint8 `[trained.IMAGES, 16, 16, 3]`.
        folder: the run folder of the model.
    """

    def __init__(self, device: str, images: np.ndarray, folder: pathlib.Path = trained.FOLDER):
        import tensorflow as tf

        from tfdecouple.runs import load_model

        self._device, self._images, self._folder = device, images, folder
        self._steps: dict[str, Any] = {}
        with tf.device(device):
            self.model = load_model(folder)

    def numbers(self, precision: str) -> dict[str, np.ndarray]:
        """Returns what the model gives: in float32 all of `_NAMES`, otherwise the gradient alone."""
        gradient = {"gradient": self._gradient(precision)}
        return {**self._in_use(), **gradient} if precision == "float32" else gradient

    def _in_use(self) -> dict[str, np.ndarray]:
        import tensorflow as tf

        config = self.model.config
        rng = np.random.default_rng(trained.SEED)
        z_noise = rng.standard_normal((trained.IMAGES, config.latent_dim)).astype(np.float32)
        v_noise = rng.standard_normal((trained.IMAGES, *config.image_shape)).astype(np.float32)
        u_noise = rng.random((trained.IMAGES, *config.image_shape), np.float32)
        with tf.device(self._device):
            z, v = self.model.encode(self._images)
            x = self.model.flow.inverse_and_log_det(v, z)[0]
            elbo = self.model.elbo_from_noise(self._images, z_noise, u_noise)
            sampled = self.model.flow.inverse_and_log_det(0.7 * v_noise, self.model.z_from_noise(z_noise))[0]
        values = {"z": z, "v": v, "x": x, "bits_per_dim": elbo.bits_per_dim, "sampled": sampled}
        return {name: np.asarray(value) for name, value in values.items()}

    def _gradient(self, precision: str) -> np.ndarray:
        """Returns the gradient of a step of training, all weights in a row: Adam's first means are a part of it."""
        from tfdecouple.runs import load_weights
        from tfdecouple.training.state import TrainingState
        from tfdecouple.training.step import TrainStep
        from tfdecouple.training.strategy import strategy_over

        config = trained.step_config(precision=precision)
        if precision not in self._steps:
            strategy = strategy_over((self._device,))
            with strategy.scope():
                state = TrainingState(config)
            self._steps[precision] = state, TrainStep(config, state, strategy)
        state, step = self._steps[precision]
        load_weights(self._folder, state.model, averaged=False)
        for values in (state.optimizer.means, state.optimizer.variances):
            for variable in values.values():
                variable.assign(np.zeros(variable.shape, np.float32))
        step([self._images], 0)
        means = state.optimizer.means
        return np.concatenate([means[name].numpy().ravel() for name in sorted(means)]) / (1 - config.training.beta_1)


def off_by(found: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns how far numbers are from what they should be, by their kind, relative to the norm of what they should be.

    >>> off_by({"z": np.array([3.0, 4.1])}, {"z": np.array([3.0, 4.0])})
    {'z': 0.02}
    """
    return {
        name: round(float(np.linalg.norm(np.float64(value) - right[name]) / np.linalg.norm(right[name])), 9)
        for name, value in found.items()
    }


def too_far(off: Mapping[str, float], precision: str) -> list[str]:
    """Returns which kinds of numbers are beyond their bound; one that is no number is."""
    bounds = dict.fromkeys(off, IN_USE) | {"gradient": GRADIENT[precision]}
    return [name for name, value in off.items() if not value <= bounds[name]]


def measure(device: str, precisions: list[str]) -> Iterator[dict[str, Any]]:
    """Yields for each precision how far the numbers of a device are off.

    Those of the first CPU are compared with what came along, another device's with the first CPU's.
    """
    right = trained.load_numbers()
    images, against = right.pop("images")[: trained.IMAGES], "the numbers that came along"
    if device != _CPU:
        yield {"doing": "the numbers of the CPU"}
        right, against = Trial(_CPU, images).numbers("float32"), "the CPU's"
    trial = Trial(device, images)
    for precision in precisions:
        yield {"doing": f"the numbers of {device} in {precision}"}
        off = off_by(trial.numbers(precision), right)
        yield {"device": device, "precision": precision, "against": against, "off": off}


def judge(found: dict[str, Any]) -> Finding:
    """Says of a device and a precision whether its numbers are right."""
    device, precision, off = found["device"], found["precision"], found["off"]
    wrong = too_far(off, precision)
    advice = ""
    if wrong:
        advice = (
            f"do not train in {precision} here: --set training.precision=float32"
            if precision != "float32"
            else f"{device} does not compute in full float32: look for variables that lower the precision (TF_*, "
            "NVIDIA_*, XLA_FLAGS), for errors of its memory (nvidia-smi -q -d ECC), try another driver"
        )
    return Finding(
        f"{device}, {precision}",
        not wrong,
        ", ".join(f"{_NAMES[name]} {value:.0e}" for name, value in off.items()) + f" off {found['against']}",
        advice,
        found,
    )


def check(examination: Examination) -> Iterator[Finding]:
    """Compares every device, one after the other."""
    for device in dict.fromkeys([_CPU, *examination.devices]):
        arguments = {"device": device, "precisions": examination.precisions(device)}
        yield from examination.findings(_MEASURE, judge, device, arguments)
