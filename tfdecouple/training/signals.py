"""Signals that stop a run: the run finishes the current step, saves its state and raises an error."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from tfdecouple.errors import RunError

# Signals that stop a run. A terminal that is closed sends SIGHUP; Windows does not have this signal.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class InterruptedRunError(RunError):
    """Raised after a signal has stopped a run, whose state is saved."""

    # This exit status is EX_TEMPFAIL of sysexits.h, a temporary failure: the same command resumes the run.
    status = 75


class _Stopped(BaseException):
    """Ends the code in the context `stop_at_once`; not an `Exception`, because libraries may catch exceptions."""


class StopRequest:
    """A context that records SIGTERM, SIGHUP or Ctrl-C in `reason`; a second Ctrl-C ends the program without saving.

    Attributes:
        reason: the name of the received signal, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._old_handlers: dict[signal.Signals, object] = {}
        self._raises = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # SIGHUP stays ignored in a program under nohup, which must survive the end of its terminal.
                if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._old_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def stop_at_once(self, where: str) -> Iterator[None]:
        """Returns a context that raises InterruptedRunError as soon as a signal comes, or at once if one has come.

        The state must have been saved before. The message is "stopped by", the signal's name, and the text `where`.
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

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        if self._raises:
            raise _Stopped
