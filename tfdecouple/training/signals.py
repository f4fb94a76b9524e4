"""The handling of signals that stop a run: the run saves its state after the current step, then raises an error."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from tfdecouple.errors import RunError

# Signals that stop a run. A closed terminal sends SIGHUP, which some systems lack.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class InterruptedRunError(RunError):
    """An error that ends a run that was asked to stop and has saved its state."""

    # The exit status is EX_TEMPFAIL of sysexits.h, because the same command resumes the run.
    status = 75


class _Stopped(BaseException):
    """An exception that ends the code inside `StopRequest.stop_at_once`; libraries might catch an `Exception`."""


class StopRequest:
    """A context that catches SIGTERM, SIGHUP and Ctrl-C; a second Ctrl-C ends the program at once, without saving.

    Attributes:
        reason: the name of the received signal, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, object] = {}
        self._raises = False

    def __enter__(self) -> StopRequest:
        """Returns the context after installing its handlers, which Python allows in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # A program under nohup ignores SIGHUP, so that it continues when the terminal is closed.
                if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def stop_at_once(self, where: str) -> Iterator[None]:
        """Returns a context whose code a signal, even one received before, ends at once; everything must be saved.

        InterruptedRunError then has the message "stopped by SIGTERM " and `where`.
        """
        try:
            if self.reason:
                raise _Stopped
            self._raises = True
            yield
        except _Stopped:
            raise InterruptedRunError(f"stopped by {self.reason} {where}") from None
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        if self._raises:
            raise _Stopped
