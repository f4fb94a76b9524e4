"""Shows the progress of long work and the time left: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from tfdecouple.system.process import drop_output, print_error

# Without a terminal, a `Counter` prints a line this many seconds after its first call, and others so far apart.
_FIRST, _INTERVAL = 5.0, 15.0


def format_count(number: int, noun: str) -> str:
    """Returns a count as a text, such as "1 draw" or "3 draws"."""
    return f"{number} {noun}{'s' if number > 1 else ''}"


class Counter:
    """A context that shows how many of `total` images are done: a bar on a terminal, else a line every few seconds.

    The code inside calls the `Counter` with the number of finished images. Times and speed are measured from the first
    call on, so that earlier time for tracing does not count.

    Args:
        what: the name of the work.
        total: the number of images.
        unit: what is counted, if it is not images.
        file: where the progress is shown; default standard error.
    """

    def __init__(self, what: str, total: int, unit: str = "images", file: TextIO | None = None):
        self.file = file or sys.stderr
        self._what, self._total, self._unit = what, total, unit
        self._bar: tqdm | None = None
        self._start: tuple[float, int] | None = None
        self._next = 0.0

    def __enter__(self) -> Counter:
        if self.file.isatty():
            self(0)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, note: str = "") -> None:
        """Shows that `done` images are finished, and `note`: in the bar, or without a terminal in a line if one is due.

        In a line, the note stands instead of the speed.
        """
        now = time.monotonic()
        if self._start is None:
            self._start, self._next = (now, done), now + _FIRST
        if self.file.isatty():
            if self._bar is None:
                options = {"total": self._total, "initial": done, "unit": f" {self._unit}", "leave": False}
                self._bar = tqdm(desc=self._what, file=self.file, dynamic_ncols=True, **options)
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now >= self._next and done < self._total:
            self._next = now + _INTERVAL
            (start, before), line = self._start, f"{self._what} {done}/{self._total}"
            if done > before:
                rate = (done - before) / (now - start)
                left = tqdm.format_interval((self._total - done) / rate)
                line += f": {note or f'{rate:.3g} {self._unit}/s'}, {left} left"
            self.print_line(line)

    def print_line(self, text: str) -> None:
        """Prints a line of text, on a terminal above the bar; after an error, such as a full disk, drops all output."""
        try:
            if self._bar is not None:
                tqdm.write(text, self.file)
            else:
                print(text, file=self.file, flush=True)
        except OSError as error:
            drop_output(self.file)
            reason = f"cannot write to standard output ({error.strerror or error})"
            print_error(f"{reason}; training continues without this output, and metrics.jsonl has the metrics", 0, "")
