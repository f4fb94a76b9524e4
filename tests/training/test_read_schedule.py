"""What the loop reads from the devices, and when."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST
from helpers.reads import Reads, Watched
from helpers.runs import run_config

from tfdecouple.training import loop, train
from tfdecouple.training.loop import ReadSchedule


class TestLoop:
    def test_reads_nothing_between_two_rows_of_the_log(self, watched_run):
        # Rows of the log at every second step, an evaluation at 5 and 10; the first step of a process is waited for.
        _, reads = watched_run
        assert {step for step, count in reads.items() if count} - {0} == {1, 2, 4, 5, 6, 8, 10}

    def test_reads_its_first_steps_ever_more_rarely_and_then_its_rows_alone(self, image_folder, tmp_path, stand_ins):
        often = {"log_every": 10, "evaluate_every": 30, "checkpoint_every": 30}
        with Reads().counted() as reads:
            train(run_config(image_folder, model=LEAST, steps=30, **often), tmp_path / "run")
        assert {step for step, count in reads.after.items() if count} - {0} == {1, 2, 4, 8, 10, 20, 30}

    @pytest.mark.parametrize(
        "look",
        [
            lambda tensor, variable, result: tensor.numpy(),
            lambda tensor, variable, result: float(tensor),
            lambda tensor, variable, result: int(tensor),
            lambda tensor, variable, result: bool(tensor),
            lambda tensor, variable, result: f"{tensor:.3f}",
            lambda tensor, variable, result: variable.numpy(),
            lambda tensor, variable, result: np.asarray(variable),
            lambda tensor, variable, result: variable + 1,
            lambda tensor, variable, result: result.numpy(),
            lambda tensor, variable, result: np.asarray(result),
            lambda tensor, variable, result: result + 0.0 if bool(result) else None,
            lambda tensor, variable, result: tf.convert_to_tensor(result),
        ],
    )
    def test_counts_whatever_looks_at_a_value(self, look):
        reads = Reads()
        values = tf.constant(2.0), tf.Variable(2.0), Watched(tf.constant(0.0), reads.count)
        with reads.counted():
            assert not reads.after
            look(*values)
        assert reads.after[0] >= 1


class TestSchedule:
    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that stands still but for what is added to its one number."""
        now = [0.0]
        monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
        return now

    @staticmethod
    def read_steps(clock, seconds, steps):
        """The steps that are read where each takes so long."""
        schedule, read = ReadSchedule(0), []
        wish = schedule.wish
        for step in range(1, steps + 1):
            wish = schedule.wish
            clock[0] += seconds
            if schedule.is_due(step):
                schedule.note(step, wish)
                read.append(step)
        return read

    def test_slow_steps_are_read_one_by_one(self, clock):
        assert self.read_steps(clock, 30.0, 5) == [1, 2, 3, 4, 5]

    def test_fast_steps_are_read_ever_more_rarely_but_every_few_seconds(self, clock):
        read = self.read_steps(clock, 0.25, 200)
        assert read[:4] == [1, 2, 4, 8]
        assert np.diff(read).max() * 0.25 == loop.READ_SECONDS

    def test_what_is_done_between_steps_does_not_count(self, clock):
        schedule = ReadSchedule(0)
        for step in range(1, 30):
            clock[0] += 0.1
            if schedule.is_due(step):
                schedule.note(step, schedule.wish)
                clock[0] += 1000.0
                schedule.restart(step)
        assert schedule.wish > 8

    def test_wishes_of_workers_are_whole_numbers_that_a_sum_keeps(self, clock):
        schedule = ReadSchedule(0)
        for step in range(1, 10_000):
            if schedule.is_due(step):
                schedule.note(step, schedule.wish)
        assert schedule.wish == int(np.float32(schedule.wish)) and schedule.wish * 10_000 < 2**24
        assert math.isfinite(schedule.wish)
