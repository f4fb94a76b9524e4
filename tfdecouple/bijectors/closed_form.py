"""A bijector that gives value and log-determinant at once, and how any bijector is applied to the images of a batch."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import util as tfp_util

from tfdecouple.errors import UserError
from tfdecouple.runtime.numerics import product, sizes


def forward_and_log_det(bijector: tfb.Bijector, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies a bijector to every image of a batch.

    Args:
        bijector: any bijector of numbers, of channels or of whole images; a `ClosedForm` does it in one go.
        x: `[batch, ..., channels]`.

    Returns:
        y, and log |det dy/dx| of each image, `[batch]`.

    >>> y, log_det = forward_and_log_det(tfb.Scale(2.0), tf.ones([3, 5]))
    >>> y.shape.as_list(), [round(float(number), 2) for number in log_det]
    ([3, 5], [3.47, 3.47, 3.47])
    """
    if isinstance(bijector, ClosedForm):
        return bijector.forward_and_log_det(x)
    log_det = bijector.forward_log_det_jacobian(x, event_ndims=len(x.shape) - 1)
    return bijector.forward(x), tf.broadcast_to(log_det, sizes(x)[:1])


def inverse_and_log_det(bijector: tfb.Bijector, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies the inverse of a bijector to every image of a batch; see `forward_and_log_det`."""
    if isinstance(bijector, ClosedForm):
        return bijector.inverse_and_log_det(y)
    log_det = bijector.inverse_log_det_jacobian(y, event_ndims=len(y.shape) - 1)
    return bijector.inverse(y), tf.broadcast_to(log_det, sizes(y)[:1])


class ClosedForm(tfb.Bijector):
    """A bijector that gives value and log-determinant at once.

    Subclasses implement TFP's `_forward`, `_inverse` and `_forward_log_det_jacobian`, which TFP and the methods below
    share out over events and images.

    Args:
        event_ndims: how many of the last axes are mapped together: 0 (numbers), 1 (channels) or 3 (images).
        parameters: the constructor's arguments (TFP's `copy` and `parameters`).
        dtype: of the parameters, or None for any.
        is_constant_jacobian: whether the log-determinant is the same for all x.
    """

    def __init__(
        self, event_ndims: int, parameters: dict[str, Any], dtype: Any = None, *, is_constant_jacobian: bool = True
    ):
        super().__init__(
            forward_min_event_ndims=event_ndims,
            is_constant_jacobian=is_constant_jacobian,
            dtype=dtype,
            parameters=parameters,
            name=parameters["name"] or type(self).__name__,
        )

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y, and log |det dy/dx| of each image `[batch]`, for x `[batch, ..., channels]`."""
        return self._forward(x), self._of_images(self._forward_log_det_jacobian(x), x)

    def inverse_and_log_det(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x, and log |det dx/dy| of each image `[batch]`, for y `[batch, ..., channels]`."""
        x = self._inverse(y)
        log_det = self._forward_log_det_jacobian(x)
        # What is the same for all events is negated before it is spread, so that graphs hold sums of terms alone.
        return x, self._of_images(-log_det, x) if log_det.shape.rank == 0 else -self._of_images(log_det, x)

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        return -self._forward_log_det_jacobian(self._inverse(y))

    def _of_images(self, log_det: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Sums the log-determinant of each event over the events of an image."""
        events = sizes(x)[: len(x.shape) - self.forward_min_event_ndims]
        if log_det.shape.rank == 0:
            # The same for all events: a product, where TFP would sum that number over them.
            return tf.fill(events[:1], product(events[1:], x.dtype) * log_det)
        if log_det.shape.as_list() != x.shape[: len(events)].as_list():
            log_det = tf.broadcast_to(log_det, events)
        return tf.reduce_sum(log_det, list(range(1, len(events))))


def tensor(value: Any) -> tf.Tensor:
    """Returns a parameter as a tensor.

    Raises:
        UserError: for a variable of TensorFlow or Keras, whose gradient would be lost.
    """
    if hasattr(value, "assign"):
        raise UserError(
            f"a bijector got the variable {value.name}, of which it would hold a copy without gradients; pass "
            "tf.convert_to_tensor(variable) in the call that uses it"
        )
    return tf.convert_to_tensor(value)


def require_rank(names: str, rank: int, *values: tf.Tensor) -> None:
    """Refuses a batch of parameters: one channel matrix, one scale a channel is for all images.

    Raises:
        UserError: naming the shapes.
    """
    if any(value.shape.rank != rank for value in values):
        shapes = " and ".join(str(tuple(value.shape)) for value in values)
        raise UserError(f"{names} of shape {shapes}: each must have {rank} {'axis' if rank == 1 else 'axes'}")


def parameter(event_ndims: int = 0, **options: Any) -> tfp_util.ParameterProperties:
    """Returns what TFP wants to know of a parameter of that many axes."""
    return tfp_util.ParameterProperties(event_ndims=event_ndims, **options)
