"""What changes from update to update: learning rate (paper appendix C.2), weight of the KL term, images."""

from __future__ import annotations

import math

import tensorflow as tf

from tfdecouple.config import TrainingConfig

# Where the warm-up begins, in the paper's code.
WARMUP_START = 1e-7


def learning_rate(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate of an update, float32.

    Linear from 1e-7 to the peak over `warmup_steps` updates, then exponential decay per update, without a floor.

    Args:
        config: holds `learning_rate`, `warmup_steps` and `decay_rate`.
        update: number of updates applied before this one, an integer scalar.
    """
    # In float64: 0.999997 to the power of a million is beyond what float32 can hold of its base.
    update = tf.cast(update, tf.float64)
    peak, warmup = tf.constant(config.learning_rate, tf.float64), float(config.warmup_steps)
    rising = WARMUP_START + (peak - WARMUP_START) * update / max(warmup, 1.0)
    falling = peak * tf.pow(tf.constant(config.decay_rate, tf.float64), update - warmup)
    return tf.cast(tf.where(update < warmup, rising, falling), tf.float32)


def kl_weight(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the weight of the KL term in the loss of an update, float32.

    Linear from 0 to `kl_weight` over `kl_warmup_steps`, then constant. The paper has 1 throughout.

    Args:
        config: holds `kl_weight` and `kl_warmup_steps`.
        update: number of updates applied before this one, an integer scalar.
    """
    if not config.kl_warmup_steps:
        return tf.constant(config.kl_weight)
    return config.kl_weight * tf.minimum(tf.cast(update, tf.float32) / config.kl_warmup_steps, 1.0)


def noise(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the standard deviation of the noise on the images of an update, in pixel values, float32.

    Half a cosine from `noise` to 0 over `noise_steps` updates, then 0 (as Tschannen et al., 2024, have it).

    Args:
        config: holds `noise` and `noise_steps`.
        update: number of updates applied before this one, an integer scalar.
    """
    done = tf.minimum(1.0, tf.cast(update, tf.float32) / max(config.noise_steps, 1))
    return config.noise * tf.where(done < 1, (1 + tf.cos(math.pi * done)) / 2, 0.0)


def patterns(config: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the share of the images of an update that give way to patterns, float32.

    0 in the first `patterns_after` updates, then `patterns`.

    Args:
        config: holds `patterns` and `patterns_after`.
        update: number of updates applied before this one, an integer scalar.
    """
    return config.patterns * tf.cast(update >= config.patterns_after, tf.float32)


def with_noise(images: tf.Tensor, deviation: tf.Tensor, normal: tf.Tensor) -> tf.Tensor:
    """Returns images with noise, rounded and clipped to 0..255, uint8; the same where the deviation is 0.

    Args:
        images: uint8.
        deviation: standard deviation in pixel values, a scalar.
        normal: standard normal noise, float32 of the shape of images.
    """
    noisy = tf.round(tf.cast(images, tf.float32) + deviation * normal)
    return tf.cast(tf.clip_by_value(noisy, 0.0, 255.0), tf.uint8)
