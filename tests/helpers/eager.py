"""Functions that run eagerly for a while: to trace them takes longer than to run them once or twice."""

import contextlib


@contextlib.contextmanager
def run_eagerly():
    """Within it a `tf.function` is a plain function; afterwards it is what it was before."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
