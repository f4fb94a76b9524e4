"""Adam with decoupled weight decay and averaged weights: what it keeps of each weight, and how it updates them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import tensorflow as tf

from tfdecouple.config import TrainingConfig

# How many variables are updated at a time. Left to itself TensorFlow begins with all of them, and for a moment holds
# temporary copies of the whole model: half a gigabyte for the 52 million weights of the preset cifar10.
_AT_A_TIME = 2

_Named = Mapping[str, tf.Variable]


class _Scalars(NamedTuple):
    """What an update of all variables has in common, float32 scalars."""

    beta_1_power: tf.Tensor
    beta_2_power: tf.Tensor
    rate: tf.Tensor
    epsilon: tf.Tensor
    average_decay: tf.Tensor
    gradient_scale: tf.Tensor


class Adam:
    """Adam over any number of weights, with its moments and the averages of all that training moves.

    Keras' optimizers build some twenty operations a variable, which for the thousand variables of a deep flow is
    most of the time to the first step. Here a variable is one call of a function that is traced once for all shapes
    and takes its variables as handles; within it TensorFlow's fused kernel needs no temporary copies.

    Create it inside the scope of the strategy that trains.

    Args:
        config: holds `beta_1`, `beta_2`, `epsilon`, `weight_decay`, `clip_norm` and `ema_decay`.
        weights: the trainable weights by name.
        statistics: moving statistics by name, which are averaged with the weights that they belong to.

    Attributes:
        means, variances: the first and second moments by name of the weight.
        averages: averages over the updates by name of weight or statistic; empty where `ema_decay` is 0.
    """

    def __init__(self, config: TrainingConfig, weights: _Named, statistics: _Named):
        self._config = config
        self._weights = weights
        self._statistics = statistics
        self._moved = {**weights, **statistics}
        self.means = {name: _zeros_like(weight) for name, weight in weights.items()}
        self.variances = {name: _zeros_like(weight) for name, weight in weights.items()}
        averaged = self._moved if config.ema_decay else {}
        self.averages = {name: _zeros_like(variable) for name, variable in averaged.items()}
        # Called and not copied into the step: a thousand copies would have to be placed and pruned before it runs.
        scalars, of_any_shape = _Scalars(*[tf.TensorSpec((), tf.float32)] * 6), tf.TensorSpec(None, tf.float32)
        handles = [tf.TensorSpec((), tf.resource)] * (4 if config.ema_decay else 3)
        self._update = tf.function(
            self._update_one,
            autograph=False,
            input_signature=[tf.TensorSpec((), tf.bool), of_any_shape, scalars, handles],
            experimental_attributes={"_noinline": True},
        )

    def start_averages(self) -> None:
        """Sets the averages to the weights and statistics as they are."""
        for name, average in self.averages.items():
            # A copy: an average that shared the memory of its weight would move away from it in the first step.
            average.assign(tf.raw_ops.DeepCopy(x=self._moved[name]))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averages in the place of what they average; what training moves is back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, average in self.averages.items():
            variable = self._moved[name]
            value = tf.identity(variable)
            variable.assign(average)
            average.assign(value)

    def apply(
        self,
        applied: tf.Tensor,
        gradients: list[tf.Tensor],
        statistics: list[tf.Tensor],
        updates: tf.Tensor,
        rate: tf.Tensor,
        gradient_scale: tf.Tensor | None = None,
    ) -> None:
        """Updates weights, moments, statistics and averages in place: on a device, its copies of them.

        Args:
            applied: whether to; a boolean scalar.
            gradients: of the weights, in their order, float32.
            statistics: the new values of the statistics, in their order, float32.
            updates: number of updates before this one, an integer scalar.
            rate: learning rate, a float32 scalar.
            gradient_scale: what gradients are multiplied with, a float32 scalar, where `clip_norm` is set.
        """
        applied, scalars = tf.identity(applied), self._scalars(tf.identity(updates), rate, gradient_scale)
        last: list[list[tf.Operation]] = [[] for _ in range(_AT_A_TIME)]
        for number, (name, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            changed = self._weights[name], self.means[name], self.variances[name], self.averages.get(name)
            handles = [variable.handle for variable in changed if variable is not None]
            with tf.control_dependencies(last[number % _AT_A_TIME]):
                done = self._update(applied, gradient, scalars, handles)
            last[number % _AT_A_TIME] = [done]
        kept = scalars._replace(average_decay=tf.where(applied, scalars.average_decay, 1.0))
        for (name, statistic), value in zip(self._statistics.items(), statistics, strict=True):
            new = tf.where(applied, value, _read(statistic.handle))
            tf.raw_ops.AssignVariableOp(resource=statistic.handle, value=new)
            if name in self.averages:
                _move_average(self.averages[name].handle, new, kept)

    def _scalars(self, updates: tf.Tensor, rate: tf.Tensor, gradient_scale: tf.Tensor | None) -> _Scalars:
        config = self._config
        count = tf.cast(updates + 1, tf.float64)
        power_1, power_2 = (
            tf.cast(tf.pow(tf.constant(b, tf.float64), count), tf.float32) for b in (config.beta_1, config.beta_2)
        )
        # The averages are quick at first, so that the start is soon forgotten.
        before = tf.cast(updates, tf.float32)
        return _Scalars(
            beta_1_power=power_1,
            beta_2_power=power_2,
            rate=tf.identity(rate),
            # The kernel adds epsilon to the root before the bias correction, Adam's definition after it.
            epsilon=config.epsilon * tf.sqrt(1 - power_2),
            average_decay=tf.minimum(config.ema_decay, (1 + before) / (10 + before)),
            gradient_scale=tf.constant(1.0) if gradient_scale is None else tf.identity(gradient_scale),
        )

    def _update_one(
        self, applied: tf.Tensor, gradient: tf.Tensor, scalars: _Scalars, handles: list[tf.Tensor]
    ) -> tf.Tensor:
        config = self._config
        weight, mean, variance, *averages = handles

        def update() -> tf.Tensor:
            if config.weight_decay:
                # In place: weights that got a new place in memory in each step would leave gaps everywhere.
                decayed = _read(weight) * (scalars.rate * config.weight_decay)
                tf.raw_ops.AssignSubVariableOp(resource=weight, value=decayed)
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
                _move_average(average, _read(weight), scalars)
            return tf.constant(True)

        return tf.cond(applied, update, lambda: tf.constant(False))


def _move_average(average: tf.Tensor, value: tf.Tensor, scalars: _Scalars) -> None:
    """Moves an average, given by its handle, towards a value of its shape."""
    # Subtracts the multiple without a copy of it.
    change = _read(average) - value
    tf.raw_ops.ResourceApplyGradientDescent(var=average, alpha=1 - scalars.average_decay, delta=change)


def _read(handle: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
