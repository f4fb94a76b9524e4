"""Coupling transforms: the invertible functions that a coupling can apply to the channels x_b, by name.

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
    """The base class of transforms: invertible functions of each entry of x_b, with parameters from a neural net.

    Attributes:
        name: name of the transform in a config (`model.transform`).
        parameters: number of parameters that the net inside a coupling computes for each entry of x_b.
    """

    name: ClassVar[str]
    parameters: ClassVar[int]

    @abc.abstractmethod
    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bijector that maps x_b to y_b (towards v), with parameters computed from the net's output.

        The bijector is elementwise (`forward_min_event_ndims=0`), either a `ClosedForm` of `tfdecouple/bijectors/` or
        one of TFP's. Every coupling starts with raw parameters of 0, for which the bijector must be the identity.
        Forward and inverse should use operations that tf2onnx converts (exp, tanh, sigmoid, softplus, log, products,
        sums, quotients; not expm1 and log1p), and no arrays of constants, which the verification of exports refuses.

        Args:
            raw: the net's output: one tensor per parameter, unbounded, of the shape of x_b `[batch, ..., channels]`.
            alpha: largest difference between a scale and 1, in (0, 1], from the config.
        """

    def count_activations(self, alpha: float) -> int:
        """Returns how many values per entry of x_b are stored for the backward pass.

        The default is an estimate: x_b, and each parameter before and after it is bounded.
        """
        return 1 + 2 * self.parameters


class Affine(Transform):
    """The affine transform y = s x + b, s = 1 + alpha tanh(u/2) (equation 6 and B.2); the net computes b and u."""

    name = "affine"
    parameters = 2

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bijector y = s x + b, with s in (1 - alpha, 1 + alpha), for `raw` = (b, u)."""
        from tfdecouple.bijectors import BoundedAffine

        shift, unbounded = raw
        return BoundedAffine(shift, unbounded, alpha)

    def count_activations(self, alpha: float) -> int:
        """Returns how many values are stored per entry of x_b: 3 (x_b, u, scale), or 4 if alpha < 1 (also the tanh)."""
        return 3 if alpha == 1 else 4


class Additive(Transform):
    """The additive transform y = x + b, with a shift b from the net."""

    name = "additive"
    parameters = 1

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bijector y = x + b for `raw` = (b,); alpha has no effect, because there is no scale."""
        from tfdecouple.bijectors import Shift

        return Shift(*raw)

    def count_activations(self, alpha: float) -> int:
        """Returns 0: the gradients for x_b and b equal that for the output, so no value is stored for them."""
        return 0


# All transforms by name, in the order in which messages list them.
TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Affine(),
        Additive(),
    )
}
