"""A context that runs functions eagerly, because tracing them takes longer than running them once or twice."""

import contextlib


@contextlib.contextmanager
def run_eagerly():
    """Runs each `tf.function` eagerly inside the context, and restores the setting afterwards."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
