"""Stopping a run at the next step boundary when the system or the user asks for it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

# A closed terminal sends SIGHUP; not every system knows it.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal came where nothing is left to save; no library is to take it for an error of its own."""


class StopRequest:
    """Catches SIGTERM, SIGHUP and Ctrl-C while it is entered; a second Ctrl-C stops at once, without saving.

    Attributes:
        reason: the name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, object] = {}
        self._raises = False

    def __enter__(self) -> StopRequest:
        """Begins to catch; outside the main thread, where Python allows no handlers, nothing is caught."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Under nohup a program ignores it, and goes on.
                if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal, also one that came before, end what is done inside.

        Raises:
            Stopped: with the name of the signal.
        """
        if self.reason:
            raise Stopped(self.reason)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        if self._raises:
            raise Stopped(self.reason)
