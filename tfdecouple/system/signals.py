"""Signals: a context that handles them, and the request to stop with which a run saves its state and ends."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

from tfdecouple.errors import RunError

# Signals that stop a run. A terminal that is closed sends SIGHUP; Windows does not have this signal.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def handle_signals(handler: Callable[..., object] | signal.Handlers, *signals: signal.Signals) -> Iterator[None]:
    """A context in which `handler` handles `signals`; has no effect outside the main thread, as Python requires.

    A signal mask would not be enough: it applies to one thread, and TensorFlow's threads would get the signals.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextlib.contextmanager
def postpone_signals(*signals: signal.Signals) -> Iterator[None]:
    """A context in which `signals` have no effect; each that came is handled at its end."""
    received: set[int] = set()
    with handle_signals(lambda number, _: received.add(number), *signals):
        yield
    for number in received:
        signal.raise_signal(number)


class InterruptedRunError(RunError):
    """Raised after a signal has stopped a run, whose state is saved."""

    # This exit status is EX_TEMPFAIL of sysexits.h, a temporary failure: the same command resumes the run.
    status, prefix = 75, ""


class _Stopped(BaseException):
    """Ends the code in the context `stop_at_once`; not an `Exception`, because libraries may catch exceptions."""


class StopRequest(contextlib.ExitStack):
    """A context that records SIGTERM, SIGHUP or Ctrl-C in `reason`; a second Ctrl-C ends the program without saving.

    Attributes:
        reason: the name of the received signal, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reason: str | None = None
        self._raises = False

    def __enter__(self) -> Self:
        # SIGHUP stays ignored in a program under nohup, which must survive the end of its terminal.
        chosen = [s for s in _SIGNALS if s.name != "SIGHUP" or signal.getsignal(s) is not signal.SIG_IGN]
        self.enter_context(handle_signals(self._handle_signal, *chosen))
        return super().__enter__()

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
