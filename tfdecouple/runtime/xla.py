"""Whether what is being traced will be compiled by XLA, which lacks some operations."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def in_xla() -> bool:
    """Returns whether a `tf.function(jit_compile=True)` is being traced, at any level."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))
