"""Running measurements in processes of their own, which may fail, hang or run out of memory without harm to others.

`python -m tfdecouple.doctor.apart NUMBER` is such a process: it reads how it is set up from the first line of standard
input, what to run from each further one, and writes what is found, a line of JSON each, to the file of this number. It
ends, with all that it started, when standard input does: whatever becomes of the program that began it, nothing stays
behind.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from tfdecouple.errors import UserError, one_line
from tfdecouple.runtime.process import python_process, start_tensorflow

# Threads that have nothing to do sleep, instead of taking a core from the others while they look for work.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

running: set[subprocess.Popen] = set()

# Status of a measurement that ran out of memory and could say so, and of a process that cannot be set up as asked for.
_OUT_OF_MEMORY, _MISTAKE = 75, 64
# At once: of more milliseconds than fit into 32 bits the system makes an error.
_MOST_SECONDS = 3600.0
# What a process says after the last that a measurement yields.
_DONE = {"done": True}


class MeasurementError(UserError):
    """A measurement that did not come to its end.

    Attributes:
        kind: "time", "memory", "error", or "mistake", of the user's: no process can be set up as asked for.
    """

    def __init__(self, kind: str, said: str):
        super().__init__(said)
        self.kind = kind


class Process:
    """A process for measurements of one setting, one after the other; the first that fails is its last.

    Args:
        setting: how it is set up, see `set_up`; and `environment`, variables that it has besides.
    """

    def __init__(self, setting: dict[str, Any]):
        reader, writer = os.pipe()
        with contextlib.ExitStack() as stack:
            self._results = stack.enter_context(os.fdopen(reader, "rb", buffering=0))
            self._said = stack.enter_context(_scratch_file())
            try:
                self._process = subprocess.Popen(
                    **python_process("-m", __name__, str(writer), **{**PASSIVE, **setting["environment"]}),
                    cwd=_root(),
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=self._said,
                    stderr=self._said,
                    pass_fds=[writer],
                    start_new_session=True,
                )
            finally:
                os.close(writer)
            running.add(self._process)
            stack.callback(_end, self._process)
            assert self._process.stdin is not None
            self._input = stack.enter_context(self._process.stdin)
            self._tell(setting)
            self._stack = stack.pop_all()

    def run(self, target: str, limit: float, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Runs a generator and yields what it yields, as soon as it does.

        Args:
            target: "module:function" of a generator of dicts of plain values.
            limit: seconds after which the process is ended.
            arguments: of the generator, plain values.

        Raises:
            MeasurementError: where it fails, takes longer, or runs out of memory; what it found before was yielded.
        """
        deadline = time.monotonic() + limit
        self._tell({"target": target, "arguments": arguments})
        for line in _lines(self._results.fileno(), deadline):
            if line is None:
                raise MeasurementError("time", f"not done after {limit:.0f} s")
            found = json.loads(line)
            if found == _DONE:
                return
            yield found
        try:
            status = self._process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise MeasurementError("time", f"did not end within {limit:.0f} s") from None
        self._said.seek(0)
        raise _failure(status, self._said.read().decode("utf-8", "replace"))

    def end(self) -> None:
        """Ends it, with all that it started."""
        self._stack.close()

    def _tell(self, what: dict[str, Any]) -> None:
        # Of one that has ended the results say so.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(what).encode() + b"\n")


class Processes:
    """Runs measurements in processes of their settings; one in which all went well takes the next."""

    def __init__(self) -> None:
        self._idle: list[tuple[dict[str, Any], Process]] = []
        self._lock = threading.Lock()

    def __call__(
        self, target: str, setting: dict[str, Any], limit: float, arguments: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Runs a generator and yields what it yields, as `Process.run` does.

        Args:
            target: "module:function" of a generator of dicts of plain values.
            setting: as `Process` takes it; with `alone` the process is new, and takes no other.
            limit: seconds after which the process is ended.
            arguments: of the generator, plain values.
        """
        process = self._taken(setting)
        try:
            yield from process.run(target, limit, arguments)
        except BaseException:
            process.end()
            raise
        if setting["alone"]:
            process.end()
        else:
            with self._lock:
                self._idle.append((setting, process))

    def _taken(self, setting: dict[str, Any]) -> Process:
        with self._lock:
            for number, (other, _) in enumerate(self._idle):
                if other == setting:
                    return self._idle.pop(number)[1]
        return Process(setting)

    def end(self) -> None:
        """Ends those that wait for another measurement."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].end()


def _scratch_file() -> IO[bytes]:
    """Returns a file that goes by itself, in memory where the system has that: no folder may be there to write to."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("said"), "w+b")
    return tempfile.TemporaryFile()


def _root() -> str:
    """Where this package lies: the process imports it from there, and nothing from the folder that the user is in."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _lines(descriptor: int, deadline: float) -> Iterator[bytes | None]:
    """Yields whole lines until the other side is closed; None, at last, where the deadline comes first."""
    waiting = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                yield None
                return
            if not selector.select(min(left, _MOST_SECONDS)):
                continue
            part = os.read(descriptor, 2**16)
            if not part:
                return
            *whole, waiting = (waiting + part).split(b"\n")
            yield from whole


def _end(process: subprocess.Popen) -> None:
    """Ends a process with all that it started, where it has not ended by itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    running.discard(process)


def end_all() -> None:
    """Ends all that runs, in whatever thread somebody waits for it."""
    for process in list(running):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _failure(status: int, said: str) -> MeasurementError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = one_line(lines[-1]) if lines else "it said nothing"
    if status in (_OUT_OF_MEMORY, _MISTAKE):
        return MeasurementError("memory" if status == _OUT_OF_MEMORY else "mistake", last)
    if status == -signal.SIGKILL:
        return MeasurementError("memory", "it was killed, most likely for want of memory")
    if status < 0:
        return MeasurementError("error", f"it was ended by signal {-status} ({last})")
    return MeasurementError("error", last)


def run_here(target: str, setting: dict[str, Any], limit: float, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Runs a generator in this process, as it is set up: `Processes` for tests, without limit of time.

    Raises:
        MeasurementError: where it fails.
    """
    try:
        yield from _found(target, arguments)
    except Exception as error:
        raise MeasurementError("memory" if _is_want_of_memory(error) else "error", one_line(error)) from error


def _found(target: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    module, _, function = target.partition(":")
    yield from getattr(importlib.import_module(module), function)(**arguments)


def _is_want_of_memory(error: BaseException) -> bool:
    # TensorFlow's, which is not imported for the sake of a name.
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


@contextlib.contextmanager
def set_up(setting: dict[str, Any]) -> Iterator[None]:
    """Sets this process up as the programs do.

    Args:
        setting: `tensorflow`, whether it is needed; `devices`, the number of devices that train, of which there are as
            many logical CPUs where there is no GPU.

    Raises:
        UserError: for what a user asks for and this machine has not.
    """
    if not setting["tensorflow"]:
        yield
        return
    start_tensorflow()
    from tfdecouple.training.strategy import make_strategy

    # Splits the CPU, which must come before anything runs.
    make_strategy(setting["devices"])
    yield


def _asked(tasks: queue.SimpleQueue[str]) -> None:
    """Hands on the lines of standard input; ends this process with it."""
    for line in sys.stdin:
        tasks.put(line)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Runs what standard input names, in this process."""
    setting = json.loads(sys.stdin.readline())
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_asked, args=(tasks,), daemon=True).start()
    try:
        with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as results, contextlib.ExitStack() as stack:
            try:
                stack.enter_context(set_up(setting))
            except UserError as error:
                print(one_line(error), file=sys.stderr)
                return _MISTAKE
            while True:
                task = json.loads(tasks.get())
                for found in itertools.chain(_found(task["target"], task["arguments"]), [_DONE]):
                    results.write(json.dumps(found) + "\n")
                    results.flush()
                # What holds the memory of a model, in circles.
                gc.collect()
    except BrokenPipeError:
        return 0
    except Exception as error:
        if os.environ.get("TFDECOUPLE_TRACEBACK"):
            raise
        print(one_line(f"{type(error).__name__}: {error}", first=not isinstance(error, UserError)), file=sys.stderr)
        return _OUT_OF_MEMORY if _is_want_of_memory(error) else 1


if __name__ == "__main__":
    sys.exit(main())
