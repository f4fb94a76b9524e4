"""The start and the end of a program: TensorFlow's settings, and failures as one line and an exit status.

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

from tfdecouple.errors import ConfigError, UserError, one_line
from tfdecouple.runtime.devices import cores
from tfdecouple.runtime.requirements import EXTRAS, missing, require_backend

# Names of environment variables; the first is TensorFlow's own.
ALLOW_GROWTH, SHARDS = "TF_FORCE_GPU_ALLOW_GROWTH", "TFDECOUPLE_SHARDS"
# Values of three options of malloc.h: how many free bytes at the end of the heap glibc returns (M_TRIM_THRESHOLD), how
# many extra bytes it requests (M_TOP_PAD), and from which size on it maps blocks singly (M_MMAP_THRESHOLD).
_MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
# Packages that Keras imports, if they are installed, for wrappers and plots that the programs never use.
_UNUSED = ("sklearn", "matplotlib", "IPython", "pandas")


def start_tensorflow(threads: int | None = None) -> None:
    """Imports TensorFlow, silences its messages and sets how it uses the devices of this machine.

    Call this function before anything else imports TensorFlow. TF_CPP_MIN_LOG_LEVEL shows TensorFlow's messages.

    Args:
        threads: how many threads compute on a machine without a GPU; None for one thread per core.

    Raises:
        ConfigError: if Keras is set to another backend than TensorFlow, or TFDECOUPLE_SHARDS is invalid.
    """
    require_backend()
    _keep_memory()
    # With Python's default thresholds, garbage collection among so many objects takes a tenth of the time.
    gc.set_threshold(100_000, 20, 20)
    is_quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    if is_quiet:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        for name in ("tensorflow", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
    with _hidden(*_UNUSED), _standard_error_closed() if is_quiet else contextlib.nullcontext():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    # Grappler rewrites graphs before their first run. On two CPU cores that took 10 of the 29 seconds to the first
    # training step of the quickstart, and made each step slower (58 images/s instead of 98).
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not gpus})
    if ALLOW_GROWTH not in os.environ:
        # If a user's code has started TensorFlow, TensorFlow refuses the change, and the user's setting stays.
        with contextlib.suppress(RuntimeError):
            for gpu in gpus:
                # TensorFlow would otherwise take all memory of a GPU at the start.
                tf.config.experimental.set_memory_growth(gpu, True)
    if threads or not gpus:
        divide_cores(threads or cores())


def count_shards(threads: int) -> int:
    """Returns in how many shards CPUs compute a batch (`runtime/execution.py`), each with its share of the threads.

    The default is two shards for two threads, and one shard for more threads, so that an operation may take all of
    them, as TensorFlow does. TFDECOUPLE_SHARDS changes it.
    """
    text = os.environ.get(SHARDS, "").strip() or str(threads if threads <= 2 else 1)
    if not (text.isascii() and text.isdigit() and int(text) <= 1024):
        raise ConfigError(f"{SHARDS} is {text!r}; it must be a whole number from 0 to 1024")
    return min(max(1, int(text)), threads)


def divide_cores(threads: int) -> None:
    """Sets how many threads an operation takes in TensorFlow, and how many operations run side by side.

    On two cores each operation takes one thread, and the two halves of a batch run through the flow side by side: a
    small model trains at 127 images/s instead of 79. If the user has set one of TensorFlow's environment variables for
    these numbers, nothing changes.
    """
    import tensorflow as tf

    shards = count_shards(threads)
    if any(name in os.environ for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")):
        return
    # If a user's code has started TensorFlow, TensorFlow refuses the change, and the user's threads stay.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads // shards)
        # `shard_count` divides this number by the threads of one operation to get the number of shards.
        tf.config.threading.set_inter_op_parallelism_threads(threads // shards * shards)


def _keep_memory() -> None:
    """Makes glibc keep freed memory for the next training step, unless the user has set one of its variables.

    Memory that is returned to Linux must be taken again page by page: 180,000 page faults in a training step of the
    preset cifar10, a tenth of its time.
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
    """Makes imports of packages that are not loaded yet fail inside the context, as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    # Python's import fails for a module whose entry is None.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _standard_error_closed() -> Iterator[None]:
    """Drops all output to standard error inside the context: TensorFlow logs there before any log level applies."""
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
    """Returns the arguments `args` and `env` with which `subprocess` starts another Python process.

    The new process finds modules in the same folders as this process, and none in its working folder.

    Args:
        *arguments: arguments of Python, for example "-m" and a module.
        **environment: further environment variables.
    """
    package = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join(map(os.path.abspath, [*sys.path, package]))
    return {"args": [sys.executable, "-P", *arguments], "env": {**os.environ, **environment, "PYTHONPATH": path}}


def given_arguments(arguments: Sequence[str] | None) -> list[str]:
    """Returns the given arguments of a program as text, or the arguments of the command line if `arguments` is None."""
    return list(map(str, sys.argv[1:] if arguments is None else arguments))


def run_program(main: Callable[[], int]) -> int:
    """Returns the exit status of a program after running it; a failure becomes one line on standard error.

    Returns:
        The status that `main` returns; 2 after a user's mistake, a full disk or too little memory; 130 after an
        interruption; 141 if the reader closed the program's output; 1 after a fault of the program itself, whose
        traceback TFDECOUPLE_TRACEBACK=1 shows.
    """
    _prepare_output()
    # Garbage collection at the end of Python would take seconds with TensorFlow's graphs, so it is skipped.
    atexit.register(gc.freeze)
    try:
        try:
            status = main()
        except SystemExit:
            sys.stdout.flush()
            raise
        # Buffered output is written here, so that a full disk is reported as an error.
        sys.stdout.flush()
        return status
    except UserError as error:
        return _report(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _report_interruption(*interrupt.args)
    except BrokenPipeError:
        # The program that read the output, for example `head`, has ended, so nobody would read a message.
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
        # TensorFlow may not be imported, so its error is recognised by name. The loader of libraries prints the text
        # below if a library does not fit in memory.
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
    """Returns whether an exception is an interruption (Ctrl-C), or was raised because of one.

    TensorFlow replaces exceptions that are raised while it calls Python, and clean-up after an interruption may fail.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt) or "KeyboardInterrupt" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _report_interruption(*saved: object) -> int:
    """Prints that the program was interrupted and what was saved; returns the exit status 130."""
    # Python prints a message for each unfinished generator of TensorFlow that fails on closing; this hides them.
    sys.unraisablehook = lambda _: None
    return _report("; ".join(["interrupted", *map(str, saved)]), 130)


def _report(text: str, status: int) -> int:
    """Prints an error as one line, with unprintable characters escaped; returns the exit status."""
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
    """Makes printing safe if the terminal cannot show all characters or a standard stream is closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that the program opens would get this number, and native code would print into it.
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    # `data/image_file.py` checks the size of images and prints its own message, so Pillow's is not needed.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def drop_output(stream: TextIO | None = None) -> None:
    """Makes Python drop all further output to a stream that failed, standard output by default, also at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
