"""A training step of every preset's kinds of layer, in small: finite, and with a gradient for every weight."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import give_effect, random_images

from tfdecouple.config import DataConfig, TrainingConfig, load_preset, preset_names
from tfdecouple.training.state import TrainingState
from tfdecouple.training.step import TrainStep
from tfdecouple.training.strategy import make_strategy

BATCH = 4


def in_small(preset):
    """The preset with narrow layers, one step a stage and the fewest levels that have every kind of layer."""
    config = load_preset(preset)
    model = config.model
    stages = max(len(steps) for steps in model.steps if isinstance(steps, tuple))
    return dataclasses.replace(
        config,
        name="small",
        description="",
        notes="",
        model=dataclasses.replace(
            model,
            image_shape=(8, 8, 3),
            steps=(1, (1,) * stages, 1),
            hidden_channels=(4, 4, 4),
            factors=model.factors[:1],
            latent_dim=4,
            encoder_channels=(4, 4),
            encoder_out_channels=2,
            prior_steps=1,
            prior_hidden=4,
            classes=min(model.classes, 2),
            base_hidden=4,
            dequantization_steps=(1, (1,), 1),
            dequantization_hidden_channels=(4, 4, 4),
            dequantization_alpha=1.0,
            dequantization_encoder_channels=(4, 4),
            dequantization_map_channels=2,
        ),
        data=DataConfig(),
        training=TrainingConfig(
            steps=10,
            batch_size=BATCH,
            micro_batches=min(2, config.training.micro_batches),
            learning_rate=0.01,
            warmup_steps=0,
            weight_decay=0.0,
            clip_norm=config.training.clip_norm,
            ema_decay=config.training.ema_decay and 0.9,
            kl_weight=config.training.kl_weight,
            precision=config.training.precision,
            memory=config.training.memory,
            init_images=16,
        ),
    )


def layers(model):
    """What tells which kinds of layer there are: all but the sizes of numbers."""
    return repr(dataclasses.replace(model, n_bits=8, alpha=1.0, prior_alpha=1.0))


# Presets of the same kinds of layer are tried once.
KINDS = {layers(config.model): (name, config) for name in preset_names()[::-1] for config in [in_small(name)]}


@pytest.mark.slow
@pytest.mark.parametrize("config", [config for _, config in KINDS.values()], ids=[name for name, _ in KINDS.values()])
def test_step_reaches_every_weight(config, eager):
    strategy = make_strategy(1)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        state = TrainingState(config)
    state.model.initialize(random_images(16, seed=9), seed=0)
    give_effect(state.model)
    state.optimizer.start_averages()
    before = {name: variable.numpy() for name, variable in state.trainable.items()}
    examples = random_images(BATCH)
    if config.model.has_classes:
        # As many labels as there are: the embedding of another would not move.
        examples = examples, np.arange(BATCH, dtype=np.int32) % config.model.classes
    batches = tf.data.Dataset.from_tensor_slices(examples).batch(BATCH // config.training.micro_batches)
    result = TrainStep(config, state, strategy)(list(strategy.experimental_distribute_dataset(batches)), 0)
    assert result.applied and all(np.isfinite(value) for value in result)
    # Adam moves whatever has a gradient by the learning rate, and nothing else: there is no weight decay.
    still = [name for name, variable in state.trainable.items() if np.array_equal(variable.numpy(), before[name])]
    assert not still
