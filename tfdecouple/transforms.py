"""Coupling transforms: invertible functions that a coupling can apply to x_b, the half of the channels that it changes.

To add a transform, write a subclass of `Transform` and add an instance to `TRANSFORMS`. The choices in the config,
parameter counts, training, inversion, exports, and the tests that run for each transform then include the new one.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow_probability import bijectors as tfb


class Transform(abc.ABC):
    """The base class of coupling transforms, invertible functions of each entry of x_b, half of the channels.

    Attributes:
        name: name of the transform in a config (`model.transform`).
        parameters: count of parameters that the net inside a coupling computes for each entry of x_b.
    """

    name: ClassVar[str]
    parameters: ClassVar[int]

    @abc.abstractmethod
    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns a bijector from x_b, the half of the channels that a coupling changes, to y_b (direction x -> v).

        The bijector is elementwise (`forward_min_event_ndims=0`), either a `ClosedForm` of `tfdecouple/bijectors/` or
        a bijector of TFP. Every coupling starts with raw parameters of 0, for which the bijector must be the identity.
        Forward and inverse should use operations that tf2onnx converts (exp, tanh, sigmoid, softplus, log, products,
        sums, quotients; not expm1 and log1p).

        Args:
            raw: the output of the coupling's net: a tensor, unbounded and of the shape of x_b, for each parameter.
            alpha: largest difference between a scale and 1, in (0, 1], from the config.
        """

    def count_activations(self, alpha: float) -> int:
        """Returns how many values this transform stores for the backward pass, per entry of x_b, its input.

        The default is an estimate: x_b, and each parameter before and after it is bounded.
        """
        return 1 + 2 * self.parameters


class Affine(Transform):
    """The affine transform of a coupling, y = s x + b, s = 1 + alpha tanh(u/2) (equation 6, B.2); a net gives b, u."""

    name = "affine"
    parameters = 2

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        from tfdecouple.bijectors import BoundedAffine

        shift, unbounded = raw
        return BoundedAffine(shift, unbounded, alpha)

    def count_activations(self, alpha: float) -> int:
        """Returns how many values y = s x + b stores for the backward pass, per entry of x: 3, or 4 if alpha < 1."""
        return 3 if alpha == 1 else 4


class Additive(Transform):
    """The additive transform of a coupling, y = x + b; the coupling's net computes the shift b."""

    name = "additive"
    parameters = 1

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        from tfdecouple.bijectors import Shift

        return Shift(*raw)

    def count_activations(self, alpha: float) -> int:
        """Returns 0: y = x + b stores no value for the backward pass, because x, b and y have the same gradient."""
        return 0


# {name of a coupling transform in the config: the transform}, in the order in which messages list the names.
TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Affine(),
        Additive(),
    )
}
