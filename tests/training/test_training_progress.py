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


def test_plain_lines_where_there_is_no_terminal(clock):
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


def test_slow_steps_are_told_between_rows_of_the_log_and_the_start_is_not_counted(clock):
    file = io.StringIO()
    progress = TrainingProgress(150, file)
    progress.show_start(0)
    # Four minutes until the first step is taken, then twenty seconds each.
    for step in range(1, 12):
        clock[0] += 240 if step == 1 else 20
        if step == 10:
            progress.set_metrics(3.14159, 4 / 20)
        progress.show_step(step)
    lines = file.getvalue().splitlines()
    assert lines[:3] == ["step 1/150", "step 2/150: 49 min left", "step 3/150: 49 min left"]
    assert lines[9] == "step 10/150: 3.142 bits/dim, 0.20 images/s, 47 min left"
    # The metrics of step 10 are not repeated at step 11.
    assert lines[10] == "step 11/150: 46 min left" and len(lines) == 11


def test_what_takes_long_beside_the_steps_is_told(clock):
    file = io.StringIO()
    progress = TrainingProgress(10, file)
    told = progress.make_counter("validation", 1000)
    for done in range(100, 1001, 100):
        clock[0] += 4
        told(done)
    progress.show_note("drawing samples")
    clock[0] += 20
    progress.show_note("drawing switch")
    assert file.getvalue().splitlines() == [
        "  validation: 400 of 1,000 images, 24 s left",
        "  validation: 800 of 1,000 images, 8 s left",
        "  drawing switch",
    ]


def test_one_line_that_moves_on_a_terminal():
    file = Terminal()
    progress = TrainingProgress(4, file)
    progress.show_start(0)
    for step in (1, 2, 3, 4):
        progress.set_metrics(3.14159, 1000.4)
        progress.show_step(step)
    progress.show_note("drawing samples")
    progress.close_bar()
    shown = file.getvalue().split("\r")
    assert "4/4" in shown[-1] and "| 3.142 bits/dim, 1000 images/s" in shown[-1]
    assert any("| drawing samples" in text for text in shown) and "| ," not in file.getvalue()
    assert file.getvalue().count("\n") <= 1


def test_progress_goes_on_in_silence_where_its_output_is_gone(capsys):
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
