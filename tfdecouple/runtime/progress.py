"""How far work is and how long it still takes, for whoever waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

# Seconds before the first line where there is no terminal, and between two lines.
_FIRST, INTERVAL = 5.0, 15.0


def duration(seconds: float) -> str:
    """Returns about how long it is, in two units at most.

    >>> [duration(seconds) for seconds in (0.4, 59, 61, 7500)]
    ['0 s', '59 s', '1 min', '2 h 5 min']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60) % 60, round(seconds / 60) // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class TimeLeft:
    """Reckons how long work will still take at its speed so far, and when it is time to say so again.

    Args:
        total: how much there is to do, in any unit.
        before: how much of it was done before the clock starts.
        warm_up: whether the clock starts with the first report: what comes before it, such as tracing, says nothing of
            the speed.
        first: seconds before the first line; None for as long as between lines.
    """

    def __init__(self, total: float, before: float = 0.0, *, warm_up: bool = False, first: float | None = None):
        self._total = total
        now = time.monotonic()
        self._start = None if warm_up else (now, before)
        self._next = now + (INTERVAL if first is None else first)

    def shift(self, seconds: float) -> None:
        """Leaves out of the reckoning so long that something else took."""
        if self._start:
            self._start = (self._start[0] + seconds, self._start[1])

    def is_due(self, done: float) -> bool:
        """Takes note that so much is done; returns whether it is a while since this was true."""
        now = time.monotonic()
        self._start = self._start or (now, done)
        if now < self._next:
            return False
        self._next = now + INTERVAL
        return True

    def rate(self, done: float) -> float:
        """Returns how much is done in a second; 0 where that is not known yet."""
        now = time.monotonic()
        begun, before = self._start or (now, done)
        return (done - before) / (now - begun) if now > begun else 0.0

    def text(self, done: float) -> str:
        """Returns such as "3 min left"; "" where that is not known yet."""
        rate = self.rate(done)
        return f"{duration((self._total - done) / rate)} left" if rate else ""


class Lines:
    """Says now and then, in a line, how much is done and about how long the rest takes.

    Args:
        say: is given each line.
        total: how much there is to do.
        unit: what it is called, in the plural.
    """

    def __init__(self, say: Callable[[str], Any], total: int, unit: str = "images"):
        self._say, self._total, self._unit = say, total, unit
        self._left = TimeLeft(total, warm_up=True)
        self._done = 0

    def advance(self, more: int) -> None:
        """Takes note of more that is done."""
        self._done = done = self._done + more
        if done < self._total and self._left.is_due(done):
            left = self._left.text(done)
            self._say(f"  {done:,} of {self._total:,} {self._unit}{left and f', about {left}'}")


class Counter:
    """A bar on a terminal, a plain line now and then elsewhere; on standard error, so that results stand alone.

    Args:
        what: is counted, such as "importance-weighted bound".
        total: how many there are to count.
        file: where to; standard error by default.
        before: how many were done by an earlier program.
        unit: what they are, in the plural.
    """

    def __init__(self, what: str, total: int, file: TextIO | None = None, before: int = 0, unit: str = "images"):
        self._what = what
        self._total = total
        self._file = file or sys.stderr
        self._before = before
        self._unit = unit
        self._left = TimeLeft(total, warm_up=True, first=_FIRST)
        self._bar: tqdm | None = None

    def __enter__(self) -> Counter:
        if self._file.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=self._before,
                desc=self._what,
                unit=f" {self._unit}",
                file=self._file,
                dynamic_ncols=True,
                leave=False,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int) -> None:
        """Says how many are done."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        if self._left.is_due(done):
            rate, left = self._left.rate(done), self._left.text(done)
            speed = f", {rate:.3g} {self._unit}/s, {left}" if rate else ""
            print(f"{self._what}: {done} of {self._total} {self._unit}{speed}", file=self._file, flush=True)
