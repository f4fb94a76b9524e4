"""Tests of the display of progress and of the time left."""

import io
from types import SimpleNamespace

import pytest

from tfdecouple.runtime import progress
from tfdecouple.runtime.progress import Counter


class Terminal(io.StringIO):
    def isatty(self):
        return True


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
        assert file.getvalue().splitlines() == [
            "counting: 20 of 50 images, 5 images/s, 6 s left",
            "counting: 40 of 50 images, 1.67 images/s, 6 s left",
        ]

    def test_progress_speed_ignores_images_of_an_earlier_run(self, clock):
        file = io.StringIO()
        with Counter("counting", 100_000, file, before=50_000) as counter:
            for done, clock.now in [(50_100, 190), (50_250, 205)]:
                counter(done)
        assert file.getvalue().splitlines() == [
            "counting: 50100 of 100000 images",
            "counting: 50250 of 100000 images, 10 images/s, 1 h 23 min left",
        ]

    def test_progress_bar_of_a_terminal_leaves_no_line(self):
        file = Terminal()
        with Counter("counting", 50, file) as counter:
            counter(20)
            counter(50)
        assert "counting" in file.getvalue() and "/50" in file.getvalue()
        assert "\n" not in file.getvalue()
