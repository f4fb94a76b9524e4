"""How far a long computation of the gate is, and how long it still takes, said now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Seconds between two lines.
_EVERY = 10.0


class Progress:
    """Counts units of work and says from time to time how many are done and about how long the rest takes.

    The first unit, in which a graph is prepared, does not count for the speed.

    Args:
        tell: is given each line.
        total: how many units there are.
        unit: what they are called.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        tell: Callable[[str], Any],
        total: int,
        unit: str = "images",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._tell, self._total, self._unit, self._clock = tell, total, unit, clock
        self._done = self._first = 0
        self._first_at: float | None = None
        self._said_at = clock()

    def advance(self, units: int = 1) -> None:
        """Counts units that are done."""
        self._done += units
        now = self._clock()
        if self._first_at is None:
            self._first, self._first_at = self._done, now
        if now - self._said_at < _EVERY or self._done >= self._total:
            return
        self._said_at = now
        text = f"  {self._done} of {self._total} {self._unit}"
        if self._done > self._first:
            seconds = (now - self._first_at) / (self._done - self._first) * (self._total - self._done)
            text += f", about {_time(seconds)} left"
        self._tell(text)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
