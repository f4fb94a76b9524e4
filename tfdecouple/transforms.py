"""Coupling transforms: the functions that a coupling applies to the channels x_b, registered by name.

To add a transform, write a subclass of `Transform` and add an instance to `TRANSFORMS`. The choices in the config,
parameter counts, training, inversion, the tests of every transform and the exports then include the transform.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow_probability import bijectors as tfb


class Transform(abc.ABC):
    """The base class of transforms: invertible functions of each entry of x_b, with parameters from a network.

    Attributes:
        name: name of the transform in a config (`model.transform`).
        parameters: number of parameters that the network computes for each entry of x_b.
    """

    name: ClassVar[str]
    parameters: ClassVar[int]

    @abc.abstractmethod
    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bijector that maps x_b in the forward direction (towards v), for parameters from the network.

        The bijector is elementwise (`forward_min_event_ndims=0`), either a `ClosedForm` of `tfdecouple/bijectors/` or
        one of TFP's. Every coupling starts with raw parameters of 0, for which the bijector must be the identity.
        Forward and inverse should use operations that tf2onnx converts (exp, tanh, sigmoid, softplus, log, products,
        sums, quotients; not expm1 and log1p), and no arrays of constants, which the verification of exports refuses.

        Args:
            raw: tensors, one per parameter, with any values, of the shape of x_b, `[batch, ..., transformed channels]`.
            alpha: largest difference between a scale and 1, in (0, 1], from the config.
        """

    def count_activations(self, alpha: float) -> int:
        """Returns the number of values that the backward pass stores per entry of x_b.

        The default is an estimate: x_b, and each parameter raw and constrained.
        """
        return 1 + 2 * self.parameters


class Affine(Transform):
    """The affine transform y = s x + b with s in (1 - alpha, 1 + alpha) (paper equation 6 and B.2); raw is (b, u)."""

    name = "affine"
    parameters = 2

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bijector y = s x + b with a bounded scale s."""
        from tfdecouple.bijectors import BoundedAffine

        shift, unbounded = raw
        return BoundedAffine(shift, unbounded, alpha)

    def count_activations(self, alpha: float) -> int:
        """Returns 3, for x_b, u and the scale, or 4 if alpha < 1, for the tanh as well."""
        return 3 if alpha == 1 else 4


class Additive(Transform):
    """The additive transform y = x + b; raw is (b,)."""

    name = "additive"
    parameters = 1

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bijector y = x + b; alpha has no effect, because there is no scale."""
        from tfdecouple.bijectors import Shift

        return Shift(*raw)

    def count_activations(self, alpha: float) -> int:
        """Returns 0, because the gradients for x_b and the shift are equal to the gradient for the output."""
        return 0


# All transforms by name, in the order in which messages list them.
TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Affine(),
        Additive(),
    )
}
