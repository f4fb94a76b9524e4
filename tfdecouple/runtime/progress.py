"""How far a measurement is, for whoever waits for it."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

# Where there is no terminal: a first line after so many seconds, then one at most this often.
_FIRST, _INTERVAL = 5.0, 15.0


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
        # When something was first done and how much: what comes before, such as tracing, says nothing of the speed.
        self._first: tuple[float, int] | None = None
        self._next = time.monotonic() + _FIRST
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
        now = time.monotonic()
        begun, before = self._first = self._first or (now, done)
        if now >= self._next:
            self._next = now + _INTERVAL
            rate = (done - before) / (now - begun) if now > begun else 0.0
            left = f", {rate:.3g} {self._unit}/s, {duration((self._total - done) / rate)} left" if rate else ""
            print(f"{self._what}: {done} of {self._total} {self._unit}{left}", file=self._file, flush=True)


class TimeLeft:
    """Says now and then how long work will still take, from how long it took so far.

    Args:
        total: how much there is to do, in any unit.
    """

    def __init__(self, total: float):
        self._total = total
        self._begun = self._told = time.monotonic()

    def shift(self, seconds: float) -> None:
        """Leaves out of the reckoning so long that something else took."""
        self._begun += seconds

    def due(self, done: float) -> str | None:
        """Returns such as "about 3 min left" where so much is done, None where that was said a moment ago."""
        now = time.monotonic()
        if now - self._told < _INTERVAL or not 0 < done < self._total:
            return None
        self._told = now
        return f"about {duration((now - self._begun) * (self._total - done) / done)} left"


def duration(seconds: float) -> str:
    """Returns about how long it is, in two units at most."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60) % 60, round(seconds / 60) // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
