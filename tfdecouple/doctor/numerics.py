"""Whether devices compute the same numbers: codes, images, the bound, and in every variant the gradient of a step."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.config import override
from tfdecouple.doctor import trained
from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.options import Variant, by_name

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

# How far each kind of number of a model in use may be off, relative to its norm. What was measured is in docs/gpu.md,
# "The bounds".
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
        self._steps: dict[tuple[str, ...], Any] = {}
        with tf.device(device):
            self.model = load_model(folder)

    def numbers(self, settings: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Returns what the model gives: all of `_NAMES`, or with settings of training the gradient alone."""
        gradient = {"gradient": self._gradient(tuple(settings))}
        return gradient if settings else {**self._in_use(), **gradient}

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

    def _gradient(self, settings: tuple[str, ...]) -> np.ndarray:
        """Returns the gradient of a step of training, all weights in a row: Adam's first means are a part of it."""
        from tfdecouple.runs import load_weights
        from tfdecouple.training.state import TrainingState
        from tfdecouple.training.step import TrainStep
        from tfdecouple.training.strategy import strategy_over

        config = override(trained.step_config(), list(settings))
        if settings not in self._steps:
            strategy = strategy_over((self._device,))
            with strategy.scope():
                state = TrainingState(config)
            self._steps[settings] = state, TrainStep(config, state, strategy)
        state, step = self._steps[settings]
        load_weights(self._folder, state.model, averaged=False)
        for values in (state.optimizer.means, state.optimizer.variances):
            for variable in values.values():
                variable.assign(np.zeros(variable.shape, np.float32))
        step([self._images], 0)
        means = state.optimizer.means
        return np.concatenate([means[name].numpy().ravel() for name in sorted(means)]) / (1 - config.training.beta_1)


@functools.cache
def trial_on(device: str) -> Trial:
    """Returns the trial of a device, one for each in this process: its graphs are made once."""
    return Trial(device, trained.load_images(trained.IMAGES))


def off_by(found: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns how far numbers are from what they should be, by their kind, relative to the norm of what they should be.

    >>> off_by({"z": np.array([3.0, 4.1])}, {"z": np.array([3.0, 4.0])})
    {'z': 0.02}
    """
    return {
        name: round(float(np.linalg.norm(np.float64(value) - right[name]) / np.linalg.norm(right[name])), 9)
        for name, value in found.items()
    }


def too_far(off: Mapping[str, float], variant: Variant) -> list[str]:
    """Returns which kinds of numbers are beyond their bound; one that is no number is."""
    bounds = dict.fromkeys(off, IN_USE) | {"gradient": variant.gradient}
    return [name for name, value in off.items() if not value <= bounds[name]]


def measure(device: str, variants: list[str]) -> Iterator[dict[str, Any]]:
    """Yields for each variant, by its name, how far the numbers of a device are off.

    Those of the first CPU are compared with what came along, another device's with the first CPU's.
    """
    right, against = trained.load_numbers(), "the numbers that came along"
    if device != _CPU:
        yield {"doing": "the numbers of the CPU"}
        right, against = trial_on(_CPU).numbers(), "the CPU's"
    trial = trial_on(device)
    for name in variants:
        yield {"doing": f"the numbers of {device}, {name}"}
        off = off_by(trial.numbers(by_name(name).settings), right)
        yield {"device": device, "variant": name, "against": against, "off": off}


def judge(found: dict[str, Any]) -> Finding:
    """Says of a device and a variant whether its numbers are right."""
    device, variant, off = found["device"], by_name(found["variant"]), found["off"]
    listed = ", ".join(f"{_NAMES[name]} {f'{value:.0e}' if value else 0}" for name, value in off.items())
    said = f"off {found['against']} by: {listed}"
    advice = ""
    if wrong := too_far(off, variant):
        said += f"; too far: {', '.join(_NAMES[name] for name in wrong)}"
        advice = (
            f"do not train here with {' '.join(variant.settings)}"
            if variant.settings
            else f"{device} does not compute in full float32: look for variables that lower the precision (TF_*, "
            "NVIDIA_*, XLA_FLAGS), for errors of its memory (nvidia-smi -q -d ECC), try another driver"
        )
    return Finding(f"{device}, {variant.name}", not wrong, said, advice, found)


def check(examination: Examination) -> Iterator[Finding]:
    """Compares every device, one after the other."""
    for device in dict.fromkeys([_CPU, *examination.devices]):
        # What concerns several devices together changes nothing on one: `devices.check` tries it.
        variants = [each for each in examination.variants(device) if "train" in each.phases and not each.together]
        in_one = [each.name for each in variants if not each.environment]
        for names in [in_one, *([each.name] for each in variants if each.environment)]:
            arguments, environment = {"device": device, "variants": names}, by_name(names[0]).environment
            # One of them takes all memory of a GPU, of which nothing else may need any meanwhile, or later.
            alone = bool(environment)
            yield from examination.findings(_MEASURE, judge, device, arguments, environment=environment, alone=alone)
