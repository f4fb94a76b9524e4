"""Shows the progress of long work and the time left: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from tfdecouple.system.process import drop_output

# Without a terminal, the first line of a `Counter` is printed after this many seconds.
_FIRST = 5.0
# Without a terminal, progress lines are this many seconds apart. A note is printed only if the last line is as old.
INTERVAL = 15.0


def format_count(number: int, noun: str) -> str:
    """Returns a count as a text, such as "1 draw" or "3 draws"."""
    return f"{number} {noun}{'s' if number > 1 else ''}"


def format_duration(seconds: float) -> str:
    """Returns a duration as text, rounded to seconds or minutes.

    >>> [format_duration(seconds) for seconds in (0.4, 59, 61, 7500)]
    ['0 s', '59 s', '1 min', '2 h 5 min']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60) % 60, round(seconds / 60) // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class TimeLeft:
    """Estimates the time left of some work from its mean speed so far, and tells when a progress report is due.

    The speed is measured from the first call of `is_report_due` on, so that earlier time for tracing does not count.

    Args:
        total: the amount of work, in any unit.
        first: seconds before the first report; then a report is due every `INTERVAL` seconds.
    """

    def __init__(self, total: float, first: float = INTERVAL):
        self._total = total
        self._start: tuple[float, float] | None = None
        self._next = time.monotonic() + first

    def is_report_due(self, done: float) -> bool:
        """Returns whether a progress report is due, and if so resets the timer; `done` is the work done so far."""
        now = time.monotonic()
        self._start = self._start or (now, done)
        if now < self._next:
            return False
        self._next = now + INTERVAL
        return True

    def measure_rate(self, done: float) -> float:
        """Returns the mean speed in work per second, given the work `done` so far; 0 before the speed is known."""
        now = time.monotonic()
        start, before = self._start or (now, done)
        return (done - before) / (now - start) if now > start else 0.0

    def format_time_left(self, done: float) -> str:
        """Returns the time left as text, such as "3 min left", if `done` work is done; "" before the speed is known."""
        rate = self.measure_rate(done)
        return f"{format_duration((self._total - done) / rate)} left" if rate else ""


class Counter:
    """A context that shows on standard error how many of `total` images are done: a bar on a terminal, else lines.

    The code inside calls the `Counter` with the number of finished images. `what` names the work, `before` is how many
    images an earlier process finished, and `unit` names what is counted if it is not images.
    """

    def __init__(self, what: str, total: int, before: int = 0, unit: str = "images"):
        self._what, self._total, self._unit, self._before = what, total, unit, before
        self._left = TimeLeft(total, _FIRST)
        self._bar: tqdm | None = None
        # The number of the last line, 0 before the first one, and the number of finished images.
        self._shown = self._done = 0

    def __enter__(self) -> Counter:
        if sys.stderr.isatty():
            options = {"initial": self._before, "desc": self._what, "unit": f" {self._unit}", "leave": False}
            self._bar = tqdm(total=self._total, file=sys.stderr, dynamic_ncols=True, **options)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif 0 < self._shown < self._done:
            print(f"{self._what}: {self._done} of {self._total} {self._unit}", file=sys.stderr, flush=True)

    def __call__(self, done: int) -> None:
        """Shows that `done` images are finished: in the bar, or without a terminal in a line, if a line is due."""
        self._done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif self._left.is_report_due(done):
            self._shown = done
            rate, left = self._left.measure_rate(done), self._left.format_time_left(done)
            speed = f", {rate:.3g} {self._unit}/s, {left}" if rate else ""
            print(f"{self._what}: {done} of {self._total} {self._unit}{speed}", file=sys.stderr, flush=True)


class TrainingProgress:
    """The display of a training's progress on `file`, by default standard output: a bar on a terminal, else lines.

    `total` is the number of steps of the run.
    """

    def __init__(self, total: int, file: TextIO | None = None):
        self._file = file or sys.stdout
        self._total, self._metrics = total, ""
        self._last_line = time.monotonic()
        self._left = TimeLeft(total, 0.0)
        self._bar: tqdm | None = None

    def show_start(self, step: int) -> None:
        """Starts the display of a training's progress at `step`: 0, or the step at which the training resumes."""
        if self._file.isatty():
            options = {"initial": step, "unit": "step", "bar_format": "step {n_fmt}/{total_fmt} |{bar}| {desc}"}
            self._bar = tqdm(total=self._total, file=self._file, dynamic_ncols=True, **options)

    def print_line(self, text: str) -> None:
        """Prints a line of text; on a terminal, above the progress bar."""
        self._last_line = time.monotonic()
        with self._ignore_output_errors():
            if self._bar is not None:
                self._bar.write(text, file=self._file)
            else:
                print(text, file=self._file, flush=True)

    def show_step(self, step: int) -> None:
        """Shows that `step` training steps are done, the time left, and the metrics that `set_metrics` has set.

        A line has metrics only if they were set after the line before; the bar always has the last metrics.
        """
        is_due = self._left.is_report_due(step)
        text = ", ".join(part for part in (self._metrics, self._left.format_time_left(step)) if part)
        if self._bar is not None:
            with self._ignore_output_errors():
                self._bar.set_description_str(text, refresh=False)
                self._bar.update(step - self._bar.n)
        elif is_due or step >= self._total:
            self.print_line(f"step {step}/{self._total}{text and f': {text}'}")
            self._metrics = ""

    def set_metrics(self, bits_per_dim: float, images_per_second: float) -> None:
        """Sets the metrics that `show_step` shows from now on: means of bits per dimension and of images per second."""
        digits = 0 if images_per_second >= 10 else 2
        self._metrics = f"{bits_per_dim:.3f} bits/dim, {images_per_second:.{digits}f} images/s"

    def show_note(self, text: str, at_once: bool = False) -> None:
        """Shows a note on work between steps; without a terminal at most each `INTERVAL` seconds, or `at_once`."""
        if self._bar is not None:
            with self._ignore_output_errors():
                self._bar.set_description_str(text)
        elif at_once or time.monotonic() - self._last_line >= INTERVAL:
            self.print_line(f"  {text}")

    def make_counter(self, what: str, total: int) -> Callable[[int], None]:
        """Returns a function of the count of finished images that shows this count and the time left as a note."""
        left = TimeLeft(total)

        def report(done: int) -> None:
            left.is_report_due(done)
            time_left = left.format_time_left(done)
            self.show_note(f"{what}: {done:,} of {total:,} images{time_left and f', {time_left}'}")

        return report

    def close_bar(self) -> None:
        """Closes the progress bar, if there is one, showing the metrics that `set_metrics` set last."""
        if self._bar is not None:
            with self._ignore_output_errors():
                self._bar.set_description_str(self._metrics, refresh=False)
                self._bar.close()

    @contextlib.contextmanager
    def _ignore_output_errors(self) -> Iterator[None]:
        """A context that catches an OSError of the output (full disk, closed terminal), then drops all later output."""
        try:
            yield
        except OSError as error:
            self._bar, is_standard = None, self._file is sys.stdout
            self._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end
            if is_standard:
                drop_output()
            with contextlib.suppress(OSError):
                print(
                    f"cannot write to standard output ({error.strerror or error}); training continues "
                    "without this output, and metrics.jsonl has the metrics",
                    file=sys.stderr,
                    flush=True,
                )
