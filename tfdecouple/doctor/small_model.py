"""The small trained model of `doctor`, and the numbers that it computed on the machine of its training.

The run folder `doctor/model/` has `numbers.npz` beside its checkpoint; `benchmarks/doctor_model.py` makes both.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from tfdecouple.config import Config

FOLDER = pathlib.Path(__file__).parent / "model"
NUMBERS = "numbers.npz"
# Number of images whose numbers are compared, also the batch size of a training step, and seed of the noise.
IMAGES = 16
SEED = 1
# Number of bundled photographs.
PHOTOGRAPHS = 128


@functools.cache
def load_config() -> Config:
    """Returns the config of the small model: three levels, odd and even channels, and all kinds of layers."""
    return Config.from_json(FOLDER / "config.json")


def load_images(count: int) -> np.ndarray:
    """Returns photographs that the model was not trained on, uint8 `[count, 16, 16, 3]`, repeated if needed."""
    images = load_numbers()["images"]
    return np.resize(images, (count, *images.shape[1:]))


def load_numbers() -> dict[str, np.ndarray]:
    """Returns the numbers of the model on the machine of its training, by name, with the photographs as `images`."""
    with np.load(FOLDER / NUMBERS) as archive:
        return dict(archive)
