"""Stopping a run at the next step boundary when the system or the user asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from tfdecouple.errors import RunError

# A closed terminal sends SIGHUP; not every system knows it.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
# Seconds after which the process is ended if its main thread does not react: systems send SIGKILL half a minute after
# SIGTERM.
_GRACE = 15.0


class InterruptedRunError(RunError):
    """The run was asked to stop and has saved its state."""

    # This is EX_TEMPFAIL of sysexits.h: the same command resumes the run.
    status = 75


class _Stopped(BaseException):
    """Ends the code inside `StopRequest.stop_at_once`; it is no `Exception`, which libraries might catch."""


class StopRequest:
    """A context that catches SIGTERM, SIGHUP and Ctrl-C; a second Ctrl-C ends the program at once, without saving.

    Attributes:
        reason: the name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, object] = {}
        self._raises = False

    def __enter__(self) -> StopRequest:
        """Installs the handlers; outside the main thread, where Python allows none, nothing is caught."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # A program under nohup ignores SIGHUP and continues.
                if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def stop_at_once(self, where: str) -> Iterator[None]:
        """Lets a signal, also one that came before, end the code inside this context at once.

        Use it where nothing is left to save.

        Args:
            where: the rest of the message after "stopped by SIGTERM ".

        Raises:
            InterruptedRunError: with the name of the signal.
        """
        try:
            if self.reason:
                raise _Stopped
            with self._watched(where) if self._before else contextlib.nullcontext():
                self._raises = True
                yield
        except _Stopped:
            raise InterruptedRunError(f"stopped by {self.reason} {where}") from None
        finally:
            self._raises = False

    @contextlib.contextmanager
    def _watched(self, where: str) -> Iterator[None]:
        """Ends the process `_GRACE` seconds after SIGTERM or SIGHUP if this context has not been left by then.

        Python's own handlers do not run before native code returns, which may take a minute.
        """
        left = threading.Event()
        received, sent = socket.socketpair()
        sent.setblocking(False)

        def watch() -> None:
            # An empty read means that the other end is closed.
            while number := received.recv(1):
                name = signal.Signals(number[0]).name
                if name in ("SIGTERM", "SIGHUP") and not left.wait(_GRACE):
                    print(f"error: stopped by {name} {where}", file=sys.stderr, flush=True)
                    os._exit(InterruptedRunError.status)

        before = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            left.set()
            signal.set_wakeup_fd(before)
            sent.close()
            watcher.join()
            received.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        if self._raises:
            raise _Stopped
