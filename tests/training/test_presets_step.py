"""A training step of every preset's kinds of layer, in small: finite, and with a gradient for every weight."""

import dataclasses

import numpy as np
import pytest
from helpers.trainers import Trainer

from tfdecouple.config import load_preset, preset_names


def in_small(model):
    """A preset's model with narrow layers, one step a stage and the fewest levels that have every kind of layer."""
    stages = max(len(steps) for steps in model.steps if isinstance(steps, tuple))
    return dataclasses.replace(
        model,
        image_shape=(8, 8, 3),
        steps=(1, (1,) * stages, 1),
        hidden_channels=(4, 4, 4),
        factors=model.factors[:1],
        latent_dim=9,
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
    )


def kind_of_layers(model):
    """All of a config but the sizes of numbers, which tells which kinds of layer there are."""
    return repr(dataclasses.replace(in_small(model), n_bits=8, alpha=1.0, prior_alpha=1.0))


# One preset for each set of kinds of layer.
KINDS = {kind_of_layers(load_preset(name).model): name for name in preset_names()[::-1]}


@pytest.mark.slow
@pytest.mark.parametrize("preset", KINDS.values())
def test_step_of_each_preset_changes_every_weight(preset, eager):
    config = load_preset(preset)
    options = {name: getattr(config.training, name) for name in ("clip_norm", "kl_weight", "precision", "memory")}
    options["micro_batches"] = min(2, config.training.micro_batches)
    trainer = Trainer(model=in_small(config.model), warmup_steps=0, weight_decay=0.0, **options)
    before = trainer.values()
    result = trainer.take()
    assert result.applied and all(np.isfinite(value) for value in result)
    after = trainer.values()
    # Adam moves whatever has a gradient by the learning rate, and nothing else: there is no weight decay.
    names = [f"model/{name}" for name in trainer.state.trainable]
    assert not [name for name in names if np.array_equal(after[name], before[name])]
