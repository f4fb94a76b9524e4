"""The elementary maps of the flow: TFP bijectors with log-determinants in closed form (paper section 2.2, A and B).

Each bijector takes `[batch, ..., channels]` in either direction. Its parameters are tensors: a layer reads its weights
in each call and passes their values. `forward_and_log_det` returns value and log-determinant at once, without TFP's
cache, which would hold maps in memory until garbage is collected.
"""

from tfdecouple.bijectors.channels import ChannelAffine, ChannelMatrix, Squeeze
from tfdecouple.bijectors.closed_form import ClosedForm, forward_and_log_det, inverse_and_log_det
from tfdecouple.bijectors.elementary_bijectors import BoundedAffine, Shift, Sigmoid, Whitening

__all__ = [
    "BoundedAffine",
    "ChannelAffine",
    "ChannelMatrix",
    "ClosedForm",
    "Shift",
    "Sigmoid",
    "Squeeze",
    "Whitening",
    "forward_and_log_det",
    "inverse_and_log_det",
]
