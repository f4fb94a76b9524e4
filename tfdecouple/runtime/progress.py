"""How far work is and how long it still takes, for whoever waits for it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from tfdecouple.runtime.process import drop_output

# Seconds before the first line where there is no terminal, and between two lines.
_FIRST, INTERVAL = 5.0, 15.0
# Seconds without a line after which one says what is being done.
_QUIET = 15.0


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


def _speed(images_per_second: float, batch_size: int) -> str:
    """Returns how fast steps are, in words that mean something for slow ones, too.

    >>> [_speed(rate, 4) for rate in (127.3, 4.25, 0.8, 0.01)]
    ['127 images/s', '4.2 images/s', '5 s a step', '400 s a step']
    """
    if images_per_second < 1:
        return f"{batch_size / images_per_second:.3g} s a step" if images_per_second else "unknown speed"
    return f"{images_per_second:.{0 if images_per_second >= 10 else 1}f} images/s"


class TrainingProgress:
    """One line of progress on a terminal; plain lines now and then elsewhere.

    Args:
        total: steps of the run.
        file: where to; standard output by default.
        batch_size: images of a step.
    """

    def __init__(self, total: int, file: TextIO | None = None, batch_size: int = 1):
        self._file = file or sys.stdout
        self._total = total
        self._batch_size = batch_size
        self._figures = ""
        self._said = time.monotonic()
        self._left = self._time_left(0)
        self._bar: tqdm | None = None

    def _time_left(self, step: int) -> TimeLeft:
        # The clock starts with the first step that was taken: what comes before it says nothing of the others.
        return TimeLeft(self._total, step, first=0.0, warm_up=True)

    def begin(self, step: int) -> None:
        """Begins to count from a step of the run on."""
        self._left = self._time_left(step)
        if self._file.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=step,
                file=self._file,
                dynamic_ncols=True,
                unit="step",
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {desc}",
            )

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._said = time.monotonic()
        with self._surviving():
            if self._bar is not None:
                self._bar.write(text, file=self._file)
            else:
                print(text, file=self._file, flush=True)

    def step(self, step: int) -> None:
        """Says after each step how far the run is; reads nothing from the devices.

        Args:
            step: steps taken.
        """
        is_due = self._left.is_due(step)
        told = ", ".join(text for text in (self._figures, self._left.text(step)) if text)
        if self._bar is not None:
            with self._surviving():
                self._bar.set_description_str(told, refresh=False)
                self._bar.update(step - self._bar.n)
        elif is_due or step >= self._total:
            self.say(f"step {step}/{self._total}{told and f': {told}'}")

    def update(self, bits_per_dim: float, images_per_second: float) -> None:
        """Takes the figures that the lines have from now on.

        Args:
            bits_per_dim: of the last steps.
            images_per_second: of the last steps.
        """
        self._figures = f"{bits_per_dim:.3f} bits/dim, {_speed(images_per_second, self._batch_size)}"

    def note(self, text: str, at_once: bool = False) -> None:
        """Says what is being done: in the place of the figures; without a terminal only after a while of silence."""
        if self._bar is not None:
            with self._surviving():
                self._bar.set_description_str(text)
        elif at_once or time.monotonic() - self._said >= _QUIET:
            self.say(f"  {text}")

    def counted(self, what: str, total: int) -> Callable[[int], None]:
        """Returns a function that is told how many images are done, and notes it with the time left."""
        left = TimeLeft(total, warm_up=True)

        def tell(done: int) -> None:
            left.is_due(done)
            time_left = left.text(done)
            self.note(f"{what}: {done:,} of {total:,} images{time_left and f', {time_left}'}")

        return tell

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            with self._surviving():
                self._bar.set_description_str(self._figures, refresh=False)
                self._bar.close()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Goes on in silence where nobody can read what is said: a closed terminal, a full disk, a reader that left."""
        try:
            yield
        except OSError as error:
            self._bar, is_standard = None, self._file is sys.stdout
            self._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end
            if is_standard:
                drop_output()
            with contextlib.suppress(OSError):
                print(
                    f"cannot write to standard output ({error.strerror or error}); training goes on without, "
                    "its figures are in metrics.jsonl",
                    file=sys.stderr,
                    flush=True,
                )
