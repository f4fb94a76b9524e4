"""Transforms of couplings: invertible functions of x_b, the half of the channels that a coupling changes."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tfdecouple.bijectors import BoundedAffine, Shift


class Transform(NamedTuple):
    """An invertible function of each entry of x_b, half of the channels.

    Attributes:
        make_bijector: function that makes the transform's bijector from x_b to y_b (direction x -> v). Its arguments
            are a tensor of unbounded values, of the shape of x_b, for each parameter, and the keyword `alpha`, the
            largest difference between a scale and 1, in (0, 1]. The bijector is elementwise
            (`forward_min_event_ndims=0`), a `ClosedForm` of `tfdecouple/bijectors/` or a bijector of TFP. Every
            coupling starts with parameters of 0, for which it must be the identity. Forward and inverse should use
            operations that tf2onnx converts (exp, tanh, sigmoid, softplus, log, products, sums, quotients; not expm1
            and log1p).
        parameters: count of parameters that the net inside a coupling computes for each entry of x_b.
        activations: function from alpha to the count of values that are stored for the backward pass, per entry of
            x_b; None for an estimate: x_b, and each parameter before and after it is bounded.
    """

    make_bijector: Callable[..., Any]
    parameters: int
    activations: Callable[[float], int] | None = None

    def count_activations(self, alpha: float) -> int:
        """Returns how many values this transform stores for the backward pass, per entry of x_b, its input."""
        return 1 + 2 * self.parameters if self.activations is None else self.activations(alpha)


# The net gives b and u; y = s x + b with s = 1 + alpha tanh(u/2) (equation 6, B.2).
AFFINE = Transform(BoundedAffine, 2, lambda alpha: 3 if alpha == 1 else 4)
# The net gives b; y = x + b stores no value, because x, b and y have the same gradient.
ADDITIVE = Transform(Shift, 1, lambda alpha: 0)
