"""What a training run says while it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

from tfdecouple.runtime.process import drop_output
from tfdecouple.runtime.progress import TimeLeft


class Progress:
    """One line of progress on a terminal; plain lines now and then elsewhere.

    Args:
        total: steps of the run.
        file: where to; standard output by default.
    """

    def __init__(self, total: int, file: TextIO | None = None):
        self._file = file or sys.stdout
        self._total = total
        self._left = TimeLeft(total, 0, first=0.0)
        self._bar: tqdm | None = None

    def begin(self, step: int) -> None:
        """Begins to count from a step of the run on."""
        self._left = TimeLeft(self._total, step, first=0.0)
        if self._file.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=step,
                file=self._file,
                dynamic_ncols=True,
                unit="step",
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {postfix} {remaining} left",
            )

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        with self._surviving():
            if self._bar is not None:
                self._bar.write(text, file=self._file)
            else:
                print(text, file=self._file, flush=True)

    def update(self, step: int, bits_per_dim: float, images_per_second: float) -> None:
        """Reports after a step.

        Args:
            step: steps taken.
            bits_per_dim: of the last steps.
            images_per_second: of the last steps.
        """
        figures = f"{bits_per_dim:.3f} bits/dim, {images_per_second:.0f} images/s,"
        if self._bar is not None:
            with self._surviving():
                self._bar.set_postfix_str(figures, refresh=False)
                self._bar.update(step - self._bar.n)
            return
        if self._left.is_due(step) or step >= self._total:
            self.say(f"step {step}/{self._total}: {figures} {self._left.text(step)}")

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            with self._surviving():
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
