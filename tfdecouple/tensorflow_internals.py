"""The private parts of TensorFlow that this package uses. They are all here, because a release may change them.

Each has a test in tests/test_tensorflow_internals.py, which `make test-nightly` runs with the nightly builds.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import tensorflow as tf
from tensorflow.python.data.ops.iterator_ops import OwnedIterator
from tensorflow.python.eager import context, record
from tensorflow.python.ops import control_flow_util
from tensorflow.python.util import _pywrap_util_port

# A context in which no gradient tape records operations; `tf.GradientTape.stop_recording` needs the tape, which a layer
# does not have.
pause_gradient_tapes = record.stop_recording

# The errors of a loop over a dataset for damaged records. TensorFlow quotes damaged bytes in its messages, and then
# raises UnicodeDecodeError instead of its own error.
READ_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


def replace_input(op: tf.Operation, index: int, tensor: tf.Tensor) -> None:
    """Lets an operation of a graph read `tensor` as its input number `index`."""
    op._update_input(index, tensor)


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


class GuardedDataset(tf.data.Dataset):
    """A dataset with the elements of `dataset`, each of which a loop takes in a context that `guard` returns.

    The context can raise another error instead of TensorFlow's. A dataset made of this one, as by `batch`, has none.
    """

    def __init__(self, dataset: tf.data.Dataset, guard: Callable[[], contextlib.AbstractContextManager]) -> None:
        self._dataset, self._guard = dataset, guard
        super().__init__(dataset._variant_tensor)

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    @property
    def element_spec(self) -> tf.TypeSpec:
        return self._dataset.element_spec

    def __iter__(self) -> Iterator[tf.Tensor]:
        return _GuardedIterator(self) if tf.executing_eagerly() else super().__iter__()


class _GuardedIterator(OwnedIterator):
    def __init__(self, dataset: GuardedDataset) -> None:
        super().__init__(dataset)
        self._guard = dataset._guard

    def _next_internal(self) -> tf.Tensor:
        try:
            return super()._next_internal()
        except tf.errors.OutOfRangeError:
            raise
        except READ_ERRORS:
            with self._guard():
                raise
