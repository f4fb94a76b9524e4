"""Adam with decoupled weight decay, one fused operation a variable."""

from __future__ import annotations

import tensorflow as tf

from tfdecouple.config import TrainingConfig


class Adam:
    """One update of Adam, for any number of variables.

    Keras' optimizers build some twenty operations a variable, which for the thousand variables of a deep flow is
    most of the time to the first step; TensorFlow's fused kernel is one, and needs no temporary copies.

    Args:
        config: holds `beta_1`, `beta_2`, `epsilon` and `weight_decay`.
        updates: number of updates before this one, an integer scalar.
        rate: learning rate, a float32 scalar.
    """

    def __init__(self, config: TrainingConfig, updates: tf.Tensor, rate: tf.Tensor):
        count = tf.cast(updates + 1, tf.float64)
        powers = [
            tf.cast(tf.pow(tf.constant(b, tf.float64), count), tf.float32) for b in (config.beta_1, config.beta_2)
        ]
        self._options = {
            "beta1_power": powers[0],
            "beta2_power": powers[1],
            "lr": rate,
            "beta1": tf.constant(config.beta_1),
            "beta2": tf.constant(config.beta_2),
            # The kernel adds epsilon to the root before the bias correction, Adam's definition after it.
            "epsilon": config.epsilon * tf.sqrt(1 - powers[1]),
        }
        self._decay = rate * config.weight_decay if config.weight_decay else None

    def apply(
        self, variable: tf.Variable, gradient: tf.Tensor, mean: tf.Variable, variance: tf.Variable
    ) -> tf.Operation | None:
        """Updates one variable and its two moments in place.

        Args:
            variable: the weight.
            gradient: of the shape of the weight.
            mean: its first moment.
            variance: its second moment.

        Returns:
            The operation in a graph, None in eager execution.
        """
        if self._decay is not None:
            # Assigned, not subtracted: the product becomes the variable without another pass over memory.
            variable.assign(variable * (1 - self._decay), read_value=False)
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=mean.handle, v=variance.handle, grad=gradient, **self._options
        )
