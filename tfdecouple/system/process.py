"""The start and the end of a program: TensorFlow's settings, and errors as one line with an exit status.

Only programs call these functions, and never the library, because they change settings of the whole process.
"""

import atexit
import contextlib
import ctypes
import gc
import logging
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from tfdecouple.errors import ConfigError, UserError, make_printable, one_line
from tfdecouple.system.devices import count_cores
from tfdecouple.system.requirements import EXTRAS, describe_missing_package, require_backend

# Environment variable with the number of shards, parts of a batch that a CPU computes at the same time.
SHARDS = "TFDECOUPLE_SHARDS"
# Options of glibc's malloc.h in bytes: free memory at the end of the heap that glibc keeps (M_TRIM_THRESHOLD), extra
# memory that glibc requests (M_TOP_PAD), and the least size of blocks that glibc maps singly (M_MMAP_THRESHOLD).
_MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
# Keras imports these packages if they are installed. `start_tensorflow` hides them, because no program needs Keras to
# use them.
_UNUSED = ("sklearn", "matplotlib", "IPython", "pandas")


def start_tensorflow(threads: int | None = None) -> None:
    """Imports TensorFlow without its messages, and sets the memory, threads and graph optimiser that TensorFlow uses.

    A program calls this function before anything else imports TensorFlow. The messages appear if the environment
    variable TF_CPP_MIN_LOG_LEVEL is set. `threads` compute; None stands for one per core, or TensorFlow's default with
    a GPU. ConfigError is raised if Keras has another backend than TensorFlow, or TFDECOUPLE_SHARDS is invalid.
    """
    require_backend()
    _keep_memory()
    # TensorFlow then takes a GPU's memory as needed, and not all of it at the start.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    # With Python's default thresholds, garbage collection takes a tenth of the time in which a program starts.
    gc.set_threshold(100_000, 20, 20)
    is_quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    if is_quiet:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        for name in ("tensorflow", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
    with _hide_packages(*_UNUSED), _mute_standard_error() if is_quiet else contextlib.nullcontext():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    # Grappler, TensorFlow's optimiser of graphs, is off without a GPU: on two CPU cores it took 10 of the 29 seconds to
    # the first training step of the quickstart, and made each step slower (58 images/s instead of 98).
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not gpus})
    if threads or not gpus:
        divide_cores(threads or count_cores())


def divide_cores(threads: int) -> None:
    """Sets how many of `threads` threads TensorFlow uses for one operation, and how many operations run at once.

    With two threads, the halves of a batch are computed at once (shards), each on one thread: a small model
    trains at 127 images/s instead of 79. With more threads, every operation uses all threads. The environment variable
    TFDECOUPLE_SHARDS sets another number of parts of a batch. If TF_NUM_INTRAOP_THREADS or TF_NUM_INTEROP_THREADS is
    set, nothing is changed. ConfigError is raised for an invalid TFDECOUPLE_SHARDS.
    """
    import tensorflow as tf

    text = os.environ.get(SHARDS, "").strip() or str(threads if threads <= 2 else 1)
    if not (text.isascii() and text.isdigit() and int(text) <= 1024):
        raise ConfigError(f"{SHARDS} is {text!r}; it must be a whole number from 0 to 1024")
    shards = min(max(1, int(text)), threads)
    if any(name in os.environ for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")):
        return
    # TensorFlow raises RuntimeError if its threads are running already; then their number stays unchanged.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads // shards)
        # `count_shards` divides this number by the threads of one operation to get the number of shards.
        tf.config.threading.set_inter_op_parallelism_threads(threads // shards * shards)


def _keep_memory() -> None:
    """Makes glibc keep freed memory for the next training step, unless a MALLOC_ variable is in the environment.

    Memory that glibc returns to Linux is mapped again page by page: 180,000 page faults in a training step of the
    preset cifar10, a tenth of the step's time.
    """
    if sys.platform.startswith("linux") and not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for option, value in _MALLOC_OPTIONS.items():
                mallopt(option, value)


@contextlib.contextmanager
def _hide_packages(*names: str) -> Iterator[None]:
    hidden = [name for name in names if name not in sys.modules]
    # Python raises ImportError for a module whose entry in `sys.modules` is None.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _mute_standard_error() -> Iterator[None]:
    """A context that drops all output to standard error, where TensorFlow logs before log levels take effect."""
    stream = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(stream, 2)
        os.close(stream)


def make_python_command(*arguments: str, **environment: str) -> dict[str, Any]:
    """Returns {"args": ..., "env": ...} for `subprocess.run`, to start Python with `arguments` such as "-m".

    The new process imports modules from the same folders as this process, and none from its working folder. Its
    environment is that of this process with the variables in `environment`.
    """
    # The folder of this package stays even if it is the working folder: that of a checkout that is not installed.
    folders = [folder for folder in map(os.path.realpath, sys.path) if folder != os.getcwd()]
    path = os.pathsep.join([*folders, str(pathlib.Path(__file__).resolve().parents[2])])
    return {"args": [sys.executable, "-P", *arguments], "env": {**os.environ, **environment, "PYTHONPATH": path}}


def run_module(
    module: str, *arguments: str, on_line: Callable[[str], object], limit: float, given: bytes = b"", **environment: str
) -> tuple[int | None, str]:
    """Runs `python -m module` in a new process; returns its exit status, and the last line of its standard error.

    The process gets `given` as standard input, and the variables in `environment`. The callback `on_line` receives each
    complete line of standard output, without its end, as it is printed. The status is None if the process printed no
    line for `limit` seconds and was therefore killed. With TFDECOUPLE_TRACEBACK in the environment, standard error is
    not read but shown, so that users see tracebacks.
    """
    command, status = make_python_command("-m", module, *arguments, **environment), None
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as errors:
        source.write(given)
        source.seek(0)
        shown = None if os.environ.get("TFDECOUPLE_TRACEBACK") else errors
        with subprocess.Popen(**command, stdin=source, stdout=subprocess.PIPE, stderr=shown) as process:
            assert process.stdout is not None
            rest, output = b"", process.stdout.fileno()
            try:
                while status is None and select.select([output], [], [], limit)[0]:
                    if part := os.read(output, 2**16):
                        *lines, rest = (rest + part).split(b"\n")
                        for line in lines:
                            on_line(line.decode("utf-8", "replace"))
                    else:
                        status = process.wait()
            finally:
                process.kill()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2**16))
        last = errors.read().decode("utf-8", "replace").rstrip().rpartition("\n")[2]
    return status, one_line(last.strip().removeprefix("error: ") or "no message was read")


def get_arguments(arguments: Sequence[str] | None) -> list[str]:
    """Returns a program's arguments as a list of str: `arguments`, or if it is None, the command line's.

    UserError is raised for an empty argument: a program would take its default instead of an unset variable's value.
    """
    typed = list(map(str, sys.argv[1:] if arguments is None else arguments))
    for before, text in zip(["the program's name", *typed], typed, strict=False):
        if not text or re.fullmatch(r"--[\w-]+=", text):
            name = text.rstrip("=") or (before if before.startswith("--") else f"the argument after {before}")
            raise UserError(f"{name} is empty; give a value, or leave the argument out for its default")
    return typed


def run_program(main: Callable[[], int]) -> int:
    """Runs the function `main` of a program, prints any error as one line, and returns the exit status.

    The status is that of `main` or of a UserError; 2 after a full disk or with too little memory; 130 after an
    interruption (Ctrl-C); 141 if the reader of the output, such as `head`, has ended; 1 after a fault of the program
    itself, whose traceback TFDECOUPLE_TRACEBACK=1 shows.
    """
    _prepare_output()
    # The garbage collection at exit skips all objects, because it would take seconds with TensorFlow's graphs.
    atexit.register(gc.freeze)
    try:
        try:
            status = main()
        except SystemExit:
            sys.stdout.flush()
            raise
        # The buffer is written here, so that a full disk raises OSError before the program ends.
        sys.stdout.flush()
        return status
    except UserError as error:
        return print_error(str(error), error.status, error.prefix)
    except KeyboardInterrupt as interrupt:
        return _print_interruption(*interrupt.args)
    except BrokenPipeError:
        # The reader of the output has ended, so nobody would read a message.
        drop_output()
        return 141
    except OSError as error:
        drop_output()
        name = error.filename
        where = f"cannot use {name}" if isinstance(name, str) else "cannot write to standard output, or another file"
        return print_error(f"{where}: {error.strerror or error}; correct this and start again", 2)
    except UnicodeError as error:
        return print_error(f"a name or text is not UTF-8 here ({error}); rename it, or set LC_ALL=C.UTF-8", 2)
    except Exception as error:
        return _report_fault(error)


def _report_fault(error: Exception) -> int:
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
        return print_error(describe_missing_package(package, "the command"), 2)
    if was_interrupted(error):
        return _print_interruption()
    # The class of TensorFlow's error is compared by name, because TensorFlow is possibly not imported yet. The text
    # "failed to map segment" is from Linux' loader, for a library that does not fit into the memory.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
    if out_of_memory or "failed to map segment" in str(error):
        what = one_line(error, first=True)
        return print_error(f"out of memory ({what}); take fewer images at a time or a smaller model", 2)
    if os.environ.get("TFDECOUPLE_TRACEBACK"):
        raise error
    *_, last = traceback.extract_tb(error.__traceback__)
    where = f"{type(error).__name__}: {error} ({pathlib.Path(last.filename).name}, line {last.lineno})"
    return print_error(f"a fault of this program, please report it: {where}; TFDECOUPLE_TRACEBACK=1 shows all", 1)


def was_interrupted(error: BaseException) -> bool:
    """Returns whether an exception is a KeyboardInterrupt (Ctrl-C), or was raised because of one.

    TensorFlow replaces an interruption in a Python function that it calls by its own exception, whose text has the word
    KeyboardInterrupt. Clean-up after an interruption can raise another exception.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt) or "KeyboardInterrupt" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _print_interruption(*saved: object) -> int:
    """Prints "interrupted" and the texts `saved`, which say what the program had saved; returns the exit status 130."""
    # Without this hook Python prints a message for each of TensorFlow's unfinished generators that fails at exit.
    sys.unraisablehook = lambda _: None
    return print_error("; ".join(["interrupted", *map(str, saved)]), 130, "")


def print_error(text: str, status: int, prefix: str = "error: ") -> int:
    """Prints an error as one line on standard error, after all output before it; returns `status`."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        drop_output()
    try:
        print(f"{prefix}{make_printable(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop_output(sys.stderr)
    return status


def _prepare_output() -> None:
    """Prevents printing from failing on terminals that cannot show all characters, and on closed standard streams."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # A closed standard stream becomes /dev/null. Otherwise the next opened file would get the stream's file
            # descriptor, and native code would print into that file.
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    # Pillow's warning of large images is hidden, because `open_image` checks sizes and raises its own error.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def drop_output(stream: TextIO | None = None) -> None:
    """Redirects a stream that can no longer be written, by default standard output, to /dev/null."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
