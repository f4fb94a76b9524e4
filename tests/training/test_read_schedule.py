"""After which steps the loop reads from the devices."""

import numpy as np
import pytest
from helpers.models import LEAST
from helpers.reads import Reads
from helpers.runs import run_config

from tfdecouple.training import loop, train
from tfdecouple.training.loop import ReadSchedule


def test_nothing_is_read_between_two_rows_of_the_log(watched_run):
    # The log has a row at every second step, evaluations are at 5 and 10, and the first step of a process is read.
    _, reads = watched_run
    assert {step for step, count in reads.items() if count} - {0} == {1, 2, 4, 5, 6, 8, 10}


def test_the_first_steps_are_read_ever_more_rarely_and_later_only_the_rows(image_folder, tmp_path, stand_ins):
    rare = {"log_every": 10, "evaluate_every": 30, "checkpoint_every": 30}
    with Reads().counted() as reads:
        train(run_config(image_folder, model=LEAST, steps=30, **rare), tmp_path / "run")
    assert {step for step, count in reads.after.items() if count} - {0} == {1, 2, 4, 8, 10, 20, 30}


@pytest.mark.parametrize(("seconds", "first", "longest"), [(30.0, [1, 2, 3, 4], 1), (0.25, [1, 2, 4, 8], 20)])
def test_slow_steps_are_read_one_by_one_and_fast_ones_every_few_seconds(monkeypatch, seconds, first, longest):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    schedule, read = ReadSchedule(0), []
    for step in range(1, 201):
        now[0] += seconds
        if schedule.is_due(step):
            schedule.set_next(step, schedule.propose_interval(step))
            read.append(step)
            # The time of an evaluation does not count.
            now[0] += 1000.0
            schedule.restart_clock(step)
    assert read[:4] == first and np.diff(read).max() == longest
