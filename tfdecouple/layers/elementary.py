"""The squeeze, the sigmoid at the end of the dequantisation, and sinh-arcsinh, which may end a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple import bijectors
from tfdecouple.bijectors import ClosedForm
from tfdecouple.errors import UserError
from tfdecouple.layers.base import Condition, FullLayer, InvertibleLayer, Weight


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


@keras.saving.register_keras_serializable(package="tfdecouple")
class Sigmoid(InvertibleLayer):
    """y = 1 / (1 + exp(-x)), number by number.

    >>> y, log_det = Sigmoid().forward_and_log_det(tf.zeros([2, 4, 4, 3]))
    >>> float(y[0, 0, 0, 0]), log_det.shape.as_list()
    (0.5, [2])
    """

    # Where the sigmoid saturates, its inverse loses digits.
    recovers_input = False

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector of the sigmoid."""
        return bijectors.Sigmoid()


@keras.saving.register_keras_serializable(package="tfdecouple")
class SinhArcsinh(InvertibleLayer):
    """y = s sinh((arcsinh(x) + skewness) * tails), channel by channel (Jones and Pewsey, 2009).

    It makes the tails of a channel's distribution heavier or lighter, and one tail longer than the other. The factor s
    maps 2 to 2 where the skewness is 0.

    >>> layer = SinhArcsinh()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> bool(tf.reduce_all(tf.abs(y - 1.0) < 1e-6)), log_det.shape.as_list()
    (True, [2])
    """

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the skewness and the logarithm of the weight of the tails, both unbounded."""
        return {"skewness": Weight(x_shape[-1:]), "tails": Weight(x_shape[-1:])}

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> tfb.Bijector:
        """Returns the bijector; tails within exp(-1/4) and exp(1/4) keep a long row of these layers finite."""
        skewness, log_tails = (tf.tanh(weights[name]) / 4 for name in ("skewness", "tails"))
        return tfb.SinhArcsinh(skewness, tf.exp(log_tails))
