"""The private parts of TensorFlow that this package uses. They are all here, because a release may change them.

Each has a test in tests/runtime/test_tensorflow_internals.py, which `make test-nightly` runs with the nightly builds.
"""

import contextlib
import functools
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import context, record
from tensorflow.python.ops import control_flow_util
from tensorflow.python.trackable.base import VARIABLE_VALUE_KEY, Trackable  # noqa: F401 - other modules import them
from tensorflow.python.util import _pywrap_util_port

# A context in which no gradient tape records operations; `tf.GradientTape.stop_recording` needs the tape, which a layer
# does not have.
pause_gradient_tapes = record.stop_recording


def is_onednn_on() -> bool:
    """Returns whether the library oneDNN computes TensorFlow's convolutions on CPUs, and not TensorFlow's own code."""
    return bool(_pywrap_util_port.IsMklEnabled())


def is_traced_for_xla() -> bool:
    """Returns whether the caller is traced inside a `tf.function(jit_compile=True)`, at any level of nesting."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


@contextlib.contextmanager
def worker_timeout(seconds: int) -> Iterator[None]:
    """A context in which new strategies count a worker as dead after this many seconds without a heartbeat.

    TensorFlow's coordination service counts after 10 seconds, too few for a busy host, and has no public option.
    """
    current = context.context()
    configure = current.configure_coordination_service
    current.configure_coordination_service = functools.partial(configure, heartbeat_timeout_in_ms=1000 * seconds)
    try:
        yield
    finally:
        del current.configure_coordination_service
