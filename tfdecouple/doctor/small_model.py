"""The small trained model that `doctor` uses, and the numbers that it gave on the machine where it was trained.

`doctor/model/` is a run folder with `numbers.npz` beside its checkpoint; `benchmarks/doctor_model.py` makes it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from tfdecouple.config import Config

FOLDER = pathlib.Path(__file__).parent / "model"
NUMBERS = "numbers.npz"
# The number of images whose numbers are compared, which is also the batch size of a step, and the seed of their noise.
IMAGES = 16
SEED = 1
# The number of bundled photographs.
PHOTOGRAPHS = 128


@functools.cache
def load_config() -> Config:
    """Returns the config of the model: three levels, odd and even channels, and all kinds of layers."""
    return Config.from_json(FOLDER / "config.json")


def make_step_config(**training: Any) -> Config:
    """Returns the config of a training of the model with batches of `IMAGES` images, and with these options changed."""
    options = {"batch_size": IMAGES, "evaluation_batch_size": IMAGES, "ema_decay": 0.0, **training}
    config = load_config()
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **options))


def load_images(count: int) -> np.ndarray:
    """Returns photographs that the model was not trained on, uint8 `[count, 16, 16, 3]`; few ones repeat."""
    images = load_numbers()["images"]
    return np.resize(images, (count, *images.shape[1:]))


def load_numbers() -> dict[str, np.ndarray]:
    """Returns the numbers of the model where it was trained (`device_numbers`), and the photographs, `images`."""
    with np.load(FOLDER / NUMBERS) as archive:
        return {name: archive[name] for name in archive.files}
