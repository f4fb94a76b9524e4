"""Fast starts of Python programs in tests: processes are forked from a server that has imported TensorFlow.

Importing TensorFlow takes some five seconds, longer than most programs of the tests run. Inside `forked_programs()`,
`subprocess` forks programs that are started with `sys.executable`. A forked program has its own arguments, environment,
folder, files, signals and status, and TensorFlow, Keras and TFP are already imported. TensorFlow has not run anything
yet, so that the program can set it up. The children of a forked program are forked as well, unless the program was
started with `start_new_session`.

A new process is started if the difference could matter: for options of Python, and for environment variables that
libraries read while they are loaded. Tests of imports, of messages while libraries are loaded, and of memory must not
use forked programs. NumPy's linear algebra has one thread in forked programs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MODULES = ("tensorflow", "keras", "tensorflow_probability")
# Prefixes of environment variables that Python, the C library or other libraries read when they start.
READ_AT_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "TF_", "XLA_", "ONEDNN_", "DNNL_", "KERAS", "CUDA"),
    *("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "GRPC_"),
)
# Variables that may differ although they begin so: the server sets them, they are read later, or change no result.
OF_NO_MATTER = (
    *("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "ONEDNN_MAX_CPU_ISA"),
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OPENBLAS_NUM_THREADS"),
    # The program itself reads TF_CONFIG to find the other workers.
    "TF_CONFIG",
    # scikit-learn sets these variables when it is imported.
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
)
# The format of each number that is sent: a length, a process id, a number of threads, or a status from waitpid.
NUMBER = struct.Struct("!i")


def receive(connection: socket.socket, count: int) -> bytes:
    """Returns `count` bytes from a connection; raises EOFError if it closes earlier."""
    received = b""
    while len(received) < count:
        if not (more := connection.recv(count - len(received))):
            raise EOFError
        received += more
    return received


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_START) and name not in OF_NO_MATTER
    }


# The values of these variables at the import of this module: the server gets them, whatever a test sets later.
_AT_START = _read_at_start(os.environ)


class Server:
    """A client's connection to the server process that forks programs."""

    def __init__(self, control: socket.socket):
        self._control = control
        self._lock = threading.Lock()

    @classmethod
    def started(cls) -> Server | None:
        """Returns a connection to a new server process, or None if the imported modules start threads."""
        ours, theirs = socket.socketpair()
        others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_START)}
        # NumPy gets one thread, because other threads would not exist in forked programs.
        environment = {**others, **_AT_START, "TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            program = pathlib.Path(__file__).with_name("fork_server.py")
            command = [sys.executable, str(program), str(theirs.fileno()), *MODULES]
            nowhere = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            server = cls(ours)
            server._process = _Popen(command, env=environment, pass_fds=[theirs.fileno()], **nowhere)
        (threads,) = NUMBER.unpack(receive(ours, NUMBER.size))
        # A forked process has only one thread, so a server with threads that a library started cannot be used.
        return server if threads == 1 else None

    def start(self, descriptors: list[int], request: dict) -> tuple[int, socket.socket]:
        """Starts a program; returns its process id and the connection that will receive its exit status."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._control, [b"f"], [theirs.fileno(), *descriptors])
        text = json.dumps(request).encode()
        ours.sendall(NUMBER.pack(len(text)) + text)
        return NUMBER.unpack(receive(ours, NUMBER.size))[0], ours


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a function that calls `make` once, and returns the same object to all threads."""
    lock, made = threading.Lock(), functools.cache(make)

    def get() -> Any:
        with lock:
            return made()

    return get


class ForkedPopen(subprocess.Popen):
    """A `subprocess.Popen` whose process is forked by the server if possible, and otherwise started anew."""

    # There is only one server: a second one would be garbage collected, and the status of its programs lost.
    server = staticmethod(_once(Server.started))
    _told: socket.socket | None = None

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, p2cread,
        p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask, start_new_session,
        process_group,
    ):  # fmt: skip
        others = (preexec_fn, shell or None, gid, gids, uid, *(None if n == -1 else n for n in (umask, process_group)))
        environment = dict(os.environ if env is None else env)
        program = None
        if close_fds and executable is None and all(other is None for other in others):
            program = _program(args, environment, cwd)
        if program is None or self.server() is None:
            return super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, p2cread,
                p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                start_new_session, process_group,
            )  # fmt: skip
        standard = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        request = {
            "arguments": program,
            "environment": environment,
            "folder": os.path.abspath(cwd or "."),
            "descriptors": [0, 1, 2, *pass_fds],
            "start_new_session": start_new_session,
        }
        try:
            self.pid, self._told = self.server().start([*standard, *pass_fds], request)
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        return None

    def _try_wait(self, wait_flags):
        if self._told is None:
            return super()._try_wait(wait_flags)
        self._told.setblocking(not wait_flags & os.WNOHANG)
        try:
            status = receive(self._told, NUMBER.size)
        except BlockingIOError:
            return 0, 0
        except (EOFError, OSError):
            # The connection closes without a status only if the server was killed.
            return self.pid, signal.SIGKILL
        self._told.close()
        return self.pid, NUMBER.unpack(status)[0]

    def _internal_poll(self, _deadstate=None, **options):
        if self._told is None:
            return super()._internal_poll(_deadstate, **options)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                process, status = self._try_wait(os.WNOHANG)
                if process:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


# The original class, which starts the server itself.
_Popen = subprocess.Popen


def _program(args, environment: dict[str, str], cwd) -> list[str] | None:
    """Returns the arguments of a Python program that may be forked, or None if a new process must be started."""
    if isinstance(args, (str, bytes, os.PathLike)):
        return None
    first, *rest = map(os.fspath, args)
    plain = all(isinstance(text, str) for text in [*rest, *environment, *environment.values()])
    if first != sys.executable or not rest or not plain or not os.path.isdir(cwd or "."):
        return None
    what = rest[1] if rest[0] == "-P" else rest[0]
    understood = what in ("-c", "-m") or not what.startswith("-")
    return rest if understood and _read_at_start(environment) == _AT_START else None


@contextlib.contextmanager
def forked_programs() -> Iterator[None]:
    """Makes `subprocess` fork programs that are started with `sys.executable`, inside the context."""
    before, subprocess.Popen = subprocess.Popen, ForkedPopen
    try:
        yield
    finally:
        subprocess.Popen = before
