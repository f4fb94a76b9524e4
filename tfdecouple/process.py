"""Settings of a whole process, made by the programs and never by importing the library."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

from tfdecouple.errors import UserError


def start_tensorflow() -> None:
    """Imports TensorFlow without its chatter and sets it up; call it before anything else imports TensorFlow.

    Grappler's rewriting is turned off: measured on two CPU cores, the rewriting of the training step took 10 of the 29
    seconds to the first step of the quickstart, and each step was slower for it (58 images/s instead of 98).

    A user who sets TF_CPP_MIN_LOG_LEVEL sees what TensorFlow has to say.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        import tensorflow as tf
    else:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
        with _standard_error_closed():
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@contextlib.contextmanager
def _standard_error_closed() -> Iterator[None]:
    """Drops what native code writes to standard error: TensorFlow logs there before any log level applies."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def run_program(main: Callable[[], int]) -> int:
    """Runs a program and turns a user's mistake into one line and an exit status of 2."""
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): nothing to report, and nobody to report it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
