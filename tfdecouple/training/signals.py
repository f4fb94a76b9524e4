"""Stopping a run at the next step boundary when the system or the user asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """Catches SIGTERM and Ctrl-C while it is entered; a second Ctrl-C stops at once, without saving.

    Attributes:
        reason: the name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        """Begins to catch; outside the main thread, where Python allows no handlers, nothing is caught."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
