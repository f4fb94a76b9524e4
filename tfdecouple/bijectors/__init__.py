"""The elementary maps of the flow: TFP bijectors with log-determinants in closed form (paper section 2.2).

A bijector takes arrays `[batch, ..., channels]` in either direction. The parameters of a bijector are tensors: a layer
makes a new bijector in each call, from the values of its weights. Two methods return value and log-determinant
together. They have no cache, unlike TFP's methods, so that no feature map stays in memory. `with_log_det` gives the
two methods to any bijector of TFP.
"""

from tfdecouple.bijectors.closed_form import ClosedForm, with_log_det
from tfdecouple.bijectors.elementary_bijectors import (
    BoundedAffine,
    ChannelAffine,
    ChannelMatrix,
    Shift,
    Sigmoid,
    Squeeze,
    Whitening,
)

__all__ = [
    "BoundedAffine",
    "ChannelAffine",
    "ChannelMatrix",
    "ClosedForm",
    "Shift",
    "Sigmoid",
    "Squeeze",
    "Whitening",
    "with_log_det",
]
