"""Adam with decoupled weight decay and averaged weights: what it keeps of each weight, and how it updates them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfdecouple.config import TrainingConfig

# How many variables are updated at a time. Left to itself TensorFlow begins with all of them, and for a moment holds
# temporary copies of the whole model: half a gigabyte for the 52 million weights of the preset cifar10.
_AT_A_TIME = 2

# How many weights a call of the traced function updates. It is traced for so many, and once more for the rest of them.
_A_CALL = 32

# Weights of so many numbers at most are scaled and decayed together, as one vector. Half of all are scales and shifts.
_SMALL = 2**12

_Named = Mapping[str, tf.Variable]


class _Scalars(NamedTuple):
    """What an update of all variables has in common, float32 scalars.

    Where the update is not to be applied they are such that each variable stays as it is to the last bit.
    """

    beta_1: tf.Tensor
    beta_2: tf.Tensor
    beta_1_power: tf.Tensor
    beta_2_power: tf.Tensor
    rate: tf.Tensor
    decay: tf.Tensor
    epsilon: tf.Tensor
    average_rate: tf.Tensor
    gradient_scale: tf.Tensor


class Adam:
    """Adam over any number of weights, with its moments and the averages of all that training moves.

    Keras' optimizers build some twenty operations a variable, which for the thousand variables of a deep flow is
    most of the time to the first step. Here some variables are one call of a function that is traced once for all
    shapes and takes its variables as handles; within it TensorFlow's fused kernel needs no temporary copies.

    There is no condition: on a GPU the host would have to wait for it in the middle of each step. What is not to be
    applied is an update by nothing.

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
        small = [name for name, weight in weights.items() if is_small(weight.shape)]
        self._small, self._large = (
            [names[start : start + _A_CALL] for start in range(0, len(names), _A_CALL)]
            for names in (small, [name for name in weights if name not in set(small)])
        )
        # Called and not copied into the step: a thousand copies would have to be placed and pruned before it runs.
        self._update = {
            (some is self._small, count): self._function(count, decays=some is self._small)
            for some in (self._small, self._large)
            for count in {len(names) for names in some}
        }

    def _function(self, count: int, decays: bool) -> Any:
        """Returns the function that updates so many weights, of whatever shapes.

        Args:
            count: how many.
            decays: whether it is given what is taken off each weight, and gradients that are scaled already.
        """
        scalar, any_shape = tf.TensorSpec((), tf.float32), tf.TensorSpec(None, tf.float32)
        handles = [tf.TensorSpec((), tf.resource)] * (4 if self._config.ema_decay else 3)
        scalars = _Scalars(*[scalar] * len(_Scalars._fields))
        return tf.function(
            self._update_some,
            autograph=False,
            input_signature=[scalars, [any_shape] * count, [any_shape] * count if decays else [], [handles] * count],
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
        applied = tf.identity(applied)
        scalars = self._scalars(applied, tf.identity(updates), rate, gradient_scale)
        by_name = dict(zip(self._weights, gradients, strict=True))
        decays: dict[str, tf.Tensor] = {}
        if small := [name for names in self._small for name in names]:
            scaled = _together(lambda flat: _scaled(flat, scalars), [by_name[name] for name in small])
            weights = [_read(self._weights[name].handle, self._weights[name].shape) for name in small]
            off = _together(lambda flat: flat * scalars.decay, weights) if self._config.weight_decay else scaled
            by_name.update(zip(small, scaled, strict=True))
            decays.update(zip(small, off, strict=True))
        done: list[tf.Tensor] = []
        for names in (*self._small, *self._large):
            some = [decays[name] for name in names if name in decays]
            update = self._update[bool(some), len(names)]
            with tf.control_dependencies(done):
                done = [update(scalars, [by_name[n] for n in names], some, [self._handles(n) for n in names])]
        for (name, statistic), value in zip(self._statistics.items(), statistics, strict=True):
            new = tf.where(applied, value, _read(statistic.handle))
            tf.raw_ops.AssignVariableOp(resource=statistic.handle, value=new)
            if name in self.averages:
                _move_average(self.averages[name].handle, new, scalars)

    def _handles(self, name: str) -> list[tf.Tensor]:
        """Returns the handles of what belongs to a weight: itself, its moments and its average."""
        changed = self._weights[name], self.means[name], self.variances[name], self.averages.get(name)
        return [variable.handle for variable in changed if variable is not None]

    def _scalars(
        self, applied: tf.Tensor, updates: tf.Tensor, rate: tf.Tensor, gradient_scale: tf.Tensor | None
    ) -> _Scalars:
        config = self._config
        count = tf.cast(updates + 1, tf.float64)
        power_1, power_2 = (
            tf.cast(tf.pow(tf.constant(b, tf.float64), count), tf.float32) for b in (config.beta_1, config.beta_2)
        )
        # The averages are quick at first, so that the start is soon forgotten.
        before = tf.cast(updates, tf.float32)
        average_rate = 1 - tf.minimum(config.ema_decay, (1 + before) / (10 + before))
        rate = tf.where(applied, rate, 0.0)
        return _Scalars(
            beta_1=tf.where(applied, config.beta_1, 1.0),
            beta_2=tf.where(applied, config.beta_2, 1.0),
            beta_1_power=power_1,
            beta_2_power=power_2,
            rate=rate,
            decay=rate * config.weight_decay,
            # The kernel adds epsilon to the root before the bias correction, Adam's definition after it.
            epsilon=tf.where(applied, config.epsilon * tf.sqrt(1 - power_2), 1.0),
            average_rate=tf.where(applied, average_rate, 0.0),
            gradient_scale=tf.where(applied, gradient_scale if config.clip_norm else 1.0, 0.0),
        )

    def _update_some(
        self, scalars: _Scalars, gradients: list[tf.Tensor], decays: list[tf.Tensor], handles: list[list[tf.Tensor]]
    ) -> tf.Tensor:
        last: list[list[tf.Operation]] = [[] for _ in range(_AT_A_TIME)]
        for number, (gradient, of_weight) in enumerate(zip(gradients, handles, strict=True)):
            with tf.control_dependencies(last[number % _AT_A_TIME]):
                if decays:
                    decay = decays[number]
                else:
                    gradient, decay = _scaled(gradient, scalars), _read(of_weight[0]) * scalars.decay
                last[number % _AT_A_TIME] = [self._update_one(scalars, gradient, decay, *of_weight)]
        with tf.control_dependencies([operation for chain in last for operation in chain]):
            return tf.constant(True)

    def _update_one(
        self,
        scalars: _Scalars,
        gradient: tf.Tensor,
        decay: tf.Tensor,
        weight: tf.Tensor,
        mean: tf.Tensor,
        variance: tf.Tensor,
        average: tf.Tensor | None = None,
    ) -> tf.Operation:
        if self._config.weight_decay:
            # In place: weights that got a new place in memory in each step would leave gaps everywhere.
            tf.raw_ops.AssignSubVariableOp(resource=weight, value=decay)
        done = tf.raw_ops.ResourceApplyAdam(
            var=weight,
            m=mean,
            v=variance,
            beta1_power=scalars.beta_1_power,
            beta2_power=scalars.beta_2_power,
            lr=scalars.rate,
            beta1=scalars.beta_1,
            beta2=scalars.beta_2,
            epsilon=scalars.epsilon,
            grad=gradient,
        )
        return done if average is None else _move_average(average, _read(weight), scalars)


def _move_average(average: tf.Tensor, value: tf.Tensor, scalars: _Scalars) -> tf.Operation:
    """Moves an average, given by its handle, towards a value of its shape."""
    # Subtracts the multiple without a copy of it.
    change = _read(average) - value
    return tf.raw_ops.ResourceApplyGradientDescent(var=average, alpha=scalars.average_rate, delta=change)


def _scaled(gradient: tf.Tensor, scalars: _Scalars) -> tf.Tensor:
    """Returns a gradient times its scale: 0 where the scale is 0, even for NaN."""
    return tf.math.multiply_no_nan(gradient, scalars.gradient_scale)


def _together(function: Callable[[tf.Tensor], tf.Tensor], values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns what a function of single numbers makes of each tensor, in one call for all."""
    pieces = tf.split(function(flattened(values)), [math.prod(value.shape) for value in values])
    return [tf.reshape(piece, value.shape) for piece, value in zip(pieces, values, strict=True)]


def flattened(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns all numbers of some tensors as one vector."""
    return tf.concat([tf.reshape(value, [-1]) for value in values], 0)


def is_small(shape: Sequence[int]) -> bool:
    """Returns whether a weight is one of those that are taken together."""
    return math.prod(shape) <= _SMALL


def global_norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the norm of all gradients as one vector; the small ones are put together, which is one operation."""
    small = [gradient for gradient in gradients if is_small(gradient.shape)]
    large = [gradient for gradient in gradients if not is_small(gradient.shape)]
    return tf.linalg.global_norm([*large, flattened(small)] if small else large)


def _read(handle: tf.Tensor, shape: tf.TensorShape | None = None) -> tf.Tensor:
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
    return value if shape is None else tf.ensure_shape(value, shape)


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
