"""Fast starts of Python programs in tests: processes are forked from a server that has imported TensorFlow.

Inside `forked_programs()`, `subprocess` forks programs that are started with `sys.executable`; their children are
forked as well. A new process is started for options of Python or of `subprocess`, and for other values of environment
variables that libraries read while they are loaded. Tests of imports, of messages while libraries are loaded, and of
memory must not use forked programs. The server is that of `multiprocessing`. It imports nothing of the project.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import importlib
import inspect
import multiprocessing
import operator
import os
import pathlib
import runpy
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver, reduction, resource_tracker, spawn
from unittest import mock

MODULES = ("tensorflow", "keras", "tensorflow_probability")
TESTS = str(pathlib.Path(__file__).resolve().parents[1])
# Prefixes of environment variables that Python, the C library or other libraries read when they start.
READ_AT_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "TF_", "XLA_", "ONEDNN_", "DNNL_", "KERAS", "CUDA"),
    *("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "GRPC_"),
)
# Variables among these that may differ: the server sets them, libraries read them later, or they change no result.
EXEMPT = (
    *("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
    *("TF_ENABLE_ONEDNN_OPTS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OPENBLAS_NUM_THREADS"),
    *("TF_CONFIG", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
)


def _select_start_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {k: value for k, value in environment.items() if k.startswith(READ_AT_START) and k not in EXEMPT}


# The variables are copied at import, so that the server starts without the changes that tests make later.
_START_VARIABLES = _select_start_variables(os.environ)
# In the server: where Python finds installed packages.
_SEARCH_PATH = [folder for folder in sys.path if folder not in ("", TESTS)]

# The original `Popen` starts the server; `ForkedPopen` overrides its method with these argument names.
_Popen = subprocess.Popen
_ARGUMENTS = list(inspect.signature(_Popen._execute_child).parameters)[1:]
# Of these arguments of `subprocess.Popen`, a forked program has only these default values.
_NOT_FORKED = {"executable": None, "preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None}
_NOT_FORKED |= {"umask": -1, "process_group": -1, "close_fds": True, "start_new_session": False}
# Two threads would start two servers.
_starting = threading.Lock()


class _Descriptor:
    """A file descriptor that is passed on to a forked process, where unpickling gives its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self):
        return operator.methodcaller("detach"), (reduction.DupFd(self.number),)


def _start(function, *arguments) -> multiprocessing.process.BaseProcess:
    """Forks a process that calls a function; the first call starts the server."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    # Without preparation, the process would import the test program as well.
    with _starting, mock.patch.object(spawn, "get_preparation_data", lambda name: {}):
        process.start()
    return process


def _require_one_thread_of_parent() -> None:
    sys.exit(len(os.listdir(f"/proc/{os.getppid()}/task")) - 1)


@functools.cache
def _can_fork() -> bool:
    """Starts the server; returns whether it has only one thread, because forks of it lack all others."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_START)}
    # NumPy's linear algebra gets one thread, so that the server has no other.
    more = {"TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": TESTS}
    forkserver.set_forkserver_preload([*MODULES, __name__])
    errors = os.dup(2)
    with open(os.devnull, "w") as nothing:
        # Libraries print when they are loaded.
        os.dup2(nothing.fileno(), 2)
    try:
        with mock.patch.dict(os.environ, {**others, **_START_VARIABLES, **more}, clear=True):
            process = _start(_require_one_thread_of_parent)
    finally:
        os.dup2(errors, 2)
        os.close(errors)
    process.join()
    return process.exitcode == 0


class ForkedPopen(subprocess.Popen):
    """A `subprocess.Popen` that lets the fork server start its process if possible, or else starts it as usual."""

    _process = None

    def _execute_child(self, *values):
        given = dict(zip(_ARGUMENTS, values, strict=True))
        environment = dict(os.environ if given["env"] is None else given["env"])
        program = None
        if all(given[name] == value for name, value in _NOT_FORKED.items()):
            program = _find_forkable_program(given["args"], environment, given["cwd"])
        if program is None or not _can_fork():
            return super()._execute_child(*values)
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        descriptors = {number: number if pipe == -1 else pipe for number, pipe in enumerate(pipes)}
        descriptors |= {number: number for number in given["pass_fds"]}
        passed = {number: _Descriptor(descriptor) for number, descriptor in descriptors.items()}
        try:
            self._process = _start(_run_program, program, environment, os.path.abspath(given["cwd"] or "."), passed)
            self.pid, self._child_created = self._process.pid, True
        finally:
            ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(given[name] for name in ends))
        return None

    def _try_wait(self, wait_flags):
        if self._process is None:
            return super()._try_wait(wait_flags)
        code = self._process._popen.poll(wait_flags)
        return (0, 0) if code is None else (self.pid, code << 8 if code >= 0 else -code)

    def _internal_poll(self, _deadstate=None, **options):
        if self._process is None:
            return super()._internal_poll(_deadstate, **options)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                process, status = self._try_wait(os.WNOHANG)
                if process:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def _find_forkable_program(args, environment: dict[str, str], cwd) -> list[str] | None:
    """Returns the arguments after `sys.executable` if the program can be forked, or None if it needs a new process."""
    if isinstance(args, (str, bytes, os.PathLike)):
        return None
    first, *rest = map(os.fspath, args)
    is_text = all(isinstance(text, str) for text in [*rest, *environment, *environment.values()])
    if first != sys.executable or not rest or not is_text or not os.path.isdir(cwd or "."):
        return None
    program = rest[1] if rest[0] == "-P" else rest[0]
    has_no_option = program in ("-c", "-m") or not program.startswith("-")
    return rest if has_no_option and _select_start_variables(environment) == _START_VARIABLES else None


@contextlib.contextmanager
def forked_programs() -> Iterator[None]:
    """Inside the context, `subprocess` forks Python programs from a server instead of starting new processes."""
    before, subprocess.Popen = subprocess.Popen, ForkedPopen
    try:
        yield
    finally:
        subprocess.Popen = before


def _run_program(arguments: list[str], environment: dict[str, str], folder: str, descriptors: dict[int, int]) -> None:
    """Runs a program (`-c CODE`, `-m MODULE` or FILE) in this forked process, as `python` would run it."""
    unused = max(100, *descriptors) + 1
    server, tracker = forkserver._forkserver, resource_tracker._resource_tracker
    numbers = [server._forkserver_alive_fd, tracker._fd, *descriptors.values()]
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, unused) for number in numbers]
    os.closerange(0, unused)
    server._forkserver_alive_fd, tracker._fd, *moved = moved
    for number, descriptor in zip(descriptors, moved, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # The same server forks the programs that this program starts.
    server.ensure_running = lambda: None
    subprocess.Popen = ForkedPopen
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, f"__{name}__")
        mode, buffering = "r" if name == "stdin" else "w", 1 if name == "stderr" else -1
        stream = open(number, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115 - to the end
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    importlib.invalidate_caches()
    is_safe = arguments[0] == "-P"
    first, *rest = arguments[is_safe:]
    python_path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    here = {"-c": "", "-m": os.getcwd()}.get(first, os.path.dirname(os.path.abspath(first)))
    sys.path[:] = [*([] if is_safe else [here]), *python_path, *_SEARCH_PATH]
    try:
        if first == "-c":
            sys.argv[:] = ["-c", *rest[1:]]
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), module.__dict__)
        elif first == "-m":
            sys.argv[:] = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = [first, *rest]
            runpy.run_path(first, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
