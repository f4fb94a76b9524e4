"""The small trained model that `doctor` brings along, and the numbers that it gave where it was trained.

`doctor/model/` is a run folder with `numbers.npz` beside its checkpoint; `doctor/training.py` makes it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from tfdecouple.config import PHOTOGRAPHS, Config, DataConfig, ModelConfig, TrainingConfig

FOLDER = pathlib.Path(__file__).parent / "model"
NUMBERS = "numbers.npz"

# Images of which numbers are compared, and the seed of their noise. 16 are a batch of training.
IMAGES = 16
SEED = 1
# Photographs that come along.
BROUGHT = 128

CONFIG = Config(
    name="doctor",
    description="the small model that doctor tries: 16x16 crops of photographs in the public domain or under CC0",
    notes="Trained by python -m tfdecouple.doctor.training on the astronaut, chelsea, coffee and rocket alone.",
    # Everything that the large ones have: three levels, both stages of an inner one, odd and even channels, all kinds
    # of layers. With this alpha images that no camera takes come back, too.
    model=ModelConfig(
        image_size=16,
        latent_dim=8,
        steps=(1, (1, 1), 1),
        hidden_channels=(12, 24, 24),
        alpha=0.5,
        encoder_channels=(8, 16),
        encoder_out_channels=4,
        prior_steps=1,
        prior_hidden=16,
        prior_alpha=0.5,
    ),
    # Crops were drawn of all, and those of the others left out.
    data=DataConfig(
        source="photographs", photographs=(*PHOTOGRAPHS[:5], "motorcycle_left", PHOTOGRAPHS[5]), photograph_crops=8192
    ),
    training=TrainingConfig(
        steps=600,
        batch_size=32,
        learning_rate=4e-3,
        warmup_steps=50,
        ema_decay=0.99,
        evaluate_every=300,
        checkpoint_every=300,
        keep_checkpoints=1,
        log_every=50,
    ),
)


def step_config(**training: Any) -> Config:
    """Returns the config of a training of the model on `IMAGES` images a batch, with these options changed."""
    options = {"batch_size": IMAGES, "evaluation_batch_size": IMAGES, "ema_decay": 0.0, **training}
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **options))


def load_images(count: int) -> np.ndarray:
    """Returns photographs that the model did not see, uint8 `[count, 16, 16, 3]`; where there are fewer, some again."""
    images = load_numbers()["images"]
    return np.resize(images, (count, *images.shape[1:]))


def load_numbers() -> dict[str, np.ndarray]:
    """Returns what the model gave where it was trained, see `numerics.Trial`.

    `images` are the photographs that come along, of which it was given the first `IMAGES`.
    """
    with np.load(FOLDER / NUMBERS) as archive:
        return {name: archive[name] for name in archive.files}
