"""The optimizers Adam and Muon, with decoupled weight decay and running averages of the weights."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple.config import TrainingConfig
from tfdecouple.numerics.arithmetic import flatten_and_join, is_small_weight

# At most this many large weights are updated at the same time. Without a limit, TensorFlow would update all at once and
# hold temporary copies of all weights: half a gigabyte for the 52 million weights of the preset cifar10.
_LARGE_AT_ONCE = 2

# Muon's momentum, and coefficients of the polynomial that orthogonalises a matrix in a few steps (Jordan, 2024).
_MOMENTUM, _COEFFICIENTS, _ORTHOGONALIZING_STEPS = 0.95, (3.4445, -4.7750, 2.0315), 5

_Named = Mapping[str, tf.Variable]


class _UpdateScalars(NamedTuple):
    """Float32 scalars of one update; in a skipped update their values keep all variables unchanged."""

    adam: dict[str, tf.Tensor]  # arguments of TensorFlow's kernel for Adam
    decay: tf.Tensor
    average_decay: tf.Tensor
    gradient_scale: tf.Tensor
    momentum: tf.Tensor


class Optimizer:
    """Adam or Muon, with running averages of weights and moving statistics; create it in `strategy.scope()`.

    Keras' optimizers build some twenty operations for each variable, and a deep flow has a thousand variables. Here one
    vector has the first moments of all small weights, a second one the second moments, and a third one the averages;
    one operation changes each vector. TensorFlow's fused kernel updates each large weight without temporary copies.
    Muon's small kernels of equal shape share one vector of momenta, so that they are orthogonalised together. A skipped
    update adds zero to every variable, because for a `tf.cond` the host would have to wait for a GPU in each step.

    Args:
        training: the options of training.
        weights, statistics: trainable weights, and moving statistics of batch normalisation: variables by name.

    Attributes:
        means, variances: the first and second moments of the gradients by name; Muon's kernels have no second ones.
        averages: running averages by name of the weight or statistic; empty if `ema_decay` is 0.
    """

    def __init__(self, training: TrainingConfig, weights: _Named, statistics: _Named):
        self._training = training
        self._weights = weights
        self._statistics = statistics
        self._averaged = {**weights, **statistics} if training.ema_decay else {}
        groups = _group_kernels(weights) if training.optimizer == "muon" else []
        self._kernels = [(names, FlatBuffer({name: weights[name].shape for name in names})) for names in groups]
        momenta = {name: view for _, buffer in self._kernels for name, view in buffer.views.items()}
        by_adam = {name: weight for name, weight in weights.items() if name not in momenta}
        small = {name: weight.shape for name, weight in by_adam.items() if is_small_weight(weight.shape)}
        self._small = list(small)
        self._large = [name for name in by_adam if name not in small]
        self._means, self._variances = FlatBuffer(small), FlatBuffer(small)
        self._changes = tf.Variable(tf.zeros_like(self._means.variable), trainable=False)
        self.means, self.variances = (
            {name: buffer.views.get(name) or _make_zero_variable(weight) for name, weight in by_adam.items()}
            for buffer in (self._means, self._variances)
        )
        self.means |= momenta
        kernels = {name: weights[name].shape for name in momenta if is_small_weight(weights[name].shape)}
        together = {**small, **kernels, **{name: statistic.shape for name, statistic in statistics.items()}}
        self._averages = FlatBuffer(together if training.ema_decay else {})
        self.averages = {
            name: self._averages.views.get(name) or _make_zero_variable(variable)
            for name, variable in self._averaged.items()
        }

    def start_averages(self) -> None:
        """Sets this optimizer's running averages to the current values of the weights and moving statistics."""
        for name, average in self.averages.items():
            # Without a copy, the average would share the weight's memory, and in-place updates would change both.
            average.assign(tf.raw_ops.DeepCopy(x=self._averaged[name]))

    @contextlib.contextmanager
    def use_averages(self) -> Iterator[None]:
        """Returns a context in which the weights and moving statistics have the values of their running averages."""
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
        """Updates weights, moments, statistics and averages on the device of the replica that calls this method.

        `gradients` and new values of the moving `statistics` are in the order of the constructor's arguments. All other
        arguments are scalars: whether the update is `applied`, the count of `updates` before it, the learning `rate`,
        and the `gradient_scale` that clips the gradients (None if `clip_norm` is 0).
        """
        applied, updates = tf.identity(applied), tf.identity(updates)
        scalars = self._compute_update_scalars(applied, updates, rate, gradient_scale)
        by_name = dict(zip(self._weights, gradients, strict=True))
        chains: list[list[tf.Operation]] = [[] for _ in range(_LARGE_AT_ONCE)]
        for number, name in enumerate(self._large):
            with tf.control_dependencies(chains[number % _LARGE_AT_ONCE]):
                chains[number % _LARGE_AT_ONCE] = [self._update_large(scalars, by_name[name], name)]
        groups = [(self._small, self._compute_adam_change)] if self._small else []
        groups += [(names, functools.partial(self._compute_muon_change, buffer)) for names, buffer in self._kernels]
        new_values = []
        for names, compute_change in groups:
            after = self._update_joined(scalars, by_name, names, compute_change)
            if is_small_weight(self._weights[names[0]].shape):
                new_values.append(after)
            elif names[0] in self.averages:
                average = self.averages[names[0]]
                _move_average(average.handle, tf.reshape(after, average.shape), scalars)
        if self._statistics:
            variables = list(self._statistics.values())
            new = tf.where(applied, flatten_and_join(statistics), _join_variables(variables))
            for variable, value in zip(variables, _split_vector_like(new, variables), strict=True):
                tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
            new_values.append(new)
        if self._averages.views:
            _move_average(self._averages.variable.handle, tf.concat(new_values, 0), scalars)

    def _update_joined(
        self,
        scalars: _UpdateScalars,
        gradients: Mapping[str, tf.Tensor],
        names: list[str],
        compute_change: Callable[[_UpdateScalars, tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> tf.Tensor:
        """Adds `compute_change(scalars, weights, gradient)` to weights joined to a vector; returns their new values."""
        weights = [self._weights[name] for name in names]
        before, gradient = _join_variables(weights), flatten_and_join([gradients[name] for name in names])
        # A scale of 0 gives 0 even where the gradient is NaN.
        gradient = tf.math.multiply_no_nan(gradient, scalars.gradient_scale)
        change = compute_change(scalars, before, gradient)
        for weight, value in zip(weights, _split_vector_like(change, weights), strict=True):
            # Weights are changed in place, because new buffers in each step would fragment the device's memory.
            tf.raw_ops.AssignAddVariableOp(resource=weight.handle, value=value)
        return before + change

    def _compute_adam_change(self, scalars: _UpdateScalars, before: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        change, mean, variance = (
            buffer.handle for buffer in (self._changes, self._means.variable, self._variances.variable)
        )
        tf.raw_ops.AssignVariableOp(resource=change, value=before * -scalars.decay)
        tf.raw_ops.ResourceApplyAdam(var=change, m=mean, v=variance, grad=gradient, **scalars.adam)
        return _read_variable(change)

    def _compute_muon_change(
        self, momenta: FlatBuffer, scalars: _UpdateScalars, before: tf.Tensor, gradient: tf.Tensor
    ) -> tf.Tensor:
        """Returns the change by Muon of kernels of one shape, joined to one vector; also updates the momenta."""
        handle, shape = momenta.variable.handle, next(iter(momenta.views.values())).shape
        old = _read_variable(handle)
        new = old + (1 - scalars.momentum) * (gradient - old)
        tf.raw_ops.AssignVariableOp(resource=handle, value=new)
        rows, columns = math.prod(shape[:-1]), shape[-1]
        # The direction is Nesterov's: the momentum one step ahead.
        ahead = tf.reshape(new + (1 - _MOMENTUM) * (gradient - new), [-1, rows, columns])
        ratio = self._training.matrix_rate / (self._training.learning_rate or 1) * max(1, rows / columns) ** 0.5
        rate = scalars.adam["lr"] * ratio
        return -rate * tf.reshape(orthogonalize(ahead), [-1]) - scalars.decay * before

    def _update_large(self, scalars: _UpdateScalars, gradient: tf.Tensor, name: str) -> tf.Operation:
        weight, mean, variance = (group[name].handle for group in (self._weights, self.means, self.variances))
        if self._training.weight_decay:
            tf.raw_ops.AssignSubVariableOp(resource=weight, value=_read_variable(weight) * scalars.decay)
        gradient = tf.math.multiply_no_nan(gradient, scalars.gradient_scale)
        done = tf.raw_ops.ResourceApplyAdam(var=weight, m=mean, v=variance, grad=gradient, **scalars.adam)
        if name not in self.averages:
            return done
        # Adam's kernel computes m = beta_1 * m + (1 - beta_1) * gradient. With the average as m and the weight as the
        # gradient, it updates the average in one operation. The kernel also changes a variable and a second moment: a
        # rate of 0 keeps the variable (here `mean`) as it is, and a beta_2 of 1 keeps the second moment (`variance`).
        still = {**scalars.adam, "lr": tf.zeros([]), "beta1": scalars.average_decay, "beta2": tf.ones([])}
        average, value = self.averages[name].handle, _read_variable(weight)
        return tf.raw_ops.ResourceApplyAdam(var=mean, m=average, v=variance, grad=value, **still)

    def _compute_update_scalars(
        self, applied: tf.Tensor, updates: tf.Tensor, rate: tf.Tensor, gradient_scale: tf.Tensor | None
    ) -> _UpdateScalars:
        training = self._training
        count = tf.cast(updates + 1, tf.float64)
        power_1, power_2 = (
            tf.cast(tf.pow(tf.constant(b, tf.float64), count), tf.float32) for b in (training.beta_1, training.beta_2)
        )
        # A smaller decay in the first updates lets the averages forget the initial weights soon.
        before = tf.cast(updates, tf.float32)
        average_decay = tf.minimum(training.ema_decay, (1 + before) / (10 + before))
        rate = tf.where(applied, rate, 0.0)
        adam = {
            "beta1": tf.where(applied, training.beta_1, 1.0),
            "beta2": tf.where(applied, training.beta_2, 1.0),
            "beta1_power": power_1,
            "beta2_power": power_2,
            "lr": rate,
            # Adam adds epsilon after the bias correction, TensorFlow's kernel before it, so epsilon is scaled here.
            "epsilon": tf.where(applied, training.epsilon * tf.sqrt(1 - power_2), 1.0),
        }
        return _UpdateScalars(
            adam=adam,
            decay=rate * training.weight_decay,
            average_decay=tf.where(applied, average_decay, 1.0),
            gradient_scale=tf.where(applied, gradient_scale if training.clip_norm else 1.0, 0.0),
            momentum=tf.where(applied, _MOMENTUM, 1.0),
        )


def _group_kernels(weights: _Named) -> list[list[str]]:
    """Returns the names of coupling nets' and encoder's kernels, grouped by shape; a large kernel is alone."""
    groups: dict[object, list[str]] = {}
    for name, weight in weights.items():
        is_kernel = name.startswith(("flow/", "encoder/")) and len(weight.shape) > 1
        if is_kernel and not name.endswith("linear/kernel"):
            shape = math.prod(weight.shape[:-1]), weight.shape[-1]
            groups.setdefault(shape if is_small_weight(weight.shape) else name, []).append(name)
    return list(groups.values())


def orthogonalize(matrices: tf.Tensor) -> tf.Tensor:
    """Returns matrices `[n, a, b]` with the singular vectors of `matrices` and singular values of about 1 (0.7 to 1.2).

    Newton-Schulz steps multiply a matrix X by a polynomial of X^T X. All steps are computed in the smaller of the two
    sides of X, and X itself is multiplied once.
    """
    tall = matrices.shape[1] >= matrices.shape[2]
    gram = tf.matmul(matrices, matrices, transpose_a=tall, transpose_b=not tall)
    # The sum of the squares of all singular values is an upper bound of their largest square.
    bound = tf.linalg.trace(gram)[:, None, None] + 1e-20
    gram /= bound
    a, b, c = _COEFFICIENTS
    product = tf.eye(gram.shape[-1], batch_shape=[gram.shape[0]])
    for _ in range(_ORTHOGONALIZING_STEPS):
        factor = b * gram + c * tf.matmul(gram, gram)
        factor = tf.linalg.set_diag(factor, tf.linalg.diag_part(factor) + a)
        product = tf.matmul(product, factor)
        gram = tf.matmul(tf.matmul(factor, gram), factor)
    product *= tf.math.rsqrt(bound)
    return tf.matmul(matrices, product) if tall else tf.matmul(product, matrices)


def _move_average(average: tf.Tensor, value: tf.Tensor, scalars: _UpdateScalars) -> None:
    """Moves the running average with the handle `average` towards `value`."""
    change = _read_variable(average) - value
    # This operation, made for SGD, subtracts alpha * delta from the average in place, without a copy of it.
    tf.raw_ops.ResourceApplyGradientDescent(var=average, alpha=1 - scalars.average_decay, delta=change)


def _join_variables(variables: Sequence[tf.Variable]) -> tf.Tensor:
    return flatten_and_join([_read_variable(variable.handle) for variable in variables])


def _split_vector_like(vector: tf.Tensor, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    parts = tf.split(vector, [math.prod(variable.shape) for variable in variables])
    shapes = {tuple(variable.shape): tf.constant(list(variable.shape)) for variable in variables}
    return [tf.reshape(part, shapes[tuple(variable.shape)]) for part, variable in zip(parts, variables, strict=True)]


def _read_variable(handle: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)


def _make_zero_variable(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)


class FlatBuffer:
    """A float32 vector that replaces many variables, so that one operation changes all of them; zeros at first.

    Attributes:
        variable: the vector.
        views: dict from the name of each replaced variable to the `BufferView` of this variable's part of the vector.
    """

    def __init__(self, shapes: Mapping[str, tf.TensorShape]):
        counts = [math.prod(shape) for shape in shapes.values()]
        self.variable = tf.Variable(tf.zeros([sum(counts)]), trainable=False)
        starts = itertools.accumulate(counts, initial=0)
        self.views: dict[str, tf.Variable] = {
            name: BufferView(self.variable, start, shape)
            for (name, shape), start in zip(shapes.items(), starts, strict=False)
        }


class BufferView:
    """A part of a flat buffer (a vector variable) that is read, assigned and saved like a variable of shape `shape`."""

    dtype = tf.float32

    def __init__(self, vector: tf.Variable, start: int, shape: tf.TensorShape):
        self._vector = vector
        self._part = slice(start, start + math.prod(shape))
        self.shape = tf.TensorShape(shape)

    def read_value(self) -> tf.Tensor:
        """Returns this part of the flat buffer as a float32 tensor of the shape `self.shape`."""
        return tf.reshape(tf.convert_to_tensor(self._vector)[self._part], self.shape)

    def numpy(self) -> np.ndarray:
        """Returns this part of the flat buffer as a float32 NumPy array of the shape `self.shape`."""
        return self.read_value().numpy()

    def assign(self, value: tf.Tensor) -> None:
        """Writes `value` into this part of the flat buffer on all devices; raises ValueError for a wrong shape."""
        value = tf.convert_to_tensor(value, self.dtype)
        if value.shape != self.shape:
            raise ValueError(f"a value of shape {value.shape} does not fit a view of shape {self.shape}")
        distributed = isinstance(self._vector, tf.distribute.DistributedValues)
        for vector in self._vector.values if distributed else (self._vector,):
            # `variable[begin:end].assign` would first copy the slice, so the operation is called directly.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=vector.handle,
                begin=[self._part.start],
                end=[self._part.stop],
                strides=[1],
                value=tf.reshape(value, [-1]),
            )
