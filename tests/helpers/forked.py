"""Fast starts of Python programs in tests: processes are forked from a server that has imported TensorFlow.

Importing TensorFlow takes some five seconds. Inside `forked_programs()`, `subprocess` forks programs that are started
with `sys.executable`. A forked program has its own arguments, environment, folder, files, signals and status. Its
children are forked as well. A new process is started for options of Python, for options of `subprocess` such as
`start_new_session`, and for other values of environment variables that libraries read while they are loaded. Tests of
imports, of messages while libraries are loaded, and of memory must not use forked programs.

The server is this file, started as `python forked.py LISTENER LIFELINE MODULE...` with the numbers of two sockets. It
imports nothing of the project, so that a forked program finds the project where a new process would.
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
    *("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
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


# The original `Popen` starts the server; `ForkedPopen` overrides its method with these argument names.
_Popen = subprocess.Popen
_ARGUMENTS = list(inspect.signature(_Popen._execute_child).parameters)[1:]
# Of these arguments of `subprocess.Popen`, the fork server supports only these default values.
_NOT_FORKED = {"executable": None, "preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None}
_NOT_FORKED |= {"umask": -1, "process_group": -1, "close_fds": True, "start_new_session": False}
_starting = threading.Lock()


@functools.cache
def _start_server() -> bytes | None:
    """Starts the fork server; returns its address, or None if it cannot fork, because it has threads."""
    # The server ends when the other end of its lifeline is closed, with the process that started it.
    lifeline, servers_end = socket.socketpair()
    others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_START)}
    # NumPy's linear algebra gets one thread, because a fork copies only one thread of the server.
    environment = {**others, **_START_VARIABLES, "TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1"}
    with socket.socket(socket.AF_UNIX) as listener, servers_end:
        # Linux chooses an address that is no file.
        listener.bind("")
        listener.listen(100)
        descriptors = [listener.fileno(), servers_end.fileno()]
        command = [sys.executable, __file__, *map(str, descriptors), *MODULES]
        nowhere = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        ForkedPopen.server = _Popen(command, env=environment, pass_fds=descriptors, **nowhere), lifeline
        address = listener.getsockname()
    # A fork copies only one thread, so libraries that started more threads in the server would fail in a program.
    return address if _receive_number(lifeline) == 1 else None


class ForkedPopen(subprocess.Popen):
    """A `subprocess.Popen` that lets the fork server start its process if possible, or else starts it as usual."""

    server: tuple[subprocess.Popen, socket.socket]
    _status_connection: socket.socket | None = None

    @staticmethod
    def find_address() -> bytes | None:
        """Returns the address of the fork server, which the first call starts, or None if it cannot fork."""
        # The lock keeps two threads from starting two servers.
        with _starting:
            return _start_server()

    def _execute_child(self, *values):
        given = dict(zip(_ARGUMENTS, values, strict=True))
        environment = dict(os.environ if given["env"] is None else given["env"])
        program = None
        if all(given[name] == value for name, value in _NOT_FORKED.items()):
            program = _find_forkable_program(given["args"], environment, given["cwd"])
        if program is None or (address := self.find_address()) is None:
            return super()._execute_child(*values)
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        standard = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        request = {"arguments": program, "environment": environment, "folder": os.path.abspath(given["cwd"] or ".")}
        request["descriptors"] = [0, 1, 2, *given["pass_fds"]]
        text = json.dumps(request).encode()
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(address)
            socket.send_fds(connection, [NUMBER.pack(len(text))], [*standard, *given["pass_fds"]])
            connection.sendall(text)
            self.pid, self._status_connection = _receive_number(connection), connection
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


def _serve(listener: socket.socket, lifeline: socket.socket) -> dict | None:
    """Forks a process for each request; returns the request in a forked process, None in the server at its end."""
    # {file descriptor of a process: (its id, connection to its client)}.
    running: dict[int, tuple[int, socket.socket]] = {}
    selector = selectors.DefaultSelector()
    for opened in (listener, lifeline):
        selector.register(opened, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is lifeline:
                return None
            if key.fileobj is not listener:
                process, connection = running.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                status = os.waitpid(process, 0)[1]
                # If the client ended before the program that it started, nobody receives the status, which is no error.
                with contextlib.suppress(OSError):
                    connection.sendall(NUMBER.pack(status))
                connection.close()
                continue
            connection = listener.accept()[0]
            length, descriptors, *_ = socket.recv_fds(connection, NUMBER.size, 250)
            if not length:
                # The client was killed before it sent its request.
                connection.close()
                continue
            request = json.loads(_receive_bytes(connection, *NUMBER.unpack(length)))
            process = os.fork()
            if not process:
                # Else Python would close these numbers later, when they stand for files of the program.
                for opened in (selector, listener, lifeline, connection, *(client for _, client in running.values())):
                    opened.close()
                _renumber_descriptors(descriptors, request["descriptors"])
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            connection.sendall(NUMBER.pack(process))
            number = os.pidfd_open(process)
            running[number] = process, connection
            selector.register(number, selectors.EVENT_READ)


def _renumber_descriptors(descriptors: list[int], numbers: list[int]) -> None:
    """Moves file descriptors to the `numbers` that a forked program expects, and closes all others."""
    unused = max(100, *numbers) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, unused) for descriptor in descriptors]
    os.closerange(3, unused)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _run_program(request: dict, address: bytes, search_path: list[str]) -> None:
    """Runs a requested program (`-c CODE`, `-m MODULE` or FILE) in this forked process, as `python` would run it."""
    # The server forks the programs that this program starts as well.
    ForkedPopen.find_address = staticmethod(lambda: address)
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
    """Opens stdin, stdout and stderr again in a forked program."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        mode, buffering = "r" if name == "stdin" else "w", 1 if name == "stderr" else -1
        stream = open(number, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115 - to the end
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def main() -> None:
    """Runs the fork server: imports the modules named in `sys.argv`, forks programs, ends with its lifeline."""
    # Python adds the folder of this file to its path, but the forked programs must not find the modules there.
    del sys.path[0]
    search_path = list(sys.path)
    listener, lifeline = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    address = listener.getsockname()
    for module in sys.argv[3:]:
        importlib.import_module(module)
    # The client uses the server only if the server has one thread, as forked processes would inherit locks of others.
    threads = len(os.listdir("/proc/self/task"))
    # Garbage collection skips frozen objects, so forked programs share their memory with the server.
    gc.collect()
    gc.freeze()
    lifeline.sendall(NUMBER.pack(threads))
    request = _serve(listener, lifeline)
    if request is not None:
        _run_program(request, address, search_path)


if __name__ == "__main__":
    main()
