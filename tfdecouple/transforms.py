"""Coupling transforms: what a coupling does to the channels x_b, and the registry in which it is found by its name.

The one file to edit for a new transform: a subclass of `Transform`, and its place in `TRANSFORMS`. The
choices of the config, the counts of parameters, training, inversion, the tests of every transform and the exports
follow from there.
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
        """Constrains what the network gave, and returns the bijector of x_b, x -> v.

        Raw parameters that are all 0 must give the identity: every coupling starts there. The bijector is elementwise
        (`forward_min_event_ndims=0`), either a `ClosedForm` of `tfdecouple/bijectors/` or one of TFP's. Its forward
        and inverse should consist of operations that tf2onnx converts (exp, tanh, sigmoid, softplus, log, products,
        sums, quotients; not expm1 and log1p), and of no arrays of constants, only of numbers: the gate of exports
        knows every array of a file.

        Args:
            raw: `parameters` tensors of the shape of x_b, `[batch, ..., transformed channels]`, of any values.
            alpha: in (0, 1], the config's bound of how far a scale may be from 1.
        """

    def kept(self, alpha: float) -> int:
        """Returns how many numbers the backward pass needs of it for each number of x_b (`costs.py` counts them).

        Unless a transform says it itself, a guess: x_b, and each parameter as the network gave it and constrained.
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

    def kept(self, alpha: float) -> int:
        """Returns it: x_b, u, the scale, with alpha below 1 a tanh, and y, which alternating splits keep."""
        return 4 if alpha == 1 else 5


class Additive(Transform):
    """y = x + b; raw is (b,)."""

    name = "additive"
    parameters = 1

    def bijector(self, raw: Sequence[tf.Tensor], alpha: float) -> tfb.Bijector:
        """Returns the shift; there is no scale for alpha to bound."""
        from tfdecouple.bijectors import Shift

        return Shift(*raw)

    def kept(self, alpha: float) -> int:
        """Returns 0: the gradients are those of the output."""
        return 0


# By name, in the order in which they are listed to users.
TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Affine(),
        Additive(),
    )
}
