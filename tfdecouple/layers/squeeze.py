"""The squeeze: neighbouring pixels become channels (paper Figure 3c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple import bijectors
from tfdecouple.bijectors import ClosedForm
from tfdecouple.errors import UserError
from tfdecouple.layers.base import Condition, FullLayer, InvertibleLayer


@keras.saving.register_keras_serializable(package="tfdecouple")
class Squeeze(InvertibleLayer):
    """`[batch, 2h, 2w, c]` to `[batch, h, w, 4c]`; the log-determinant is 0.

    The four sub-pixel positions are the slow index of the new channels and the old channel the fast one, as in the
    paper's code (and unlike Glow's).

    >>> y, _ = Squeeze().forward_and_log_det(tf.zeros([1, 4, 4, 3]))
    >>> y.shape.as_list()
    [1, 2, 2, 12]
    """

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Checks the shape; there are no weights.

        Raises:
            UserError: for an input without height, width and channels.
        """
        if len(x_shape) != 4:
            raise UserError(f"squeeze got a shape {tuple(x_shape)}; it needs [batch, height, width, channels]")
        # No number of channels is stored, since one squeeze serves all levels.
        FullLayer.build(self, x_shape)

    def compute_output_shape(self, x_shape: Any, condition_shape: Any = None) -> tuple[tuple, tuple]:
        """Returns the shapes of the two outputs of `call`."""
        batch, height, width, channels = x_shape
        return (batch, height // 2, width // 2, 4 * channels), (batch,)

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector of the squeeze."""
        return bijectors.Squeeze()

    def _shape_bijector(self) -> tfb.Bijector:
        return bijectors.Squeeze()
