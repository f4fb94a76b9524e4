"""Exports the model of a training run as a SavedModel, as ONNX or LiteRT files, or as a web page.

All files are compared with the Keras model before the export folder is made. The command is
`tfdecouple export --run RUN --to DIR`; the function is `export.pipeline.export`, whose progress the logger
"export" gets.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

# The logger of exports and their verification, with lines of progress at the level INFO.
LOG = logging.getLogger("export")


@contextlib.contextmanager
def show_progress(show: Callable[[str], object]) -> Iterator[None]:
    """A context in which `show` is called with each line of progress of exports."""
    handler, level = logging.Handler(), LOG.level
    # Errors of `show` are raised, because an export ends if nobody reads its lines any more.
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[assignment, method-assign]
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    # Libraries that an export imports give the root logger a handler, which would print each line again.
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.propagate = True
        LOG.setLevel(level)
        LOG.removeHandler(handler)
