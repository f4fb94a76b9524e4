"""The squeeze layer, which turns neighbouring pixels into channels (paper Figure 3c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdecouple import bijectors
from tfdecouple.bijectors import ClosedForm
from tfdecouple.errors import UserError
from tfdecouple.layers.base import Condition, FullLayer, InvertibleLayer


@keras.saving.register_keras_serializable(package="tfdecouple")
class Squeeze(InvertibleLayer):
    """A layer that reshapes `[batch, 2h, 2w, c]` to `[batch, h, w, 4c]`; the log-determinant is 0.

    In the new channels the sub-pixel position (four values) is the slow index and the old channel the fast one, as in
    the paper's code; Glow's code has the opposite order.

    >>> y, _ = Squeeze().forward_and_log_det(tf.zeros([1, 4, 4, 3]))
    >>> y.shape.as_list()
    [1, 2, 2, 12]
    """

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Marks the layer, which has no weights, as built.

        Raises:
            UserError: if the input is not `[batch, height, width, channels]`.
        """
        if len(x_shape) != 4:
            raise UserError(f"squeeze got a shape {tuple(x_shape)}; it needs [batch, height, width, channels]")
        # One squeeze serves all levels of a flow, so the number of channels is not stored.
        FullLayer.build(self, x_shape)

    def compute_output_shape(self, x_shape: Any, condition_shape: Any = None) -> tuple[tuple, tuple]:
        """Returns the shapes of the squeezed images and of the log-determinant."""
        batch, height, width, channels = x_shape
        return (batch, height // 2, width // 2, 4 * channels), (batch,)

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector from `[..., 2h, 2w, c]` to `[..., h, w, 4c]`."""
        return bijectors.Squeeze()

    def as_bijector(self, condition: Condition = None) -> ClosedForm:
        """Returns the same as `bijector`, which takes any leading dimensions and no condition."""
        return bijectors.Squeeze()
