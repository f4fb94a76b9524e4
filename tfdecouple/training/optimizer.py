"""Adam with decoupled weight decay and averaged weights, one traced function for all variables."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfdecouple.config import TrainingConfig


class Variables(NamedTuple):
    """What one update changes, on one device, all of one shape.

    Attributes:
        weight: the weight.
        mean: its first moment.
        variance: its second moment.
        average: its average over the updates, or None where the run keeps none.
    """

    weight: tf.Variable
    mean: tf.Variable
    variance: tf.Variable
    average: tf.Variable | None


class Scalars(NamedTuple):
    """What an update of all variables has in common, scalars; see `Adam.scalars`."""

    beta_1_power: tf.Tensor
    beta_2_power: tf.Tensor
    rate: tf.Tensor
    epsilon: tf.Tensor
    average_decay: tf.Tensor
    gradient_scale: tf.Tensor


class Adam:
    """Updates of Adam, for any number of variables.

    Keras' optimizers build some twenty operations a variable, which for the thousand variables of a deep flow is
    most of the time to the first step. Here a variable is one call of a function that is traced once for all shapes
    and takes its variables as handles; within it TensorFlow's fused kernel needs no temporary copies.

    Args:
        config: holds `beta_1`, `beta_2`, `epsilon`, `weight_decay`, `clip_norm` and `ema_decay`.
    """

    def __init__(self, config: TrainingConfig):
        self._config = config
        # Called and not copied into the step: a thousand copies would have to be placed and pruned before it runs.
        scalars, of_any_shape = Scalars(*[tf.TensorSpec((), tf.float32)] * 6), tf.TensorSpec(None, tf.float32)
        # By the number of handles, without an average and with one.
        self._update = {
            count: tf.function(
                self._update_one,
                autograph=False,
                input_signature=[
                    tf.TensorSpec((), tf.bool),
                    of_any_shape,
                    scalars,
                    [tf.TensorSpec((), tf.resource)] * count,
                ],
                experimental_attributes={"_noinline": True},
            )
            for count in (3, 4)
        }

    def scalars(self, updates: tf.Tensor, rate: tf.Tensor, gradient_scale: tf.Tensor | None) -> Scalars:
        """Returns what the updates of all variables have in common.

        Args:
            updates: number of updates before this one, an integer scalar.
            rate: learning rate, a float32 scalar.
            gradient_scale: what gradients are multiplied with, a float32 scalar; None for nothing.
        """
        config = self._config
        count = tf.cast(updates + 1, tf.float64)
        power_1, power_2 = (
            tf.cast(tf.pow(tf.constant(b, tf.float64), count), tf.float32) for b in (config.beta_1, config.beta_2)
        )
        return Scalars(
            beta_1_power=power_1,
            beta_2_power=power_2,
            rate=tf.identity(rate),
            # The kernel adds epsilon to the root before the bias correction, Adam's definition after it.
            epsilon=config.epsilon * tf.sqrt(1 - power_2),
            average_decay=self.average_decay(updates),
            gradient_scale=tf.constant(1.0) if gradient_scale is None else tf.identity(gradient_scale),
        )

    def average_decay(self, updates: tf.Tensor) -> tf.Tensor:
        """Returns the decay of the averages in this update: smaller at first, so that the start is soon forgotten."""
        count = tf.cast(updates, tf.float32)
        return tf.minimum(self._config.ema_decay, (1 + count) / (10 + count))

    def apply(self, applied: tf.Tensor, variables: Variables, gradient: tf.Tensor, scalars: Scalars) -> tf.Operation:
        """Updates one variable, its two moments and its average in place.

        Args:
            applied: whether to; a boolean scalar.
            variables: what to update.
            gradient: of the shape of the weight.
            scalars: as `scalars` returns them.

        Returns:
            The operation, in a graph.
        """
        handles = [variable.handle for variable in variables if variable is not None]
        return self._update[len(handles)](applied, gradient, scalars, handles).op

    def _update_one(
        self, applied: tf.Tensor, gradient: tf.Tensor, scalars: Scalars, handles: list[tf.Tensor]
    ) -> tf.Tensor:
        config = self._config
        weight, mean, variance, *averages = handles

        def update() -> tf.Tensor:
            if config.weight_decay:
                # In place: weights that got a new place in memory in each step would leave gaps everywhere.
                value = tf.raw_ops.ReadVariableOp(resource=weight, dtype=gradient.dtype)
                value *= scalars.rate * config.weight_decay
                tf.raw_ops.AssignSubVariableOp(resource=weight, value=value)
            tf.raw_ops.ResourceApplyAdam(
                var=weight,
                m=mean,
                v=variance,
                beta1_power=scalars.beta_1_power,
                beta2_power=scalars.beta_2_power,
                lr=scalars.rate,
                beta1=tf.constant(config.beta_1),
                beta2=tf.constant(config.beta_2),
                epsilon=scalars.epsilon,
                grad=gradient * scalars.gradient_scale if config.clip_norm else gradient,
            )
            for average in averages:
                move_average(average, tf.raw_ops.ReadVariableOp(resource=weight, dtype=gradient.dtype), scalars)
            return tf.constant(True)

        return tf.cond(applied, update, lambda: tf.constant(False))


def move_average(average: tf.Tensor, value: tf.Tensor, scalars: Scalars) -> None:
    """Moves an average, given by its handle, towards a value of its shape."""
    old = tf.raw_ops.ReadVariableOp(resource=average, dtype=value.dtype)
    # Subtracts the multiple without a copy of it.
    tf.raw_ops.ResourceApplyGradientDescent(var=average, alpha=1 - scalars.average_decay, delta=old - value)
