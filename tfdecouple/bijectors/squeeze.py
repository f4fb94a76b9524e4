"""The squeeze of images: neighbouring pixels become channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdecouple.bijectors.closed_form import ClosedForm
from tfdecouple.errors import UserError
from tfdecouple.runtime.numerics import sizes


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
