"""What a run says while it runs, on a terminal, elsewhere, and where nobody reads it."""

import io
import time

import pytest

from tfdecouple.runtime.progress import TrainingProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a clock that stands still: a list of one number."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_progress_prints_plain_lines_without_a_terminal(clock):
    file = io.StringIO()
    progress = TrainingProgress(100, file)
    for step in range(1, 101):
        clock[0] += 0.2
        progress.set_metrics(3.14159, 1000.4)
        progress.show_step(step)
    progress.print_line("all said")
    progress.close_bar()
    lines = file.getvalue().splitlines()
    # Not a line a step: the first, at most one each 15 seconds, and the last.
    assert [line.split(":")[0] for line in lines] == ["step 1/100", "step 76/100", "step 100/100", "all said"]
    assert lines[2].startswith("step 100/100: 3.142 bits/dim, 1000 images/s, 0 s left")
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()


def test_training_continues_if_its_output_is_closed(capsys):
    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            raise OSError(5, "Input/output error")

    progress = TrainingProgress(2, Gone())
    progress.set_metrics(3.0, 10.0)
    progress.show_step(1)
    progress.print_line("more")
    progress.show_step(2)
    progress.show_note("still more")
    progress.close_bar()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot write to standard output (Input/output error); training continues" in err
