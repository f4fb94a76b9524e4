"""Coupling transforms: the functions that a coupling applies to the channels x_b, registered by name.

A new transform is a subclass of `Transform` and its entry in `TRANSFORMS`. The choices of the config, the counts of
parameters, training, inversion, the tests of every transform and the exports follow.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow_probability import bijectors as tfb


class Transform(abc.ABC):
    """An invertible function of each number of x_b, whose parameters a network computes from x_a and z.

    Attributes:
        name: as in a config (`model.transform`).
        parameters: how many numbers the network gives for each number of x_b.
    """

    name: ClassVar[str]
    parameters: ClassVar[int]

    @abc.abstractmethod
    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bijector of x_b, x -> v, for parameters from the network.

        Raw parameters that are all 0 must give the identity: every coupling starts there. The bijector is elementwise
        (`forward_min_event_ndims=0`), either a `ClosedForm` of `tfdecouple/bijectors/` or one of TFP's. Its forward
        and inverse should consist of operations that tf2onnx converts (exp, tanh, sigmoid, softplus, log, products,
        sums, quotients; not expm1 and log1p), and of numbers but no constant arrays, which the verification of exports
        refuses.

        Args:
            raw: `parameters` tensors of the shape of x_b, `[batch, ..., transformed channels]`, of any values.
            alpha: in (0, 1], the config's bound of how far a scale may be from 1.
        """

    def count_activations(self, alpha: float) -> int:
        """Returns how many numbers the backward pass stores for each number of x_b; `networks/costs.py` adds them up.

        The default is a guess: x_b, and each parameter raw and constrained.
        """
        return 1 + 2 * self.parameters


class Affine(Transform):
    """y = s x + b, with the scale s in (1 - alpha, 1 + alpha) (paper equation 6 and B.2); raw is (b, u)."""

    name = "affine"
    parameters = 2

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the bounded affine bijector."""
        from tfdecouple.bijectors import BoundedAffine

        shift, unbounded = raw
        return BoundedAffine(shift, unbounded, alpha)

    def count_activations(self, alpha: float) -> int:
        """Returns 3 (x_b, u and the scale), or 4 where alpha < 1 needs a tanh."""
        return 3 if alpha == 1 else 4


class Additive(Transform):
    """y = x + b; raw is (b,)."""

    name = "additive"
    parameters = 1

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the shift; there is no scale for alpha to bound."""
        from tfdecouple.bijectors import Shift

        return Shift(*raw)

    def count_activations(self, alpha: float) -> int:
        """Returns 0: the gradients of x_b and of the shift are that of the output."""
        return 0


# By name, in the order in which they are listed to users.
TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Affine(),
        Additive(),
    )
}
