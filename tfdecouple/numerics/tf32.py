"""Contexts that set the precision of the whole process: full float32, or TF32.

On NVIDIA GPUs since Ampere TensorFlow rounds the operands of float32 matrix products and convolutions to 10 bits of
mantissa (TF32) unless TensorFlow's switch for TF32 is off. A flow inverts exactly only if both directions compute equal
numbers in float32. So all computations except training with `training.precision=tf32` run inside `full_float32`.

TensorFlow has one switch for the whole process and reads it when an operation starts. The switch is off while any
thread is inside `full_float32`; then all other threads compute in full float32, too, which is more exact.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator

import tensorflow as tf

from tfdecouple.errors import warn_user

_enabled = tf.config.experimental.tensor_float_32_execution_enabled
_enable = tf.config.experimental.enable_tensor_float_32_execution

# Traced graphs about which `full_float32` has warned the user; it warns once for each graph.
_warned: weakref.WeakSet[tf.Graph] = weakref.WeakSet()


def has_tf32() -> bool:
    """Returns whether a GPU of this machine computes in TF32 (NVIDIA since Ampere, compute capability 8.0)."""
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return any(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in details)


class _Switch:
    """Sets TensorFlow's switch for TF32; counts the open contexts that need TF32 off (`full`) and on (`tf32`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.full = self.tf32 = 0
        self._user_setting = False

    def count_contexts(self, *, full: int = 0, tf32: int = 0) -> None:
        """Adds `full` and `tf32` to the counts of open contexts, and sets TensorFlow's switch for TF32 accordingly.

        TF32 is off if a context needs it off, else on if a context needs it on, else as the user set it.
        """
        with self._lock:
            if not (self.full or self.tf32):
                self._user_setting = _enabled()
            self.full += full
            self.tf32 += tf32
            _enable(not self.full and (self.tf32 > 0 or self._user_setting))


_switch = _Switch()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """A context, also a decorator of functions, whose code computes in full float32, without TF32.

    Contexts can be nested and entered by several threads at once; TensorFlow's switch for TF32 returns to the user's
    setting when the last context ends. The switch has no effect on a `tf.function` that is traced inside the context,
    because its operations run later: if TF32 is on and TensorFlow sees a GPU, each trace issues one warning.

    >>> enabled = tf.config.experimental.tensor_float_32_execution_enabled
    >>> with full_float32():
    ...     print(enabled())
    False
    >>> enabled()
    True
    """
    if not tf.executing_eagerly():
        _warn_of_trace()
        yield
        return
    _switch.count_contexts(full=1)
    try:
        yield
    finally:
        _switch.count_contexts(full=-1)


@contextlib.contextmanager
def tensor_float_32() -> Iterator[None]:
    """A context whose code computes in TF32 on GPUs that have it, unless any thread is inside `full_float32`."""
    _switch.count_contexts(tf32=1)
    try:
        yield
    finally:
        _switch.count_contexts(tf32=-1)


def has_visible_gpu() -> bool:
    """Returns whether TensorFlow sees a GPU that it can place operations on."""
    return bool(tf.config.get_visible_devices("GPU"))


def _warn_of_trace() -> None:
    """Warns the user, once for each traced function, if the function being traced can later run in TF32 on a GPU."""
    if not _enabled() or _switch.tf32 or not has_visible_gpu():
        return
    trace = tf.compat.v1.get_default_graph()
    while getattr(getattr(trace, "outer_graph", None), "building_function", False):
        trace = trace.outer_graph
    if trace in _warned:
        return
    _warned.add(trace)
    warn_user(
        "this function calls tfdecouple and is traced while TF32 is on: on a GPU it computes with 10 bits of mantissa "
        "and may decode images inexactly; before it, call "
        "tf.config.experimental.enable_tensor_float_32_execution(False), or call the model outside of this function",
        RuntimeWarning,
    )
