"""A counter of the values that a training run reads back from its devices, step by step."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import gen_resource_variable_ops

from tfdecouple.training.step import StepResult, TrainStep


class Watched:
    """A tensor in the result of a training step that counts each read of its value."""

    def __init__(self, tensor, count):
        self._tensor = tensor
        self._count = count

    def numpy(self):
        self._count()
        return self._tensor.numpy()

    def __array__(self, *args, **kwargs):
        return np.asarray(self.numpy(), *args, **kwargs)

    def __tf_tensor__(self, *_):
        return tf.convert_to_tensor(self.numpy())

    def __format__(self, spec):
        return format(self.numpy(), spec)

    def __float__(self):
        return float(self.numpy())

    def __int__(self):
        return int(self.numpy())

    def __bool__(self):
        return bool(self.numpy())


class Reads:
    """A counter of reads of tensors, variables and step results; `after` has the number of reads after each step."""

    def __init__(self):
        self.after = {}
        self._step = 0

    def count(self):
        self.after[self._step] = self.after.get(self._step, 0) + 1

    @contextlib.contextmanager
    def counted(self):
        """Yields this counter, which counts inside the context."""
        numpy, read, take = ops._EagerTensorBase._numpy, gen_resource_variable_ops.read_variable_op, TrainStep.__call__

        def count_numpy(tensor):
            self.count()
            return numpy(tensor)

        def count_variable(*args, **kwargs):
            if tf.executing_eagerly():
                self.count()
            return read(*args, **kwargs)

        def take_step(function, micro_batches, step, *wishes):
            result = take(function, micro_batches, step, *wishes)
            self._step = step + 1
            return StepResult(*(Watched(value, self.count) for value in result))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops._EagerTensorBase, "_numpy", count_numpy)
            patch.setattr(gen_resource_variable_ops, "read_variable_op", count_variable)
            patch.setattr(TrainStep, "__call__", take_step)
            yield self
