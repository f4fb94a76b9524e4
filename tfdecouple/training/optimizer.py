"""Adam with decoupled weight decay and averaged weights: moments and averages of each weight, and its update."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.trackable import base

from tfdecouple.config import TrainingConfig
from tfdecouple.model.gradient import flattened, is_small

# How many variables are updated at a time. Left to itself TensorFlow begins with all of them, and for a moment holds
# temporary copies of the whole model: half a gigabyte for the 52 million weights of the preset cifar10.
_AT_A_TIME = 2

# How many weights a call of the traced function updates. It is traced for so many, and once more for the rest of them.
_A_CALL = 32

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
    average_decay: tf.Tensor
    gradient_scale: tf.Tensor


class Optimizer:
    """Adam over any number of weights, with its moments and the averages of all that training moves.

    Keras' optimizers build some twenty operations a variable, which for the thousand variables of a deep flow is
    most of the time to the first step. Here the moments and averages of all small weights are one vector each, which
    one operation changes. Of the others some are one call of a function that is traced once for all shapes and takes
    its variables as handles; within it TensorFlow's fused kernel needs no temporary copies.

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
        small: names of the weights that are updated together.
    """

    def __init__(self, config: TrainingConfig, weights: _Named, statistics: _Named):
        self._config = config
        self._weights = weights
        self._statistics = statistics
        self._moved = {**weights, **statistics}
        small = {name: weight.shape for name, weight in weights.items() if is_small(weight.shape)}
        self.small = list(small)
        large = [name for name in weights if name not in small]
        self._large = [large[n : n + _A_CALL] for n in range(0, len(large), _A_CALL)]
        self._means, self._variances, self._changes = (Vector(small) for _ in range(3))
        self.means, self.variances = (
            {name: vector.pieces.get(name) or _zeros_like(weight) for name, weight in weights.items()}
            for vector in (self._means, self._variances)
        )
        averaged = {**small, **{name: statistic.shape for name, statistic in statistics.items()}}
        self._averages = Vector(averaged if config.ema_decay else {})
        self.averages = {
            name: self._averages.pieces.get(name) or _zeros_like(variable)
            for name, variable in (self._moved if config.ema_decay else {}).items()
        }
        # Called and not copied into the step: hundreds of copies would have to be placed and pruned before it runs.
        self._update = {count: self._function(count) for count in {len(names) for names in self._large}}

    def _function(self, count: int) -> Any:
        """Returns the function that updates so many weights, of whatever shapes."""
        scalar, any_shape = tf.TensorSpec((), tf.float32), tf.TensorSpec(None, tf.float32)
        handles = [tf.TensorSpec((), tf.resource)] * (4 if self._config.ema_decay else 3)
        scalars = _Scalars(*[scalar] * len(_Scalars._fields))
        return tf.function(
            self._update_some,
            autograph=False,
            input_signature=[scalars, [any_shape] * count, [handles] * count],
            experimental_attributes={"_noinline": True},
        )

    def start_averages(self) -> None:
        """Sets the averages to the weights and statistics as they are."""
        # Copies: an average that shared the memory of its weight would move away from it in the first step.
        self._set_averages(lambda name: tf.raw_ops.DeepCopy(x=self._moved[name]))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averages in the place of what they average; what training moves is back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        def taken(name: str) -> tf.Tensor:
            variable = self._moved[name]
            value = tf.identity(variable)
            variable.assign(self.averages[name].read_value())
            return value

        self._set_averages(taken)

    def _set_averages(self, value: Callable[[str], tf.Tensor]) -> None:
        """Sets each average to the value of its name: those of one vector at once, since a piece takes as long."""
        together = self._averages.pieces
        for name, average in self.averages.items():
            if name not in together:
                average.assign(value(name))
        if together:
            self._averages.assign({name: value(name) for name in together})

    def apply(
        self,
        applied: tf.Tensor,
        gradients: list[tf.Tensor],
        small: list[tf.Tensor],
        statistics: list[tf.Tensor],
        updates: tf.Tensor,
        rate: tf.Tensor,
        gradient_scale: tf.Tensor | None = None,
    ) -> None:
        """Updates weights, moments, statistics and averages in place: on a device, its copies of them.

        Args:
            applied: whether to; a boolean scalar.
            gradients: of the weights, in their order, float32.
            small: the values of the small weights, as of `read_small`.
            statistics: the new values of the statistics, in their order, float32.
            updates: number of updates before this one, an integer scalar.
            rate: learning rate, a float32 scalar.
            gradient_scale: what gradients are multiplied with, a float32 scalar, where `clip_norm` is set.
        """
        applied, updates = tf.identity(applied), tf.identity(updates)
        scalars = self._scalars(applied, updates, rate, gradient_scale)
        by_name = dict(zip(self._weights, gradients, strict=True))
        done: list[tf.Tensor] = []
        for names in self._large:
            with tf.control_dependencies(done):
                gradients = [by_name[name] for name in names]
                done = [self._update[len(names)](scalars, gradients, [self._handles(name) for name in names])]
        moved = self._update_small(scalars, by_name, small) if small else []
        if self._statistics:
            variables = list(self._statistics.values())
            new = tf.where(
                applied, flattened(statistics), flattened([_read(variable.handle) for variable in variables])
            )
            for variable, value in zip(variables, _pieces(new, variables), strict=True):
                tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
            moved.append(new)
        if self._averages.pieces:
            average = self._averages.variable.handle
            # Subtracts the multiple without a copy of it.
            change = _read(average) - tf.concat(moved, 0)
            tf.raw_ops.ResourceApplyGradientDescent(var=average, alpha=1 - scalars.average_decay, delta=change)

    def read_small(self) -> list[tf.Tensor]:
        """Returns the values of the weights that are updated together, in their order; on a device its own."""
        return [_read(self._weights[name].handle) for name in self.small]

    def _update_small(
        self, scalars: _Scalars, gradients: Mapping[str, tf.Tensor], values: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Updates the small weights together; returns their new values as a vector."""
        weights = [self._weights[name] for name in self.small]
        before, change = flattened(values), self._changes.variable.handle
        tf.raw_ops.AssignVariableOp(resource=change, value=before * -scalars.decay)
        gradient = _scaled(flattened([gradients[name] for name in self.small]), scalars)
        _apply_adam(scalars, gradient, change, self._means.variable.handle, self._variances.variable.handle)
        off = _read(change)
        for weight, value in zip(weights, _pieces(off, weights), strict=True):
            # In place: weights that got a new place in memory in each step would leave gaps everywhere.
            tf.raw_ops.AssignAddVariableOp(resource=weight.handle, value=value)
        return [before + off]

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
        average_decay = tf.minimum(config.ema_decay, (1 + before) / (10 + before))
        rate = tf.where(applied, rate, 0.0)
        return _Scalars(
            beta_1=tf.where(applied, config.beta_1, 1.0),
            beta_2=tf.where(applied, config.beta_2, 1.0),
            beta_1_power=power_1,
            beta_2_power=power_2,
            rate=rate,
            decay=rate * config.weight_decay,
            # Adam's kernel adds epsilon to the root before the bias correction, its definition after it.
            epsilon=tf.where(applied, config.epsilon * tf.sqrt(1 - power_2), 1.0),
            average_decay=tf.where(applied, average_decay, 1.0),
            gradient_scale=tf.where(applied, gradient_scale if config.clip_norm else 1.0, 0.0),
        )

    def _update_some(self, scalars: _Scalars, gradients: list[tf.Tensor], handles: list[list[tf.Tensor]]) -> tf.Tensor:
        last: list[list[tf.Operation]] = [[] for _ in range(_AT_A_TIME)]
        for number, (gradient, of_weight) in enumerate(zip(gradients, handles, strict=True)):
            with tf.control_dependencies(last[number % _AT_A_TIME]):
                last[number % _AT_A_TIME] = [self._update_one(scalars, gradient, *of_weight)]
        with tf.control_dependencies([operation for chain in last for operation in chain]):
            return tf.constant(True)

    def _update_one(
        self,
        scalars: _Scalars,
        gradient: tf.Tensor,
        weight: tf.Tensor,
        mean: tf.Tensor,
        variance: tf.Tensor,
        average: tf.Tensor | None = None,
    ) -> tf.Operation:
        if self._config.weight_decay:
            # In place, as above.
            tf.raw_ops.AssignSubVariableOp(resource=weight, value=_read(weight) * scalars.decay)
        done = _apply_adam(scalars, _scaled(gradient, scalars), weight, mean, variance)
        if average is None:
            return done
        # An average moves towards its weight as Adam's mean does towards a gradient; at a rate of 0 the kernel leaves
        # its variable, the mean, and at a beta_2 of 1 the variance as they are. It is one operation for three.
        still = scalars._replace(rate=tf.zeros([]), beta_1=scalars.average_decay, beta_2=tf.ones([]))
        return _apply_adam(still, _read(weight), mean, average, variance)


def _apply_adam(
    scalars: _Scalars, gradient: tf.Tensor, weight: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
) -> tf.Operation:
    """Updates a variable and its moments, given by their handles."""
    return tf.raw_ops.ResourceApplyAdam(
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


def _scaled(gradient: tf.Tensor, scalars: _Scalars) -> tf.Tensor:
    """Returns a gradient times its scale: 0 where the scale is 0, even for NaN."""
    return tf.math.multiply_no_nan(gradient, scalars.gradient_scale)


def _pieces(vector: tf.Tensor, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """Returns the parts of a vector in the shapes of some variables."""
    parts = tf.split(vector, [math.prod(variable.shape) for variable in variables])
    return [tf.reshape(part, variable.shape) for part, variable in zip(parts, variables, strict=True)]


def _read(handle: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)


class Vector:
    """One variable that holds what many would: an operation then changes all of them.

    Create it inside the scope of the strategy that trains.

    Args:
        shapes: of what it holds, by name, float32.

    Attributes:
        variable: the vector, zeros at first.
        pieces: what it holds, by name.
    """

    def __init__(self, shapes: Mapping[str, tf.TensorShape]):
        counts = [math.prod(shape) for shape in shapes.values()]
        self.variable = tf.Variable(tf.zeros([sum(counts)]), trainable=False)
        ends = itertools.accumulate(counts)
        self.pieces = {
            name: Piece(self.variable, end - count, shape)
            for (name, shape), count, end in zip(shapes.items(), counts, ends, strict=True)
        }

    def assign(self, values: Mapping[str, tf.Tensor]) -> None:
        """Changes all of it, by name, on all devices."""
        self.variable.assign(tf.concat([tf.reshape(values[name], [-1]) for name in self.pieces], 0))


class Piece(base.Trackable):
    """A part of a vector in the place of a variable: read, assigned, and in checkpoints as a variable of its own.

    Args:
        vector: the variable.
        start: where the part begins.
        shape: of what it stands for.
    """

    dtype = tf.float32

    def __init__(self, vector: tf.Variable, start: int, shape: tf.TensorShape):
        self._vector = vector
        self._part = slice(start, start + math.prod(shape))
        self.shape = tf.TensorShape(shape)

    def read_value(self) -> tf.Tensor:
        """Returns its value."""
        return tf.reshape(tf.convert_to_tensor(self._vector)[self._part], self.shape)

    def numpy(self) -> np.ndarray:
        """Returns its value as an array."""
        return self.read_value().numpy()

    def assign(self, value: Any) -> None:
        """Changes it, on all devices.

        Raises:
            ValueError: for another shape.
        """
        value = tf.convert_to_tensor(value, self.dtype)
        if value.shape != self.shape:
            raise ValueError(f"a value of shape {value.shape} does not fit a piece of shape {self.shape}")
        for copy in self.copies():
            # What `copy._vector[self._part].assign` comes to, but for reading that part first.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=copy._vector.handle,
                begin=[self._part.start],
                end=[self._part.stop],
                strides=[1],
                value=tf.reshape(value, [-1]),
            )

    def assign_add(self, value: Any) -> None:
        """Adds to it, on all devices."""
        self.assign(self.read_value() + value)

    def copies(self) -> tuple[Piece, ...]:
        """Returns it on each device."""
        distributed = isinstance(self._vector, tf.distribute.DistributedValues)
        vectors = self._vector.values if distributed else (self._vector,)
        return tuple(Piece(vector, self._part.start, self.shape) for vector in vectors)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype)

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {base.VARIABLE_VALUE_KEY: self.read_value()}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, tf.Tensor]) -> None:
        self.assign(restored_tensors[base.VARIABLE_VALUE_KEY])
