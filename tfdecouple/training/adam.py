"""Adam with decoupled weight decay, one fused operation a variable."""

from __future__ import annotations

import tensorflow as tf

from tfdecouple.config import TrainingConfig


def apply_adam(
    config: TrainingConfig,
    variable: tf.Variable,
    gradient: tf.Tensor,
    mean: tf.Variable,
    variance: tf.Variable,
    update: tf.Tensor,
    rate: tf.Tensor,
) -> None:
    """Updates one variable and its two moments in place.

    Keras' optimizers build some twenty operations a variable, which for the thousand variables of a deep flow is
    most of the time to the first step; TensorFlow's fused kernel is one, and needs no temporary copies.

    Args:
        config: holds `beta_1`, `beta_2`, `epsilon` and `weight_decay`.
        variable: the weight.
        gradient: of the shape of the weight.
        mean: first moment.
        variance: second moment.
        update: number of updates before this one, an integer scalar.
        rate: learning rate, a float32 scalar.
    """
    count = tf.cast(update + 1, tf.float64)
    power_1 = tf.cast(tf.pow(tf.constant(config.beta_1, tf.float64), count), tf.float32)
    power_2 = tf.cast(tf.pow(tf.constant(config.beta_2, tf.float64), count), tf.float32)
    if config.weight_decay:
        variable.assign_sub(variable * (rate * config.weight_decay))
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=mean.handle,
        v=variance.handle,
        beta1_power=power_1,
        beta2_power=power_2,
        lr=rate,
        beta1=config.beta_1,
        beta2=config.beta_2,
        # The kernel adds epsilon to the root before the bias correction, Adam's definition after it.
        epsilon=config.epsilon * tf.sqrt(1 - power_2),
        grad=gradient,
    )
