"""The wrapper that turns an invertible layer into a TFP bijector, for the distributions of TFP."""

import itertools
from collections.abc import Callable

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import util as tfp_util

from tfdecouple.arguments import ArrayLike

# Counter that gives each bijector a unique number, the key of the bijector's entries in TFP's caches.
_numbers = itertools.count()


class LayerBijector(tfb.Bijector):
    """A TFP bijector that runs a built `InvertibleLayer`, on arrays with any leading axes.

    Its methods take the keyword `condition`; without the keyword they use the constructor's `condition`.
    """

    def __init__(self, layer: keras.Layer, condition: tf.Tensor | None):
        parameters = dict(locals())
        self._layer = layer
        self._condition = condition
        self._number = next(_numbers)
        super().__init__(
            forward_min_event_ndims=layer._event_ndims,
            dtype=tf.as_dtype(layer.compute_dtype),
            parameters=parameters,
            name=layer.name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: tf.DType) -> dict:
        def event_ndims(bijector: LayerBijector, x_event_ndims: int) -> int:
            return bijector._layer._condition_ndims + x_event_ndims - bijector.forward_min_event_ndims

        # TFP needs these properties to derive the batch shape, and to slice a distribution together with its condition.
        return {"condition": tfp_util.ParameterProperties(event_ndims=event_ndims)}

    @property
    def condition(self) -> tf.Tensor | None:
        """The constructor's condition as a tensor, which calls without the keyword `condition` use; or None."""
        return None if self._condition is None else cast_to_tensor(self._condition, self.dtype)

    def _get_parameterization(self) -> int:
        # The key of TFP's caches. It is unique per bijector, so a new bijector finds no results of earlier weights.
        return self._number

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        return self._run_layer_method(self._layer.forward_and_log_det, x, condition)[0]

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        return self._run_layer_method(self._layer.inverse_and_log_det, y, condition)[0]

    def _forward_log_det_jacobian(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        return self._run_layer_method(self._layer.forward_and_log_det, x, condition)[1]

    def _inverse_log_det_jacobian(self, y: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        return self._run_layer_method(self._layer.inverse_and_log_det, y, condition)[1]

    def _run_layer_method(
        self, method: Callable, x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        condition = self._condition if condition is None else condition
        event_ndims, condition_ndims = self._layer._event_ndims, self._layer._condition_ndims
        batch, event = tf.shape(x)[:-event_ndims], x.shape[-event_ndims:]
        if condition is not None:
            condition = cast_to_tensor(condition, x.dtype)
            batch = tf.broadcast_dynamic_shape(batch, tf.shape(condition)[:-condition_ndims])
            x = tf.broadcast_to(x, tf.concat([batch, tf.shape(x)[-event_ndims:]], 0))
            condition = tf.broadcast_to(condition, tf.concat([batch, tf.shape(condition)[-condition_ndims:]], 0))
            condition = tf.reshape(condition, [-1, *condition.shape[-condition_ndims:]])
        y, log_det = method(tf.reshape(x, [-1, *event]), condition)
        return tf.reshape(y, tf.concat([batch, tf.shape(y)[1:]], 0)), tf.reshape(log_det, batch)


def cast_to_tensor(value: ArrayLike, dtype: tf.DType) -> tf.Tensor:
    """Converts a number, an array or a tensor to a tensor of `dtype`."""
    return tf.cast(tf.convert_to_tensor(value), dtype)
