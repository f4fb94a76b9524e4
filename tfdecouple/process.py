"""Settings of a whole process, made by the programs and never by importing the library."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from tfdecouple.errors import UserError


def quiet_tensorflow() -> None:
    """Silences TensorFlow's start-up chatter; call it before TensorFlow is imported.

    A user who sets TF_CPP_MIN_LOG_LEVEL keeps the own setting.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def tune_tensorflow() -> None:
    """Turns Grappler's rewriting off; call it before the first operation runs.

    Measured on two CPU cores, the rewriting of the training step took 10 of the 29 seconds to the first step of the
    quickstart and made each step slower: 58 images/s with it and 98 without.
    """
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


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
