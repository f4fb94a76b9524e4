"""What a training run says while it runs."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from tfdecouple.runtime.process import drop_output
from tfdecouple.runtime.progress import TimeLeft

# Seconds without a line after which one says what is being done.
_QUIET = 15.0


def _speed(images_per_second: float, batch_size: int) -> str:
    """Returns how fast steps are, in words that mean something for slow ones, too.

    >>> [_speed(rate, 4) for rate in (127.3, 4.25, 0.8, 0.01)]
    ['127 images/s', '4.2 images/s', '5 s a step', '400 s a step']
    """
    if images_per_second < 1:
        return f"{batch_size / images_per_second:.3g} s a step" if images_per_second else "unknown speed"
    return f"{images_per_second:.{0 if images_per_second >= 10 else 1}f} images/s"


class Progress:
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
