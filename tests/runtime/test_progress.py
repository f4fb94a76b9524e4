import io
from types import SimpleNamespace

import pytest

from tfdecouple.runtime import progress
from tfdecouple.runtime.progress import Counter, TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock.now` sets it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class TestCounter:
    def test_progress_lines_begin_after_some_seconds_and_are_rare(self, clock):
        file = io.StringIO()
        with Counter("counting", 50, file) as counter:
            for done, clock.now in [(10, 104), (20, 106), (30, 115), (40, 122), (50, 123)]:
                counter(done)
        first, second, _ = file.getvalue().splitlines()
        assert first == "counting: 20 of 50 images, 5 images/s, 6 s left"
        assert second == "counting: 40 of 50 images, 1.67 images/s, 6 s left"


    def test_progress_bar_of_a_terminal_leaves_no_line(self):
        file = io.StringIO()
        file.isatty = lambda: True
        with Counter("counting", 50, file) as counter:
            counter(20)
            counter(50)
        assert "counting" in file.getvalue() and "/50" in file.getvalue()
        assert "\n" not in file.getvalue()


def test_progress_of_training_prints_plain_lines_without_a_terminal(clock):
    file = io.StringIO()
    progress = TrainingProgress(100, file)
    for step in range(1, 101):
        clock.now += 0.2
        progress.set_metrics(3.14159, 1000.4)
        progress.show_step(step)
    progress.print_line("the end")
    progress.close_bar()
    lines = file.getvalue().splitlines()
    # The first and the last step have a line, and between them at most one step in 15 seconds.
    assert [line.split(":")[0] for line in lines] == ["step 1/100", "step 76/100", "step 100/100", "the end"]
    assert lines[2].startswith("step 100/100: 3.142 bits/dim, 1000 images/s, 0 s left")
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()


def test_progress_of_training_ignores_a_closed_output(capsys):
    class Closed(io.StringIO):
        def write(self, *_):
            raise OSError(5, "Input/output error")

        flush = write

    progress = TrainingProgress(2, Closed())
    progress.set_metrics(3.0, 10.0)
    progress.show_step(1)
    progress.print_line("more")
    progress.show_step(2)
    progress.show_note("still more")
    progress.close_bar()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot write to standard output (Input/output error); training continues" in err
