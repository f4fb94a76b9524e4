"""Settings of a whole process, made by the programs and never by importing the library."""

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
from tfdecouple.runtime.backend import require_backend
from tfdecouple.runtime.extras import EXTRAS, missing
from tfdecouple.runtime.settings import Settings, cores

# By the numbers of malloc.h: give back the end of the heap from so many bytes on (M_TRIM_THRESHOLD), ask for so many
# more than needed (M_TOP_PAD), map larger blocks one by one (M_MMAP_THRESHOLD).
_MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
# Keras imports them where they are installed, in a second, for wrappers and plots that the programs do not use.
_UNUSED = ("sklearn", "matplotlib", "IPython", "pandas")


def start_tensorflow(threads: int | None = None) -> None:
    """Imports TensorFlow without its chatter and sets it up; call it before anything else imports TensorFlow.

    What is set where there is a GPU, and where there is none, is decided in `runtime/settings.py`.

    A user who sets TF_CPP_MIN_LOG_LEVEL sees what TensorFlow has to say.

    Args:
        threads: how many compute where there is no GPU; None for one a core.

    Raises:
        ConfigError: where Keras is set to something else than TensorFlow with channels last, or a variable of
            `runtime/settings.py` to no value of its own.
    """
    require_backend()
    _keep_memory()
    # Python would look through hundreds of thousands of objects for garbage, again and again: a second of ten.
    gc.set_threshold(100_000, 20, 20)
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        with _hidden(*_UNUSED):
            import tensorflow as tf
    else:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
        with _hidden(*_UNUSED), _standard_error_closed():
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
    gpus = len(tf.config.list_physical_devices("GPU"))
    settings = Settings.chosen(gpus, threads or cores())
    settings.apply()
    if threads or not gpus:
        divide_cores(threads or cores(), settings.shards)


def divide_cores(threads: int, shards: int) -> None:
    """Sets how many threads an operation takes and how many operations run side by side.

    On two cores each operation takes one, and the flow runs on the two halves of a batch side by side
    (`runtime/execution.py`): 127 images/s in training a small model instead of 79, where operations shared both.

    A user who sets one of TensorFlow's variables for these numbers keeps TensorFlow's own choice of the other.
    """
    import tensorflow as tf

    if any(name in os.environ for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")):
        return
    # TensorFlow that has started keeps its threads: this process is not the program's own.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads // shards)
        # Of which `shard_count` makes the shards again.
        tf.config.threading.set_inter_op_parallelism_threads(threads // shards * shards)


def _keep_memory() -> None:
    """Tells the C library to keep freed memory for the next step instead of giving it back.

    Memory given back is taken again a moment later, page by page: 180,000 page faults in a training step of the
    preset cifar10, a tenth of its time. Only for glibc, and where nobody has set one of its variables.
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
    # None stands for a module that cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


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


def python_process(*arguments: str, **environment: str) -> dict[str, Any]:
    """Returns the arguments `args` and `env` with which `subprocess` starts another Python; all are started so.

    It finds modules where this process finds them, and none in its working folder.

    Args:
        *arguments: of Python, such as "-m" and a module.
        **environment: variables that it has besides those of this process.
    """
    package = str(pathlib.Path(__file__).resolve().parents[2])
    places = os.pathsep.join(map(os.path.abspath, [*sys.path, package]))
    return {
        "args": [sys.executable, "-P", *arguments],
        "env": {**os.environ, **environment, "PYTHONPATH": places},
    }


def given_arguments(arguments: Sequence[str] | None) -> list[str]:
    """Returns the arguments of a program: those that it is called with in Python, or those of the command line.

    Raises:
        UserError: for a NUL, which only Python can hand over; no file has it in its name.
    """
    given = list(map(str, sys.argv[1:] if arguments is None else arguments))
    for text in given:
        if "\0" in text:
            raise UserError(f"the argument {text!r} holds a NUL; leave it out")
    return given


def run_program(main: Callable[[], int]) -> int:
    """Runs a program and turns what may go wrong into one line on standard error and an exit status.

    Returns:
        What `main` returns; 2 for a user's mistake, a full disk or too little memory; 130 where interrupted; 141 where
        the reader of our output went away; 1 for a fault of our own, whose traceback TFDECOUPLE_TRACEBACK=1 shows.
    """
    _prepare_output()
    # Python looks through everything for garbage once more as it ends: seconds with TensorFlow's graphs, for nothing.
    atexit.register(gc.freeze)
    try:
        return _flushed(main)
    except UserError as error:
        return _say(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _interrupted(*interrupt.args)
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): nothing to report, and nobody to report it to.
        drop_output()
        return 141
    except OSError as error:
        drop_output()
        name = error.filename
        where = f"cannot use {name}" if isinstance(name, str) else "cannot write to standard output, or another file"
        return _say(f"{where}: {error.strerror or error}; mend that and start again", 2)
    except MemoryError as error:
        return _out_of_memory(error)
    except UnicodeError as error:
        return _say(f"a name or text is not UTF-8 here ({error}); rename it, or set LC_ALL=C.UTF-8", 2)
    except ModuleNotFoundError as error:
        if (package := (error.name or "").partition(".")[0]) not in EXTRAS:
            return _fault(error)
        return _say(missing(package, "the command"), 2)
    except Exception as error:
        if was_interrupted(error):
            return _interrupted()
        # TensorFlow's, which is not imported for the sake of a name; or a library that memory does not hold any more.
        if type(error).__name__ == "ResourceExhaustedError" or "failed to map segment" in str(error):
            return _out_of_memory(error)
        return _fault(error)


def was_interrupted(error: BaseException) -> bool:
    """Returns whether an exception is an interruption, or what became of one.

    TensorFlow makes an error of its own of whatever is raised while it calls Python, and what is cleaned up on the way
    out may fail as well.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt) or "KeyboardInterrupt" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _interrupted(*kept: object) -> int:
    """Tells of an interruption, and what is kept."""
    # TensorFlow's generators that the interruption left half-way fail when Python closes them, and it would say so.
    sys.unraisablehook = lambda _: None
    return _say("; ".join(["interrupted", *map(str, kept)]), 130)


def _fault(error: Exception) -> int:
    """Tells of a fault of our own, from within its handler."""
    if os.environ.get("TFDECOUPLE_TRACEBACK"):
        raise error
    *_, last = traceback.extract_tb(error.__traceback__)
    told = f"{type(error).__name__}: {error} ({pathlib.Path(last.filename).name}, line {last.lineno})"
    return _say(f"a fault of this program, please report it: {told}; TFDECOUPLE_TRACEBACK=1 shows where", 1)


def _out_of_memory(error: Exception) -> int:
    return _say(f"out of memory ({one_line(error, first=True)}); take fewer images at a time or a smaller model", 2)


def _flushed(main: Callable[[], int]) -> int:
    """Runs a program to the end of its output: a full disk shows where it is written out."""
    try:
        status = main()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _say(text: str, status: int) -> int:
    """Prints an error as one line, whatever file names or values it quotes."""
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
    """Sees to it that something can be printed at all: on a terminal of few characters, and where output is closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # A file of ours would get this number, and native code would print into it.
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    # Pillow's, of images that `data/image_file.py` takes or refuses in a line of its own.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def drop_output(stream: TextIO | None = None) -> None:
    """Keeps Python from writing at its end what could not be written to a stream, standard output unless named."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
