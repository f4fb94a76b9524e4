"""Small flows and their blocks in float64, each with an input and a condition, by name."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from helpers.models import TINY, give_effect
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.networks.prior import PriorFlow, PriorStep

BATCH = 2
CONDITION = 3
F64 = {"dtype": "float64"}

# Blocks by name: the constructor, the shape of an input without the batch, and the size of the condition.
BLOCKS = {
    "step": (functools.partial(FlowStep, 4, CONDITION), (2, 2, 4), CONDITION),
    "step-odd": (functools.partial(FlowStep, 4, CONDITION, alpha=0.6), (2, 2, 3), CONDITION),
    "step-additive": (functools.partial(FlowStep, 4, transform="additive"), (2, 2, 4), 0),
    "factor-out": (functools.partial(FactorOut, 2, 4, CONDITION), (2, 2, 6), CONDITION),
    "factor-out-additive": (functools.partial(FactorOut, 1, 4, transform="additive"), (2, 2, 3), 0),
    "prior-step-additive": (functools.partial(PriorStep, 5, transform="additive"), (5,), 0),
    "prior-flow": (functools.partial(PriorFlow, 2, 5, alpha=0.6), (6,), 0),
}

# Configs of small flows that together have each kind of conditioning and coupling.
SMALL = dataclasses.replace(TINY, image_shape=(4, 4, 3), steps=(1, (1,), 1), encoder_channels=(4,))
FLOWS = {
    "tiny": TINY,
    "unconditional-additive": dataclasses.replace(
        SMALL, conditioning="none", transform="additive", multiscale_transform="additive"
    ),
    "base": dataclasses.replace(SMALL, conditioning="base", base_hidden=5),
    # An image with one channel is squeezed before the first level.
    "grey": dataclasses.replace(SMALL, image_shape=(4, 8, 1), steps=(1, 1), hidden_channels=(4, 4)),
}


@functools.cache
def block(name):
    make, shape, condition_size = BLOCKS[name]
    rng = np.random.default_rng(1)
    layer = make(name=name.replace("-", "_"), **F64)
    layer.build((None, *shape))
    give_effect(layer, scale=0.3)
    x = tf.constant(rng.standard_normal((BATCH, *shape)))
    return layer, x, tf.constant(rng.standard_normal((BATCH, condition_size))) if condition_size else None


@functools.cache
def flow(name):
    config = FLOWS[name]
    rng = np.random.default_rng(1)
    layer = Flow(config, **F64)
    layer.build()
    give_effect(layer)
    x = tf.constant(rng.uniform(-1, 1, (BATCH, *config.image_shape)))
    return layer, x, tf.constant(rng.standard_normal((BATCH, config.latent_dim))) if config.has_latent else None


def close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)
