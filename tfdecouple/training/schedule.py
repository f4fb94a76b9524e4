"""What changes from update to update: the learning rate (paper appendix C.2) and the weight of the KL term."""

from __future__ import annotations

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

    Linear from 0 to `kl_weight` over `kl_warmup_steps` updates, then constant. The paper has 1 throughout.

    Args:
        config: holds `kl_weight` and `kl_warmup_steps`.
        update: number of updates applied before this one, an integer scalar.
    """
    risen = tf.cast(update, tf.float32) / max(config.kl_warmup_steps, 1)
    return config.kl_weight * (tf.minimum(1.0, risen) if config.kl_warmup_steps else tf.ones_like(risen))
