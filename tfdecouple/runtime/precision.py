"""The precision of the products in encoder and coupling nets, the only parts of a model that may run below float32."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tfdecouple.errors import UserError

NET_PRECISIONS = ("float32", "tf32", "bfloat16")

_state = threading.local()


@contextlib.contextmanager
def net_precision(dtype: str) -> Iterator[None]:
    """Runs the coupling nets that are called (or traced) inside in `dtype`.

    "tf32" says that TensorFlow's own switch may be on when the computation runs (`runtime/tf32.py`): products of the
    encoder and of coupling nets on images are left to it, all others go round it (`full_product`), since the switch
    holds for a whole graph. "bfloat16" is of the coupling nets on images alone.

    The precision belongs to a computation and not to a model: training may use "bfloat16" while encode and decode of
    the same model stay in float32. Exact inversion needs that, for in lower precision the net would see rounded
    inputs on the way back that round differently from those on the way forward.

    Args:
        dtype: "float32", "tf32" or "bfloat16".

    Raises:
        UserError: for another.
    """
    if dtype not in NET_PRECISIONS:
        raise UserError(f"the precision of the nets is {dtype!r}; it must be one of {', '.join(NET_PRECISIONS)}")
    before = getattr(_state, "dtype", None)
    _state.dtype = None if dtype == "float32" else dtype
    try:
        yield
    finally:
        _state.dtype = before


def current_net_precision() -> str | None:
    """Returns what was told to `net_precision`, or None for the full precision of the layer."""
    return getattr(_state, "dtype", None)
