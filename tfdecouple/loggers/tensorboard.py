"""TensorBoard: figures, pictures and the config."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator, Sequence

from tfdecouple.errors import one_line
from tfdecouple.loggers.base import Logger, Options, Row, numbers, parameters


class TensorBoard(Logger):
    """Figures, pictures and, for its tab of hyperparameters, the config, in `tensorboard/`.

    Its errors are those of the operating system: the run ends on a full disk as it does for its own log.
    """

    name = "tensorboard"

    def __init__(self, folder: pathlib.Path, config: Options):
        import tensorflow as tf

        super().__init__(folder / "tensorboard", config)
        self._writer = tf.summary.create_noop_writer()

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Begins, or tells TensorBoard to drop what it has seen beyond the step."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hparams

        with _os_errors():
            if self.folder.exists():
                _mark_restart(self.folder, step)
            self._writer = tf.summary.create_file_writer(str(self.folder))
            with self._writer.as_default(step=step):
                hparams.hparams(parameters(self.config))

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row."""
        import tensorflow as tf

        with _os_errors(), self._writer.as_default(step=step):
            for name, value in numbers(kind, values).items():
                tf.summary.scalar(name, value)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Shows a PNG file."""
        import numpy as np
        import tensorflow as tf
        from PIL import Image

        with _os_errors(), self._writer.as_default(step=step), Image.open(path) as picture:
            tf.summary.image(name, np.asarray(picture.convert("RGB"))[None])

    def flush(self) -> None:
        """Writes out what the writer holds."""
        with _os_errors():
            self._writer.flush()

    def close(self) -> None:
        """Ends."""
        with _os_errors():
            self._writer.close()


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turns the error of TensorFlow's event writer into the OSError that it is."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, one_line(error, first=True)) from error


def _mark_restart(folder: pathlib.Path, step: int) -> None:
    """Tells TensorBoard that the run went back to `step`, so that it drops what it had seen beyond."""
    import tensorflow as tf

    with tf.Graph().as_default():
        writer = tf.compat.v1.summary.FileWriter(str(folder), filename_suffix=".restart")
        writer.add_session_log(tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START), step + 1)
        writer.close()
