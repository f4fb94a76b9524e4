"""Maps of each number by itself: what couplings do, whitening, and the sigmoid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.bijectors.closed_form import ClosedForm, parameter, tensor


class BoundedAffine(ClosedForm):
    """y = s x + shift, with s = 1 + alpha tanh(u/2) in (1 - alpha, 1 + alpha) (paper equation 6 and B.2).

    Args:
        shift: of a shape to which x's broadcasts, `[batch, ..., channels]` in a coupling.
        unbounded: u, of the same shape.
        alpha: in (0, 1].
        name: of its operations.

    >>> BoundedAffine(tf.zeros([1]), tf.zeros([1]), alpha=0.5).forward(tf.constant([3.0])).numpy().tolist()
    [3.0]
    """

    def __init__(self, shift: Any, unbounded: Any, alpha: float = 1.0, name: str = ""):
        parameters = dict(locals())
        self.shift, self.unbounded = tensor(shift), tensor(unbounded)
        # What rounds to 1 would make of s a difference that can be 0.
        self.alpha = 1.0 if np.float32(alpha) == 1 else alpha
        # Here, since value, log-determinant and gradient share it: log s for alpha = 1, else s.
        if self.alpha == 1:
            # 1 + tanh(u/2) = 2*sigmoid(u), whose logarithm stays finite where the scale itself underflows.
            self._inner = -self.unbounded
            self._shared = math.log(2) - tf.math.softplus(self._inner)
        else:
            self._inner = tf.tanh(self.unbounded / 2)
            self._shared = 1 + alpha * self._inner
        super().__init__(0, parameters, self.shift.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"shift": parameter(), "unbounded": parameter()}

    @property
    def scale(self) -> tf.Tensor:
        """The positive scale s, of the shape of u."""
        return tf.exp(self._shared) if self.alpha == 1 else self._shared

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y, and log |det dy/dx| of each image `[batch]`, with their gradient in closed form."""
        if any(x.shape.as_list() != parameter.shape.as_list() for parameter in (self.shift, self.unbounded)):
            return super().forward_and_log_det(x)
        scaled, log_det = _scaled(self.alpha, x, self.unbounded, self._inner, self._shared)
        return scaled + self.shift, log_det

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.scale + self.shift

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        moved = y - self.shift
        return moved * tf.exp(-self._shared) if self.alpha == 1 else moved / self._shared

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return self._shared if self.alpha == 1 else tf.math.log(self._shared)


def _scaled(
    alpha: float, x: tf.Tensor, unbounded: tf.Tensor, inner: tf.Tensor, outer: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns s x and log-determinants of a `BoundedAffine` of the shape of x, with their gradient in closed form.

    TensorFlow's own takes twice as many operations. Until the backward pass it keeps each argument of what has a
    gradient here, so that there are no more of them.

    Args:
        alpha: as the bijector's.
        x: `[batch, ...]`.
        unbounded: u, of the shape of x.
        inner: what is known of u: -u for alpha = 1, else tanh(u/2).
        outer: what is known of s: log s for alpha = 1, else s.
    """
    scale, log_scale = (tf.exp(outer), outer) if alpha == 1 else (outer, tf.math.log(outer))

    @tf.custom_gradient
    def run(x: tf.Tensor, unbounded: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        axes = list(range(1, len(x.shape)))

        def gradient(of_y: tf.Tensor, of_log_det: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_x = of_y * scale
            of_each = tf.reshape(of_log_det, [-1, *[1] * len(axes)])
            if alpha == 1:
                # The gradient for log s = log 2 - softplus(-u).
                return of_x, tf.raw_ops.SoftplusGrad(gradients=of_x * x + of_each, features=-unbounded)
            return of_x, tf.raw_ops.TanhGrad(y=inner, dy=of_y * x + of_each / scale) * (alpha / 2)

        return (x * scale, tf.reduce_sum(log_scale, axes)), gradient

    return run(x, unbounded)


class Shift(ClosedForm):
    """y = x + shift.

    Args:
        shift: of a shape to which x's broadcasts, `[batch, ..., channels]` in a coupling.
        name: of its operations.

    >>> Shift(tf.ones([2])).forward(tf.zeros([1, 2])).numpy().tolist()
    [[1.0, 1.0]]
    """

    def __init__(self, shift: Any, name: str = ""):
        parameters = dict(locals())
        self.shift = tensor(shift)
        super().__init__(0, parameters, self.shift.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"shift": parameter()}

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.shift

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return y - self.shift

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.zeros([], x.dtype)


class Whitening(ClosedForm):
    """y = (x - mean) / exp(log_scale), number by number: a Gaussian of that mean and scale becomes a standard one.

    Args:
        mean: of a shape to which x's broadcasts, `[batch, ..., channels]` in a flow.
        log_scale: of the same shape.
        name: of its operations.

    >>> Whitening(tf.ones([1]), tf.zeros([1])).forward(tf.constant([3.0])).numpy().tolist()
    [2.0]
    """

    def __init__(self, mean: Any, log_scale: Any, name: str = ""):
        parameters = dict(locals())
        self.mean, self.log_scale = tensor(mean), tensor(log_scale)
        super().__init__(0, parameters, self.mean.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"mean": parameter(), "log_scale": parameter()}

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return (x - self.mean) * tf.exp(-self.log_scale)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return y * tf.exp(self.log_scale) + self.mean

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return -self.log_scale


class Sigmoid(ClosedForm):
    """y = 1 / (1 + exp(-x)), number by number.

    TFP's own needs a logarithm that ONNX does not have.

    Args:
        name: of its operations.

    >>> Sigmoid().forward(tf.constant([0.0])).numpy().tolist()
    [0.5]
    """

    def __init__(self, name: str = ""):
        parameters = dict(locals())
        super().__init__(0, parameters, is_constant_jacobian=False)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(x)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return tf.math.log(y) - tf.math.log1p(-y)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        # log y + log(1 - y), of which the second is log y - x.
        return 2 * tf.math.log_sigmoid(x) - x
