"""The logger for TensorBoard, which writes event files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from tfdecouple.errors import one_line
from tfdecouple.loggers.base import Logger, Row, select_numbers


class TensorBoard(Logger):
    """A logger of metrics, pictures and, as hyperparameters, the config to `tensorboard/` in the run folder.

    It raises OSError where the disk is full, so that the run ends as it does for `metrics.jsonl`.
    """

    name = "tensorboard"

    def __init__(self, folder: pathlib.Path, config: Any):
        import tensorflow as tf

        super().__init__(folder / "tensorboard", config)
        self._writer = tf.summary.create_noop_writer()

    def open(self, step: int) -> None:
        """Starts a log, or resumes it and makes TensorBoard drop all points after the step."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hparams

        with _os_errors():
            if self.folder.exists():
                _mark_restart(self.folder, step)
            self._writer = tf.summary.create_file_writer(str(self.folder))
            with self._writer.as_default(step=step):
                options = self.config.options().items()
                hparams.hparams({name: v if isinstance(v, float | int | str) else json.dumps(v) for name, v in options})

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row of metrics to the event file."""
        import tensorflow as tf

        with _os_errors(), self._writer.as_default(step=step):
            for name, value in select_numbers(kind, values).items():
                tf.summary.scalar(name, value)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds a picture, a PNG file, to the event file."""
        import numpy as np
        import tensorflow as tf
        from PIL import Image

        with _os_errors(), self._writer.as_default(step=step), Image.open(path) as picture:
            tf.summary.image(name, np.asarray(picture.convert("RGB"))[None])

    def flush(self) -> None:
        """Writes out all rows and pictures that the writer has buffered."""
        with _os_errors():
            self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        with _os_errors():
            self._writer.close()


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Returns a context in which an error of TensorFlow's event writer becomes an OSError."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, one_line(error, first=True)) from error


def _mark_restart(folder: pathlib.Path, step: int) -> None:
    """Writes an event that the run resumed at `step`, so that TensorBoard drops all later points."""
    import tensorflow as tf

    with tf.Graph().as_default():
        writer = tf.compat.v1.summary.FileWriter(str(folder), filename_suffix=".restart")
        writer.add_session_log(tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START), step + 1)
        writer.close()
