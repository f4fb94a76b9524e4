"""Layers that may end a step of the flow beside the paper's, and the registry in which they are found by name.

The one file to edit for a new layer: a subclass of `StepLayer`, and its place in `STEP_LAYERS`. The
choices of the config, names and counts of weights, training, inversion, the tests of layers and the exports follow
from there.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow_probability import bijectors as tfb


class StepLayer(abc.ABC):
    """An invertible function of maps `[batch, height, width, channels]` with weights of its own.

    Attributes:
        name: as in a config (`model.step_layers`), and of the layer in each step.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def weights(self, channels: int) -> dict[str, tuple[int, ...]]:
        """Returns `{name: shape}` of the weights of a layer of so many channels. All are trained, and start at 0."""

    @abc.abstractmethod
    def bijector(self, weights: Mapping[str, tf.Tensor]) -> tfb.Bijector:
        """Returns the bijector of the maps, x -> v.

        It may act on numbers, on channels, which are the last axis, or on whole images (`forward_min_event_ndims` of 0,
        1 or 3), and is a `ClosedForm` of `tfdecouple/bijectors/` or one of TFP's. Where all weights are 0 it should be
        the identity or near it, and for any weights it must have an inverse. Its forward and inverse should consist
        of operations that tf2onnx converts, as for a transform (`tfdecouple/transforms.py`), and of no arrays but the
        weights: the gate of exports knows every array of a file.

        Args:
            weights: by the names of `weights`, of any values.
        """


class SinhArcsinh(StepLayer):
    """y = s sinh((arcsinh(x) + skewness) * tails), channel by channel (Jones and Pewsey, 2009).

    It makes the tails of what a channel holds heavier or lighter, and one of them longer than the other. s is such that
    2 stays 2 without skewness.
    """

    name = "sinh_arcsinh"

    def weights(self, channels: int) -> dict[str, tuple[int, ...]]:
        """Returns the skewness, and the logarithm of the weight of the tails, both still to be bounded."""
        return {"skewness": (channels,), "tails": (channels,)}

    def bijector(self, weights: Mapping[str, tf.Tensor]) -> tfb.Bijector:
        """Returns the bijector; tails between exp(-1/4) and exp(1/4) keep many of them in a row from exploding."""
        import tensorflow as tf
        from tensorflow_probability import bijectors as tfb

        skewness, log_tails = (tf.tanh(weights[name]) / 4 for name in ("skewness", "tails"))
        return tfb.SinhArcsinh(skewness, tf.exp(log_tails))


# By name, in the order in which they are listed to users.
STEP_LAYERS: dict[str, StepLayer] = {
    layer.name: layer
    for layer in [
        SinhArcsinh(),
    ]
}
