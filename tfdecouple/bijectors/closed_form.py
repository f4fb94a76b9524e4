"""The elementary maps of the flow as TFP bijectors, their log-determinants in closed form (paper section 2.2, A and B).

Each takes `[batch, ..., channels]` in either direction. Parameters are tensors: a layer reads its weights in the call
and hands them over. `forward_and_log_det` gives value and log-determinant at once, without TFP's cache, which would
keep maps alive until garbage is collected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import util as tfp_util

from tfdecouple.errors import UserError
from tfdecouple.runtime.products import channel_product, inverse_matrix, log_abs_det, lu_product
from tfdecouple.runtime.shapes import product, sizes


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


class ChannelAffine(ClosedForm):
    """y = exp(log_scale) * x + shift, channel by channel: activation normalisation.

    Args:
        shift: `[channels]`.
        log_scale: `[channels]`.
        name: of its operations.

    >>> ChannelAffine(tf.ones([2]), tf.zeros([2])).forward_and_log_det(tf.zeros([1, 4, 4, 2]))[1].numpy().tolist()
    [0.0]
    """

    def __init__(self, shift: Any, log_scale: Any, name: str = ""):
        parameters = dict(locals())
        self.shift, self.log_scale = _tensor(shift), _tensor(log_scale)
        _require_rank("shift and log_scale", 1, self.shift, self.log_scale)
        super().__init__(1, parameters, self.log_scale.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"shift": _parameter(1), "log_scale": _parameter(1)}

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x * tf.exp(self.log_scale) + self.shift

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return (y - self.shift) * tf.exp(-self.log_scale)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(self.log_scale)


class _Matrix(ClosedForm):
    """y = W x, channel by channel, with `self.matrix` as W and `self.log_abs_det` as its log |det W|, a scalar."""

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return channel_product(x, self.matrix, transpose=True, full=True)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return channel_product(y, inverse_matrix(self.matrix), transpose=True, full=True)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return self.log_abs_det


class ChannelMatrix(_Matrix):
    """y = W x at every position, in one matrix product over all of them: the 1x1 convolution.

    TFP's own bijectors treat each position as a system of its own, which is far slower for the same result.

    Args:
        matrix: W, `[channels, channels]`, which must have an inverse.
        name: of its operations.

    >>> ChannelMatrix(2 * tf.eye(2)).forward(tf.ones([3, 2])).numpy()[0].tolist()
    [2.0, 2.0]
    """

    def __init__(self, matrix: Any, name: str = ""):
        parameters = dict(locals())
        self.matrix = _tensor(matrix)
        _require_rank("matrix", 2, self.matrix)
        super().__init__(1, parameters, self.matrix.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"matrix": _parameter(2)}

    @property
    def log_abs_det(self) -> tf.Tensor:
        """The scalar log |det W|."""
        return log_abs_det(self.matrix)


class ChannelLU(_Matrix):
    """y = P L U x at every position, where the log-determinant is a sum.

    Args:
        factors: L below the diagonal, whose own is 1, and U from it on, `[channels, channels]`.
        permutation: P as in `tf.linalg.lu`, `[channels]`, integers.
        name: of its operations.

    >>> ChannelLU(tf.eye(2), tf.constant([1, 0])).forward(tf.constant([[1.0, 2.0]])).numpy().tolist()
    [[2.0, 1.0]]
    """

    def __init__(self, factors: Any, permutation: Any, name: str = ""):
        parameters = dict(locals())
        self.factors, self.permutation = _tensor(factors), _tensor(permutation)
        _require_rank("factors", 2, self.factors)
        _require_rank("permutation", 1, self.permutation)
        super().__init__(1, parameters, self.factors.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"factors": _parameter(2), "permutation": _parameter(1, is_preferred=False)}

    @property
    def matrix(self) -> tf.Tensor:
        """P L U, `[channels, channels]`."""
        return lu_product(self.factors, self.permutation)

    @property
    def log_abs_det(self) -> tf.Tensor:
        """The scalar log |det W|."""
        return tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(self.factors))))


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
        self.shift, self.unbounded, self.alpha = _tensor(shift), _tensor(unbounded), alpha
        # Here, since value and log-determinant share it: log s for alpha = 1, else s.
        if alpha == 1:
            # 1 + tanh(u/2) = 2*sigmoid(u), whose logarithm stays finite where the scale itself underflows.
            log_two = tf.math.log(tf.constant(2.0, self.unbounded.dtype))
            self._shared = log_two + tf.math.log_sigmoid(self.unbounded)
        else:
            self._shared = 1 + alpha * tf.tanh(self.unbounded / 2)
        super().__init__(0, parameters, self.shift.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"shift": _parameter(), "unbounded": _parameter()}

    @property
    def scale(self) -> tf.Tensor:
        """The positive scale s, of the shape of u."""
        return tf.exp(self._shared) if self.alpha == 1 else self._shared

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.scale + self.shift

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        moved = y - self.shift
        return moved * tf.exp(-self._shared) if self.alpha == 1 else moved / self._shared

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return self._shared if self.alpha == 1 else tf.math.log(self._shared)


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
        self.shift = _tensor(shift)
        super().__init__(0, parameters, self.shift.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"shift": _parameter()}

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
        self.mean, self.log_scale = _tensor(mean), _tensor(log_scale)
        super().__init__(0, parameters, self.mean.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"mean": _parameter(), "log_scale": _parameter()}

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


class Squeeze(ClosedForm):
    """`[..., f h, f w, c]` to `[..., h, w, f f c]`: neighbouring pixels become channels.

    The sub-pixel positions are the slow index of the new channels and the old channel the fast one, as in the paper's
    code (and unlike Glow's).

    Args:
        factor: f, 2 in the paper.
        name: of its operations.

    >>> Squeeze().forward(tf.zeros([1, 4, 4, 3])).shape.as_list()
    [1, 2, 2, 12]
    """

    def __init__(self, factor: int = 2, name: str = ""):
        parameters = dict(locals())
        self.factor = factor
        super().__init__(3, parameters)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        if any(side is not None and side % self.factor for side in x.shape[-3:-1]):
            raise UserError(
                f"squeeze got images of {x.shape[-3]} x {x.shape[-2]} pixels; both sides must be "
                f"{'even' if self.factor == 2 else f'multiples of {self.factor}'}"
            )
        return _of_any_batch(lambda images: tf.nn.space_to_depth(images, self.factor), x)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        if y.shape[-1] % self.factor**2:
            raise UserError(f"unsqueeze got {y.shape[-1]} channels; it needs a multiple of {self.factor**2}")
        return _of_any_batch(lambda images: tf.nn.depth_to_space(images, self.factor), y)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.zeros([], x.dtype)

    def _forward_event_shape(self, shape: tf.TensorShape) -> tf.TensorShape:
        height, width, channels = shape[-3:]
        sides = [None if side is None else side // self.factor for side in (height, width)]
        return shape[:-3].concatenate([*sides, channels * self.factor**2])

    def _inverse_event_shape(self, shape: tf.TensorShape) -> tf.TensorShape:
        height, width, channels = shape[-3:]
        sides = [None if side is None else side * self.factor for side in (height, width)]
        return shape[:-3].concatenate([*sides, channels // self.factor**2])

    def _forward_event_shape_tensor(self, shape: tf.Tensor) -> tf.Tensor:
        return tf.concat([shape[:-3], shape[-3:-1] // self.factor, shape[-1:] * self.factor**2], 0)

    def _inverse_event_shape_tensor(self, shape: tf.Tensor) -> tf.Tensor:
        return tf.concat([shape[:-3], shape[-3:-1] * self.factor, shape[-1:] // self.factor**2], 0)


def _of_any_batch(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Applies a function of `[batch, height, width, channels]` to `[..., height, width, channels]`."""
    if x.shape.rank == 4:
        return function(x)
    y = function(tf.reshape(x, [-1, *sizes(x)[-3:]]))
    return tf.reshape(y, [*sizes(x)[:-3], *sizes(y)[1:]])


def _tensor(value: Any) -> tf.Tensor:
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


def _require_rank(names: str, rank: int, *values: tf.Tensor) -> None:
    """Refuses a batch of parameters: one channel matrix, one scale a channel is for all images.

    Raises:
        UserError: naming the shapes.
    """
    if any(value.shape.rank != rank for value in values):
        shapes = " and ".join(str(tuple(value.shape)) for value in values)
        raise UserError(f"{names} of shape {shapes}: each must have {rank} {'axis' if rank == 1 else 'axes'}")


def _parameter(event_ndims: int = 0, **options: Any) -> tfp_util.ParameterProperties:
    return tfp_util.ParameterProperties(event_ndims=event_ndims, **options)
