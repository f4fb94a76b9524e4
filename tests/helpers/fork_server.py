"""A server that imports slow modules once, and forks a process for each requested Python program.

`forked.py` starts it as `python fork_server.py SOCKET MODULE...`. The server imports nothing of the project, so that a
program finds the project where a new process would.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import types

from forked import NUMBER, ForkedPopen, Server, receive


class _Forks:
    """The server's open connections to clients, and its running programs with the connections that wait for them."""

    def __init__(self, control: socket.socket):
        self._first = control
        self._asking = {control.fileno(): control}
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> dict | None:
        """Forks for each request; returns the request in the forked process, and None in the server at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._running:
                    self._tell(key.fd)
                    continue
                control = self._asking[key.fd]
                message, descriptors, *_ = socket.recv_fds(control, 1, 250)
                if message:
                    request = self._fork(descriptors)
                    if request is not None:
                        return request
                elif control is self._first:
                    return None
                else:
                    # A client program has ended; the programs that it started continue.
                    self._selector.unregister(control)
                    self._asking.pop(key.fd).close()

    def _tell(self, number: int) -> None:
        process, connection = self._running.pop(number)
        self._selector.unregister(number)
        os.close(number)
        status = os.waitpid(process, 0)[1]
        # The client that started the program may have ended before it.
        with contextlib.suppress(OSError):
            connection.sendall(NUMBER.pack(status))
        connection.close()

    def _fork(self, descriptors: list[int]) -> dict | None:
        connection = socket.socket(fileno=descriptors.pop(0))
        (size,) = NUMBER.unpack(receive(connection, NUMBER.size))
        request = json.loads(receive(connection, size))
        ours, theirs = socket.socketpair()
        process = os.fork()
        if not process:
            for opened in (connection, ours):
                opened.close()
            self._close()
            request["control"] = _put(descriptors, theirs, request["descriptors"])
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        theirs.close()
        connection.sendall(NUMBER.pack(process))
        self._asking[ours.fileno()] = ours
        number = os.pidfd_open(process)
        self._running[number] = process, connection
        for one in (ours, number):
            self._selector.register(one, selectors.EVENT_READ)
        return None

    def _close(self) -> None:
        """Closes the server's descriptors in a forked process, because the program may use their numbers."""
        self._selector.close()
        for control in self._asking.values():
            control.close()
        for number, (_, connection) in self._running.items():
            os.close(number)
            connection.close()


def _put(descriptors: list[int], control: socket.socket, numbers: list[int]) -> socket.socket:
    """Gives descriptors their numbers in the program; returns the connection to the server at an unused number."""
    out_of_the_way = max(100, *numbers) + 1
    moved = [fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, out_of_the_way) for given in (*descriptors, control.detach())]
    os.closerange(3, out_of_the_way)
    *given, control_number = moved
    for descriptor, number in zip(given, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return socket.socket(fileno=control_number)


def become(request: dict, places: list[str]) -> None:
    """Runs the requested program in this process: `python -c CODE`, `python -m MODULE` or `python FILE`."""
    if request["start_new_session"]:
        os.setsid()
        request["control"].close()
    else:
        # Programs that this program starts belong to the same session, so the server can fork them as well.
        server = Server(request["control"])
        ForkedPopen.server = staticmethod(lambda: server)
        subprocess.Popen = ForkedPopen
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    _open_streams()
    importlib.invalidate_caches()
    arguments = request["arguments"]
    safe = arguments[0] == "-P"
    first, *rest = arguments[safe:]
    own = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    here = {"-c": "", "-m": os.getcwd()}.get(first, os.path.dirname(os.path.abspath(first)))
    sys.path[:] = [*([] if safe else [here]), *own, *places]
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
    """Opens Python's standard streams again, because the server's streams may be buffered in another way."""
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
    """Imports the modules, then serves requests until the first client ends."""
    # Programs must not find modules in the folder of this file.
    del sys.path[0], sys.modules["forked"]
    places = list(sys.path)
    number, *modules = sys.argv[1:]
    control = socket.socket(fileno=int(number))
    for module in modules:
        importlib.import_module(module)
    # The client needs the number of threads: a forked process has only one, but the locks of all others stay held.
    threads = len(os.listdir("/proc/self/task"))
    # Garbage collection does not write to frozen objects, so their memory stays shared with the programs.
    gc.collect()
    gc.freeze()
    control.sendall(NUMBER.pack(threads))
    request = _Forks(control).serve()
    if request is not None:
        become(request, places)


if __name__ == "__main__":
    main()
