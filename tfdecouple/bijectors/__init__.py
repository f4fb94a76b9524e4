"""The elementary maps of the flow as TFP bijectors, their log-determinants in closed form (paper section 2.2, A and B).

Each takes `[batch, ..., channels]` in either direction. Parameters are tensors: a layer reads its weights in the call
and hands them over. `forward_and_log_det` gives value and log-determinant at once, without TFP's cache, which would
keep maps alive until garbage is collected.
"""

from tfdecouple.bijectors.channels import ChannelAffine, ChannelLU, ChannelMatrix, Squeeze
from tfdecouple.bijectors.closed_form import ClosedForm, forward_and_log_det, inverse_and_log_det
from tfdecouple.bijectors.elementwise import BoundedAffine, Shift, Sigmoid, Whitening

__all__ = [
    "BoundedAffine",
    "ChannelAffine",
    "ChannelLU",
    "ChannelMatrix",
    "ClosedForm",
    "Shift",
    "Sigmoid",
    "Squeeze",
    "Whitening",
    "forward_and_log_det",
    "inverse_and_log_det",
]
