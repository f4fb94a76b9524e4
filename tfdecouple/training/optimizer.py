"""The optimizer: Adam with decoupled weight decay and averaged weights."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.trackable import base

from tfdecouple.config import TrainingConfig
from tfdecouple.model.gradient import flatten_and_join, is_small_weight

# Number of large weights that are updated at the same time. Without this bound TensorFlow updates all at once and holds
# temporary copies of the whole model: half a gigabyte for the 52 million weights of the preset cifar10.
_AT_A_TIME = 2

_Named = Mapping[str, tf.Variable]


class _Scalars(NamedTuple):
    """Float32 scalars that the updates of all variables share.

    For an update that is skipped, the values are chosen so that each variable stays unchanged to the last bit.
    """

    beta_1: tf.Tensor
    beta_2: tf.Tensor
    beta_1_power: tf.Tensor
    beta_2_power: tf.Tensor
    rate: tf.Tensor
    decay: tf.Tensor
    epsilon: tf.Tensor
    average_decay: tf.Tensor
    gradient_scale: tf.Tensor


class Optimizer:
    """An Adam optimizer with averages of weights and moving statistics; create it in the scope of the strategy.

    Keras' optimizers build some twenty operations for each variable, which takes most of the time to the first step in
    a deep flow of a thousand variables. Here the moments and averages of all small weights are one vector each, which
    one operation changes. Large weights are updated by TensorFlow's fused kernel, which needs no temporary copies.

    The graph has no condition, because on a GPU the host would wait for it in the middle of each step. A skipped update
    is an update by zero.

    Args:
        config: the options of training.
        weights: the trainable weights by name.
        statistics: moving statistics by name, which are averaged like the weights.

    Attributes:
        means, variances: the first and second moments by name of the weight.
        averages: averages over the updates by name of weight or statistic; empty where `ema_decay` is 0.
    """

    def __init__(self, config: TrainingConfig, weights: _Named, statistics: _Named):
        self._config = config
        self._weights = weights
        self._statistics = statistics
        self._averaged = {**weights, **statistics} if config.ema_decay else {}
        small = {name: weight.shape for name, weight in weights.items() if is_small_weight(weight.shape)}
        self._small = list(small)
        self._large = [name for name in weights if name not in small]
        self._means, self._variances = FlatBuffer(small), FlatBuffer(small)
        self._changes = tf.Variable(tf.zeros_like(self._means.variable), trainable=False)
        self.means, self.variances = (
            {name: buffer.views.get(name) or _zeros_like(weight) for name, weight in weights.items()}
            for buffer in (self._means, self._variances)
        )
        together = {**small, **{name: statistic.shape for name, statistic in statistics.items()}}
        self._averages = FlatBuffer(together if config.ema_decay else {})
        self.averages = {
            name: self._averages.views.get(name) or _zeros_like(variable) for name, variable in self._averaged.items()
        }

    def start_averages(self) -> None:
        """Sets the averages to the current weights and statistics."""
        for name, average in self.averages.items():
            # The value is copied, because an average that shared its weight's memory would change with the weight.
            average.assign(tf.raw_ops.DeepCopy(x=self._averaged[name]))

    @contextlib.contextmanager
    def use_averages(self) -> Iterator[None]:
        """Returns a context inside which weights and statistics are replaced by their averages."""
        self._swap_averages()
        try:
            yield
        finally:
            self._swap_averages()

    def _swap_averages(self) -> None:
        for name, average in self.averages.items():
            variable = self._averaged[name]
            value = tf.identity(variable)
            variable.assign(average.read_value())
            average.assign(value)

    def apply_update(
        self,
        applied: tf.Tensor,
        gradients: list[tf.Tensor],
        statistics: list[tf.Tensor],
        updates: tf.Tensor,
        rate: tf.Tensor,
        gradient_scale: tf.Tensor | None = None,
    ) -> None:
        """Updates weights, moments, statistics and averages in place; in a replica, those of the replica's device.

        Args:
            applied: whether to apply the update, a boolean scalar.
            gradients: gradients of the weights, in their order.
            statistics: the new values of the statistics, in their order.
            updates: number of updates before this one.
            rate: learning rate.
            gradient_scale: factor of the gradients; None where `clip_norm` is not set.
        """
        applied, updates = tf.identity(applied), tf.identity(updates)
        scalars = self._scalars(applied, updates, rate, gradient_scale)
        by_name = dict(zip(self._weights, gradients, strict=True))
        chains: list[list[tf.Operation]] = [[] for _ in range(_AT_A_TIME)]
        for number, name in enumerate(self._large):
            with tf.control_dependencies(chains[number % _AT_A_TIME]):
                chains[number % _AT_A_TIME] = [self._update_large(scalars, by_name[name], name)]
        new_values = self._update_small(scalars, by_name) if self._small else []
        if self._statistics:
            variables = list(self._statistics.values())
            new = tf.where(
                applied,
                flatten_and_join(statistics),
                flatten_and_join([_read(variable.handle) for variable in variables]),
            )
            for variable, value in zip(variables, _split_like(new, variables), strict=True):
                tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
            new_values.append(new)
        if self._averages.views:
            average = self._averages.variable.handle
            change = _read(average) - tf.concat(new_values, 0)
            # This operation subtracts the scaled change without another copy of the averages.
            tf.raw_ops.ResourceApplyGradientDescent(var=average, alpha=1 - scalars.average_decay, delta=change)

    def _update_small(self, scalars: _Scalars, gradients: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """Returns a list with the new values of the small weights as one vector, after updating them together."""
        weights = [self._weights[name] for name in self._small]
        before, change = flatten_and_join([_read(weight.handle) for weight in weights]), self._changes.handle
        tf.raw_ops.AssignVariableOp(resource=change, value=before * -scalars.decay)
        gradient = _scale(flatten_and_join([gradients[name] for name in self._small]), scalars)
        _apply_adam(scalars, gradient, change, self._means.variable.handle, self._variances.variable.handle)
        difference = _read(change)
        for weight, value in zip(weights, _split_like(difference, weights), strict=True):
            # Adding in place keeps each weight at its address; new addresses in each step would leave gaps in memory.
            tf.raw_ops.AssignAddVariableOp(resource=weight.handle, value=value)
        return [before + difference]

    def _update_large(self, scalars: _Scalars, gradient: tf.Tensor, name: str) -> tf.Operation:
        weight, mean, variance = (each[name].handle for each in (self._weights, self.means, self.variances))
        if self._config.weight_decay:
            tf.raw_ops.AssignSubVariableOp(resource=weight, value=_read(weight) * scalars.decay)
        done = _apply_adam(scalars, _scale(gradient, scalars), weight, mean, variance)
        if name not in self.averages:
            return done
        # Adam's kernel averages weights as it averages gradients, in one operation instead of three. At a rate of 0 it
        # leaves its variable (here the mean) unchanged, and at a beta_2 of 1 the variance.
        still = scalars._replace(rate=tf.zeros([]), beta_1=scalars.average_decay, beta_2=tf.ones([]))
        return _apply_adam(still, _read(weight), mean, self.averages[name].handle, variance)

    def _scalars(
        self, applied: tf.Tensor, updates: tf.Tensor, rate: tf.Tensor, gradient_scale: tf.Tensor | None
    ) -> _Scalars:
        config = self._config
        count = tf.cast(updates + 1, tf.float64)
        power_1, power_2 = (
            tf.cast(tf.pow(tf.constant(b, tf.float64), count), tf.float32) for b in (config.beta_1, config.beta_2)
        )
        # The decay is small in the first updates, so that the averages soon forget the initial weights.
        before = tf.cast(updates, tf.float32)
        average_decay = tf.minimum(config.ema_decay, (1 + before) / (10 + before))
        rate = tf.where(applied, rate, 0.0)
        return _Scalars(
            beta_1=tf.where(applied, config.beta_1, 1.0),
            beta_2=tf.where(applied, config.beta_2, 1.0),
            beta_1_power=power_1,
            beta_2_power=power_2,
            rate=rate,
            decay=rate * config.weight_decay,
            # Epsilon is scaled, because the kernel adds it before the bias correction, and Adam's definition after it.
            epsilon=tf.where(applied, config.epsilon * tf.sqrt(1 - power_2), 1.0),
            average_decay=tf.where(applied, average_decay, 1.0),
            gradient_scale=tf.where(applied, gradient_scale if config.clip_norm else 1.0, 0.0),
        )


def _apply_adam(
    scalars: _Scalars, gradient: tf.Tensor, weight: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
) -> tf.Operation:
    """Updates a weight and its moments, given by their resource handles, and returns the operation."""
    powers = {"beta1_power": scalars.beta_1_power, "beta2_power": scalars.beta_2_power}
    options = {"beta1": scalars.beta_1, "beta2": scalars.beta_2, "epsilon": scalars.epsilon, "lr": scalars.rate}
    return tf.raw_ops.ResourceApplyAdam(var=weight, m=mean, v=variance, grad=gradient, **powers, **options)


def _scale(gradient: tf.Tensor, scalars: _Scalars) -> tf.Tensor:
    """Returns a gradient times the scale in `scalars`; where the scale is 0, the product is 0 even for NaN."""
    return tf.math.multiply_no_nan(gradient, scalars.gradient_scale)


def _split_like(vector: tf.Tensor, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """Returns consecutive parts of a vector, each in the shape of one of the variables."""
    parts = tf.split(vector, [math.prod(variable.shape) for variable in variables])
    return [tf.reshape(part, variable.shape) for part, variable in zip(parts, variables, strict=True)]


def _read(handle: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)


class FlatBuffer:
    """A vector of zeros instead of many float32 variables, so that one operation changes all of them.

    Attributes:
        variable: the vector.
        views: a `BufferView` for each of the variables that it replaces, by name.
    """

    def __init__(self, shapes: Mapping[str, tf.TensorShape]):
        counts = [math.prod(shape) for shape in shapes.values()]
        self.variable = tf.Variable(tf.zeros([sum(counts)]), trainable=False)
        starts = itertools.accumulate(counts, initial=0)
        self.views = {
            name: BufferView(self.variable, start, shape)
            for (name, shape), start in zip(shapes.items(), starts, strict=False)
        }


class BufferView(base.Trackable):
    """A view of a part of a vector, from an index on, that is read, assigned and saved like a variable of a shape."""

    dtype = tf.float32

    def __init__(self, vector: tf.Variable, start: int, shape: tf.TensorShape):
        self._vector = vector
        self._part = slice(start, start + math.prod(shape))
        self.shape = tf.TensorShape(shape)

    def read_value(self) -> tf.Tensor:
        """Returns the value of the view as a tensor, float32."""
        return tf.reshape(tf.convert_to_tensor(self._vector)[self._part], self.shape)

    def numpy(self) -> np.ndarray:
        """Returns the value of the view as an array, float32."""
        return self.read_value().numpy()

    def assign(self, value: Any) -> None:
        """Sets the value of the view on all devices; raises ValueError for a value of another shape."""
        value = tf.convert_to_tensor(value, self.dtype)
        if value.shape != self.shape:
            raise ValueError(f"a value of shape {value.shape} does not fit a view of shape {self.shape}")
        for copy in self.device_copies():
            # The sliced assignment of `tf.Variable` would read the slice first, which costs a copy.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=copy._vector.handle,
                begin=[self._part.start],
                end=[self._part.stop],
                strides=[1],
                value=tf.reshape(value, [-1]),
            )

    def device_copies(self) -> tuple[BufferView, ...]:
        """Returns a view into each device's copy of the vector."""
        distributed = isinstance(self._vector, tf.distribute.DistributedValues)
        vectors = self._vector.values if distributed else (self._vector,)
        return tuple(BufferView(vector, self._part.start, self.shape) for vector in vectors)

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {base.VARIABLE_VALUE_KEY: self.read_value()}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, tf.Tensor]) -> None:
        self.assign(restored_tensors[base.VARIABLE_VALUE_KEY])
