"""Start and end of a program: TensorFlow set up for a whole process, and failures as one line and an exit status.

Only programs call this module; importing the library changes no process-wide setting.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import logging
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from tfdecouple.errors import UserError, one_line
from tfdecouple.runtime.devices import Settings, cores
from tfdecouple.runtime.requirements import EXTRAS, missing, require_backend

# The values of options of malloc.h: how many free bytes at the end of the heap are given back (M_TRIM_THRESHOLD), how
# many more than needed are asked for (M_TOP_PAD), and from which size on blocks are mapped singly (M_MMAP_THRESHOLD).
_MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
# Keras imports these packages, which takes a second, for wrappers and plots that the programs do not use.
_UNUSED = ("sklearn", "matplotlib", "IPython", "pandas")


def start_tensorflow(threads: int | None = None) -> None:
    """Imports TensorFlow without its messages and sets it up; call it before anything else imports TensorFlow.

    `runtime/devices.py` decides about the settings. The variable TF_CPP_MIN_LOG_LEVEL shows TensorFlow's messages.

    Args:
        threads: how many threads compute where there is no GPU; None for one a core.

    Raises:
        ConfigError: where Keras is set to another backend than TensorFlow or to channels first, or where a variable of
            `runtime/devices.py` has no valid value.
    """
    require_backend()
    _keep_memory()
    # With Python's own thresholds the search for garbage in hundreds of thousands of objects takes a second of ten.
    gc.set_threshold(100_000, 20, 20)
    is_quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    if is_quiet:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        for name in ("tensorflow", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
    with _hidden(*_UNUSED), _standard_error_closed() if is_quiet else contextlib.nullcontext():
        import tensorflow as tf

        gpus = len(tf.config.list_physical_devices("GPU"))
    settings = Settings.choose(gpus, threads or cores())
    settings.apply()
    if threads or not gpus:
        divide_cores(threads or cores(), settings.shards)


def divide_cores(threads: int, shards: int) -> None:
    """Sets how many threads an operation takes and how many operations run side by side.

    On two cores each operation takes one, and the flow runs on the two halves of a batch side by side
    (`runtime/execution.py`): a small model trains at 127 images/s instead of 79.

    Where the user sets one of TensorFlow's variables for these numbers, TensorFlow chooses the other.
    """
    import tensorflow as tf

    if any(name in os.environ for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")):
        return
    # Where a user's code has started TensorFlow, its threads stay as they are.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads // shards)
        # `shard_count` divides this number by the other to get the shards.
        tf.config.threading.set_inter_op_parallelism_threads(threads // shards * shards)


def _keep_memory() -> None:
    """Makes glibc keep freed memory for the next step, unless the user has set one of its variables.

    Memory that is given back is taken again page by page: 180,000 page faults in a training step of the preset cifar10,
    a tenth of its time.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in _MALLOC_OPTIONS.items():
        mallopt(option, value)


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Makes packages that are not imported yet look as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    # An entry of None makes an import fail.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _standard_error_closed() -> Iterator[None]:
    """Drops messages of native code on standard error: TensorFlow logs there before any log level applies."""
    stream = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(stream, 2)
        os.close(stream)


def python_process(*arguments: str, **environment: str) -> dict[str, Any]:
    """Returns the arguments `args` and `env` with which `subprocess` starts another Python.

    The process finds modules where this one finds them, and none in its working folder.

    Args:
        *arguments: of Python, such as "-m" and a module.
        **environment: further environment variables.
    """
    package = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join(map(os.path.abspath, [*sys.path, package]))
    return {"args": [sys.executable, "-P", *arguments], "env": {**os.environ, **environment, "PYTHONPATH": path}}


def given_arguments(arguments: Sequence[str] | None) -> list[str]:
    """Returns the arguments of a program: those of a call in Python, or those of the command line.

    Raises:
        UserError: for an argument with a NUL, which no file name contains.
    """
    given = list(map(str, sys.argv[1:] if arguments is None else arguments))
    for text in given:
        if "\0" in text:
            raise UserError(f"the argument {text!r} holds a NUL; leave it out")
    return given


def run_program(main: Callable[[], int]) -> int:
    """Runs a program and turns failures into one line on standard error and an exit status.

    Returns:
        What `main` returns; 2 for a user's mistake, a full disk or too little memory; 130 where interrupted; 141 where
        the reader of our output closed it; 1 for a fault of our own, whose traceback TFDECOUPLE_TRACEBACK=1 shows.
    """
    _prepare_output()
    # Python's last search for garbage would take seconds with TensorFlow's graphs.
    atexit.register(gc.freeze)
    try:
        try:
            status = main()
        except SystemExit:
            sys.stdout.flush()
            raise
        # A full disk fails here at the latest.
        sys.stdout.flush()
        return status
    except UserError as error:
        return _report(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _report_interruption(*interrupt.args)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has ended: there is nobody to report to.
        drop_output()
        return 141
    except OSError as error:
        drop_output()
        name = error.filename
        where = f"cannot use {name}" if isinstance(name, str) else "cannot write to standard output, or another file"
        return _report(f"{where}: {error.strerror or error}; mend that and start again", 2)
    except UnicodeError as error:
        return _report(f"a name or text is not UTF-8 here ({error}); rename it, or set LC_ALL=C.UTF-8", 2)
    except Exception as error:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
            return _report(missing(package, "the command"), 2)
        if was_interrupted(error):
            return _report_interruption()
        # By its name, since TensorFlow may not be imported; the text is that of a library too large for the memory.
        out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
        if out_of_memory or "failed to map segment" in str(error):
            what = one_line(error, first=True)
            return _report(f"out of memory ({what}); take fewer images at a time or a smaller model", 2)
        if os.environ.get("TFDECOUPLE_TRACEBACK"):
            raise
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{type(error).__name__}: {error} ({pathlib.Path(last.filename).name}, line {last.lineno})"
        return _report(f"a fault of this program, please report it: {where}; TFDECOUPLE_TRACEBACK=1 shows where", 1)


def was_interrupted(error: BaseException) -> bool:
    """Returns whether an exception is an interruption, or was raised because of one.

    TensorFlow replaces an exception that is raised while it calls Python, and the clean-up of an interruption may fail.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt) or "KeyboardInterrupt" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _report_interruption(*saved: object) -> int:
    """Prints that the program was interrupted, and what was saved."""
    # TensorFlow's generators that the interruption left unfinished fail when Python closes them, with messages.
    sys.unraisablehook = lambda _: None
    return _report("; ".join(["interrupted", *map(str, saved)]), 130)


def _report(text: str, status: int) -> int:
    """Prints an error as one line, for any file names or values that it quotes; returns the exit status."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        drop_output()
    line = " ".join(text.split())
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    try:
        print(f"error: {shown}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop_output(sys.stderr)
    return status


def _prepare_output() -> None:
    """Makes printing possible on a terminal of few characters and where standard streams are closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Else a file of ours would get this number, and native code would print into it.
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    # `data/image_file.py` accepts or refuses such images with its own message.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def drop_output(stream: TextIO | None = None) -> None:
    """Makes Python drop output that it could not write to a stream (standard output unless given), also at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
