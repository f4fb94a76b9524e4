"""The base class of bijectors that return value and log-determinant together, in closed form; `with_log_det`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import util as tfp_util

from tfdecouple.errors import UserError
from tfdecouple.numerics.arithmetic import get_sizes, multiply_sizes


def with_log_det(bijector: tfb.Bijector) -> ClosedForm | _TfpBijector:
    """Returns a bijector with the methods `forward_and_log_det` and `inverse_and_log_det`, for any bijector of TFP.

    >>> y, log_det = with_log_det(tfb.Scale(2.0)).forward_and_log_det(tf.ones([3, 5]))
    >>> y.shape.as_list(), [round(float(number), 2) for number in log_det]
    ([3, 5], [3.47, 3.47, 3.47])
    """
    return bijector if isinstance(bijector, ClosedForm) else _TfpBijector(bijector)


class _TfpBijector(NamedTuple):
    """A bijector of TFP with two more methods. Some bijectors lose static shapes in a graph; layers need them."""

    bijector: tfb.Bijector

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y, the bijector's output for x `[batch, ..., channels]`, and log |det dy/dx|, `[batch]`."""
        log_det = self.bijector.forward_log_det_jacobian(x, event_ndims=len(x.shape) - 1)
        y = tf.ensure_shape(self.bijector.forward(x), self.bijector.forward_event_shape(x.shape))
        return y, tf.broadcast_to(log_det, get_sizes(x)[:1])

    def inverse_and_log_det(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the x that the bijector maps to y `[batch, ..., channels]`, and log |det dx/dy|, `[batch]`."""
        log_det = self.bijector.inverse_log_det_jacobian(y, event_ndims=len(y.shape) - 1)
        x = tf.ensure_shape(self.bijector.inverse(y), self.bijector.inverse_event_shape(y.shape))
        return x, tf.broadcast_to(log_det, get_sizes(y)[:1])


class ClosedForm(tfb.Bijector):
    """The base class of bijectors that return value and log-determinant together.

    Subclasses implement TFP's `_forward`, `_inverse` and `_forward_log_det_jacobian`, and list in `parameter_ndims` the
    parameters that are tensors; each of these parameters becomes an attribute.

    Args:
        event_ndims: count of last axes that are mapped together: 0 (single numbers), 1 (channels) or 3 (images).
        is_constant_jacobian: whether the log-determinant is equal for all x.
        name: the bijector's name; by default that of its class.
        **parameters: the arguments of the subclass's constructor.

    Attributes:
        parameter_ndims: {parameter: count of its axes}; 0 stands for any shape that broadcasts to x. The
            constructor raises UserError for a tensor with another count of axes, and for a variable.
    """

    parameter_ndims: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self, event_ndims: int, *, is_constant_jacobian: bool = True, name: str | None = None, **parameters: object
    ):
        dtype = None
        for parameter, ndims in self.parameter_ndims.items():
            value = _as_parameter(parameters[parameter])
            if ndims and value.shape.rank != ndims:
                axes = "axis" if ndims == 1 else "axes"
                raise UserError(f"{parameter} is of shape {tuple(value.shape)}; it must have {ndims} {axes}")
            setattr(self, parameter, value)
            dtype = dtype or value.dtype
        super().__init__(
            forward_min_event_ndims=event_ndims,
            is_constant_jacobian=is_constant_jacobian,
            dtype=dtype,
            parameters=parameters,
            name=name or type(self).__name__,
        )

    @classmethod
    def _parameter_properties(cls, dtype: tf.DType) -> dict[str, Any]:
        return {name: tfp_util.ParameterProperties(event_ndims=ndims) for name, ndims in cls.parameter_ndims.items()}

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns this bijector's output y for x `[batch, ..., channels]`, and log |det dy/dx| per image, `[batch]`.

        TFP's methods would also put x and y into a cache, which holds both in memory until garbage is collected.
        """
        return self._forward(x), self._sum_per_image(self._forward_log_det_jacobian(x), x)

    def inverse_and_log_det(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the x that this bijector maps to y `[batch, ..., channels]`, and log |det dx/dy|, `[batch]`."""
        x = self._inverse(y)
        log_det = self._forward_log_det_jacobian(x)
        # A scalar is negated before `_sum_per_image` repeats it for each image, since negating one number is cheaper.
        return x, self._sum_per_image(-log_det, x) if log_det.shape.rank == 0 else -self._sum_per_image(log_det, x)

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        return -self._forward_log_det_jacobian(self._inverse(y))

    def _sum_per_image(self, log_det: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        events = get_sizes(x)[: len(x.shape) - self.forward_min_event_ndims]
        if log_det.shape.rank == 0:
            # All positions have the same log-determinant, so a product replaces TFP's sum over a map of equal numbers.
            return tf.fill(events[:1], multiply_sizes(events[1:], x.dtype) * log_det)
        if log_det.shape.as_list() != x.shape[: len(events)].as_list():
            log_det = tf.broadcast_to(log_det, events)
        return tf.reduce_sum(log_det, list(range(1, len(events))))


def _as_parameter(value: tf.Tensor) -> tf.Tensor:
    """Converts a bijector's parameter to a tensor; raises UserError for a variable, which would get no gradient."""
    if hasattr(value, "assign"):
        raise UserError(
            f"a bijector got the variable {value.name}, of which it would hold a copy without gradients; pass "
            "tf.convert_to_tensor(variable) in the call that uses it"
        )
    return tf.convert_to_tensor(value)
