"""Schedules over the updates: learning rate (paper appendix C.2), KL weight and image noise; and patterns.

The argument `update` is the number of updates applied before this one, an integer scalar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import TrainingConfig

# Learning rate at which the warm-up begins in the paper's code.
WARMUP_START = 1e-7


def learning_rate(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate of an update, float32.

    It rises linearly from 1e-7 to the peak over `warmup_steps` updates, then decays exponentially, without a floor.
    """
    # The powers are taken in float64, because float32 rounds a base like 0.999997 too coarsely for its millionth power.
    update = tf.cast(update, tf.float64)
    peak, warmup = tf.constant(config.learning_rate, tf.float64), float(config.warmup_steps)
    rising = WARMUP_START + (peak - WARMUP_START) * update / max(warmup, 1.0)
    falling = peak * tf.pow(tf.constant(config.decay_rate, tf.float64), update - warmup)
    return tf.cast(tf.where(update < warmup, rising, falling), tf.float32)


def kl_weight(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the weight of the KL term in the loss of an update, float32.

    It rises linearly from 0 to `kl_weight` over `kl_warmup_steps` updates, then it is constant. In the paper it is 1.
    """
    if not config.kl_warmup_steps:
        return tf.constant(config.kl_weight)
    return config.kl_weight * tf.minimum(tf.cast(update, tf.float32) / config.kl_warmup_steps, 1.0)


def noise_deviation(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the standard deviation of the noise on the images of an update, in pixel values, float32.

    It falls from `noise` to 0 as half a cosine over `noise_steps` updates, then it is 0 (Tschannen et al., 2024).
    """
    done = tf.minimum(1.0, tf.cast(update, tf.float32) / max(config.noise_steps, 1))
    return config.noise * tf.where(done < 1, (1 + tf.cos(math.pi * done)) / 2, 0.0)


def add_noise(images: tf.Tensor, deviation: tf.Tensor, normal: tf.Tensor) -> tf.Tensor:
    """Returns uint8 images plus standard normal noise times a deviation in pixel values, rounded and clipped, uint8."""
    noisy = tf.round(tf.cast(images, tf.float32) + deviation * normal)
    return tf.cast(tf.clip_by_value(noisy, 0.0, 255.0), tf.uint8)


def draw_patterns(shape: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    """Returns random patterns, half of them noise and half checkerboards of two colours, uint8 of the given shape.

    The values of noise are drawn independently. The fields of a checkerboard are squares with a side of 1, 2, 4, ...
    pixels, all equally likely, up to one field as large as the image. Half of the patterns of either kind have only the
    values 0 and 255; a quarter have equal channels. The kind of a pattern depends on its index and the seed.
    """
    batch, height, width, channels = shape

    def chance(purpose: str) -> tf.Tensor:
        return randomness.draw_uniform([batch, 1, 1], randomness.derive_seed(seed, purpose))

    values = tf.floor(
        256 * randomness.draw_uniform([batch, height * width, channels], randomness.derive_seed(seed, "values"))
    )
    values = tf.where(chance("extremes") < 0.5, tf.where(values < 128, 0.0, 255.0), values)
    values = tf.where(chance("grey") < 0.25, values[..., :1], values)
    sides = 1 + math.ceil(math.log2(max(height, width)))
    side = tf.cast(2 ** tf.floor(sides * chance("side")), tf.int32)
    rows, columns = tf.range(height)[None, :, None], tf.range(width)[None, None, :]
    # The two colours of a checkerboard are the first two values of the noise, so that nothing more is drawn.
    board = (rows // side + columns // side) % 2
    positions = tf.where(chance("board") < 0.5, board, rows * width + columns)
    return tf.cast(tf.gather(values, positions, batch_dims=1), tf.uint8)
