"""Fast starts of Python programs in tests: processes are forked from a server that has imported TensorFlow.

Importing TensorFlow takes some five seconds. Inside `forked_programs()`, `subprocess` forks programs that are started
with `sys.executable`. A forked program has its own arguments, environment, folder, files, signals and status. Its
children are forked as well, unless it was started with `start_new_session`. A new process is started for options of
Python, and for other values of environment variables that libraries read while they are loaded. Tests of imports, of
messages while libraries are loaded, and of memory must not use forked programs.

The server is this file, started as `python forked.py SOCKET MODULE...`. It imports nothing of the project, so that a
forked program finds the project where a new process would.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import importlib
import inspect
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Mapping

MODULES = ("tensorflow", "keras", "tensorflow_probability")
# Prefixes of environment variables that Python, the C library or other libraries read when they start.
READ_AT_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "TF_", "XLA_", "ONEDNN_", "DNNL_", "KERAS", "CUDA"),
    *("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "GRPC_"),
)
# Environment variables with a prefix in READ_AT_START that are allowed to differ between the server and a program:
# the server sets them, libraries read them later, or they change no result.
EXEMPT = (
    *("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "ONEDNN_MAX_CPU_ISA"),
    *("TF_ENABLE_ONEDNN_OPTS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OPENBLAS_NUM_THREADS"),
    *("TF_CONFIG", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
)
# The format of the integers that client and server send: lengths, process ids, thread counts and exit statuses.
NUMBER = struct.Struct("!i")


def _receive_bytes(connection: socket.socket, count: int) -> bytes:
    """Reads exactly `count` bytes from a socket and returns them; raises EOFError if the other side closes earlier."""
    received = b""
    while len(received) < count:
        if not (more := connection.recv(count - len(received))):
            raise EOFError
        received += more
    return received


def _receive_number(connection: socket.socket) -> int:
    return NUMBER.unpack(_receive_bytes(connection, NUMBER.size))[0]


def _select_start_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables in `environment` that libraries read when they are loaded, before a program is forked."""
    return {k: value for k, value in environment.items() if k.startswith(READ_AT_START) and k not in EXEMPT}


# The variables are copied at import, so that the server starts without the changes that tests make later.
_START_VARIABLES = _select_start_variables(os.environ)


# --- The client: a test's process, or a forked program, that starts programs. ---


class ServerConnection:
    """A connection to the fork server, a process that has imported TensorFlow and forks Python programs on request."""

    def __init__(self, control: socket.socket):
        self._control = control
        self._lock = threading.Lock()

    @classmethod
    def start_server(cls) -> ServerConnection | None:
        """Starts the fork server; returns a connection to it, or None if it cannot fork, because it has threads."""
        ours, theirs = socket.socketpair()
        others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_START)}
        # NumPy's linear algebra gets one thread, because a fork copies only one thread of the server.
        environment = {**others, **_START_VARIABLES, "TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno()), *MODULES]
            nowhere = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            server = cls(ours)
            server._process = _Popen(command, env=environment, pass_fds=[theirs.fileno()], **nowhere)
        # A fork copies only one thread, so libraries that started more threads in the server would fail in a program.
        return server if _receive_number(ours) == 1 else None

    def start_program(self, descriptors: list[int], request: dict) -> tuple[int, socket.socket]:
        """Asks the fork server to start a program; returns its process id and a socket that gets its exit status."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._control, [b"f"], [theirs.fileno(), *descriptors])
        text = json.dumps(request).encode()
        ours.sendall(NUMBER.pack(len(text)) + text)
        return _receive_number(ours), ours


_starting = threading.Lock()


@functools.cache
def _start_server_once() -> ServerConnection | None:
    return ServerConnection.start_server()


# The original `Popen` starts the server; `ForkedPopen` overrides its method with these argument names.
_Popen = subprocess.Popen
_ARGUMENTS = list(inspect.signature(_Popen._execute_child).parameters)[1:]
# Of these arguments of `subprocess.Popen`, the fork server supports only these default values.
_NOT_FORKED = {"executable": None, "preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None}
_NOT_FORKED |= {"umask": -1, "process_group": -1, "close_fds": True}


class ForkedPopen(subprocess.Popen):
    """A `subprocess.Popen` that lets the fork server start its process if possible, or else starts it as usual."""

    _status_connection: socket.socket | None = None

    @staticmethod
    def connect() -> ServerConnection | None:
        # The lock keeps two threads from starting two servers, of which one would be garbage collected and not answer.
        with _starting:
            return _start_server_once()

    def _execute_child(self, *values):
        given = dict(zip(_ARGUMENTS, values, strict=True))
        environment = dict(os.environ if given["env"] is None else given["env"])
        program = None
        if all(given[name] == value for name, value in _NOT_FORKED.items()):
            program = _find_forkable_program(given["args"], environment, given["cwd"])
        if program is None or self.connect() is None:
            return super()._execute_child(*values)
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        standard = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        request = {
            "arguments": program,
            "environment": environment,
            "folder": os.path.abspath(given["cwd"] or "."),
            "descriptors": [0, 1, 2, *given["pass_fds"]],
            "start_new_session": given["start_new_session"],
        }
        try:
            self.pid, self._status_connection = self.connect().start_program([*standard, *given["pass_fds"]], request)
            self._child_created = True
        finally:
            ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(given[name] for name in ends))
        return None

    def _try_wait(self, wait_flags):
        if self._status_connection is None:
            return super()._try_wait(wait_flags)
        self._status_connection.setblocking(not wait_flags & os.WNOHANG)
        try:
            status = _receive_number(self._status_connection)
        except BlockingIOError:
            return 0, 0
        except (EOFError, OSError):
            # The server always sends a status, unless it was killed; then its programs count as killed, too.
            return self.pid, signal.SIGKILL
        self._status_connection.close()
        return self.pid, status

    def _internal_poll(self, _deadstate=None, **options):
        if self._status_connection is None:
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


# --- The server: a process that has imported TensorFlow and forks programs. ---


class _Server:
    """The fork server: it reads requests from sockets, forks a program for each, and sends back the exit statuses."""

    def __init__(self, control: socket.socket):
        self._first = control
        self._clients = {control.fileno(): control}
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> dict | None:
        """Forks a process for each request; returns the request in a forked process, None in the server at its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._running:
                    self._send_status(key.fd)
                    continue
                control = self._clients[key.fd]
                message, descriptors, *_ = socket.recv_fds(control, 1, 250)
                if message:
                    request = self._fork_program(descriptors)
                    if request is not None:
                        return request
                elif control is self._first:
                    return None
                else:
                    # This client, a forked program, has ended; programs that it started go on and keep theirs.
                    self._selector.unregister(control)
                    self._clients.pop(key.fd).close()

    def _send_status(self, number: int) -> None:
        process, connection = self._running.pop(number)
        self._selector.unregister(number)
        os.close(number)
        status = os.waitpid(process, 0)[1]
        # If the client ended before the program that it started, nobody receives the status, which is no error.
        with contextlib.suppress(OSError):
            connection.sendall(NUMBER.pack(status))
        connection.close()

    def _fork_program(self, descriptors: list[int]) -> dict | None:
        connection = socket.socket(fileno=descriptors.pop(0))
        request = json.loads(_receive_bytes(connection, _receive_number(connection)))
        ours, theirs = socket.socketpair()
        process = os.fork()
        if not process:
            for opened in (connection, ours):
                opened.close()
            self._close()
            request["control"] = _renumber_descriptors(descriptors, theirs, request["descriptors"])
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        theirs.close()
        connection.sendall(NUMBER.pack(process))
        self._clients[ours.fileno()] = ours
        number = os.pidfd_open(process)
        self._running[number] = process, connection
        for waiting in (ours, number):
            self._selector.register(waiting, selectors.EVENT_READ)
        return None

    def _close(self) -> None:
        """Closes the server's file descriptors in a forked process, where the program needs their numbers."""
        self._selector.close()
        for control in self._clients.values():
            control.close()
        for number, (_, connection) in self._running.items():
            os.close(number)
            connection.close()


def _renumber_descriptors(descriptors: list[int], control: socket.socket, numbers: list[int]) -> socket.socket:
    """Moves file descriptors to the `numbers` that a forked program expects; moves `control` away and returns it."""
    unused = max(100, *numbers) + 1
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, unused) for number in (*descriptors, control.detach())]
    os.closerange(3, unused)
    *moved, control_number = moved
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return socket.socket(fileno=control_number)


def _run_program(request: dict, search_path: list[str]) -> None:
    """Runs a requested program (`-c CODE`, `-m MODULE` or FILE) in this forked process, as `python` would run it."""
    if request["start_new_session"]:
        os.setsid()
        request["control"].close()
    else:
        # This program stays in the server's session, so the server can fork the programs that it starts as well.
        server = ServerConnection(request["control"])
        ForkedPopen.connect = staticmethod(lambda: server)
        subprocess.Popen = ForkedPopen
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    _open_streams()
    importlib.invalidate_caches()
    arguments = request["arguments"]
    is_safe = arguments[0] == "-P"
    first, *rest = arguments[is_safe:]
    python_path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    here = {"-c": "", "-m": os.getcwd()}.get(first, os.path.dirname(os.path.abspath(first)))
    sys.path[:] = [*([] if is_safe else [here]), *python_path, *search_path]
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


def _open_streams() -> None:
    """Opens stdin, stdout and stderr again in a forked program, whose environment can ask for other buffering."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        by_line = name != "stdin" and not unbuffered and (name == "stderr" or os.isatty(number))
        mode, buffering = "r" if name == "stdin" else "w", 1 if by_line else -1
        stream = open(number, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115 - to the end
        if unbuffered and name != "stdin":
            stream.reconfigure(write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def main() -> None:
    """Runs the fork server: imports the modules named in `sys.argv`, forks programs, ends with the first client."""
    # Python adds the folder of this file to its path, but the forked programs must not find the modules there.
    del sys.path[0]
    search_path = list(sys.path)
    number, *modules = sys.argv[1:]
    control = socket.socket(fileno=int(number))
    for module in modules:
        importlib.import_module(module)
    # The client uses the server only if the server has one thread, as forked processes would inherit locks of others.
    threads = len(os.listdir("/proc/self/task"))
    # Garbage collection skips frozen objects, so forked programs share their memory with the server.
    gc.collect()
    gc.freeze()
    control.sendall(NUMBER.pack(threads))
    request = _Server(control).serve()
    if request is not None:
        _run_program(request, search_path)


if __name__ == "__main__":
    main()
