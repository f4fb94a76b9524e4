"""Calls on the chief and on all workers, broadcasts, and failures of workers."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.worker_pairs import WorkerThreads

from tfdecouple.errors import ConfigError, RunError
from tfdecouple.training import workers as workers_module
from tfdecouple.training.workers import LostWorkerError, convert_lost_worker_errors


class TestWorkers:
    def test_all_workers_get_the_chiefs_result(self):
        calls = []

        def act(workers):
            return workers.call_on_chief(lambda: calls.append(workers.rank) or {"steps": [5, None], "word": "größer"})

        assert WorkerThreads(3).run(act) == [{"steps": [5, None], "word": "größer"}] * 3
        assert calls == [0]

    def test_failure_of_the_chief_is_raised_in_all_workers(self):
        def fail():
            raise ConfigError("no such thing")

        first, second = WorkerThreads().run(lambda workers: workers.call_on_chief(fail))
        assert isinstance(first, ConfigError)
        assert isinstance(second, RunError) and str(second) == "worker 0: no such thing"

    def test_failure_of_one_worker_is_raised_in_all_workers(self):
        def act(workers):
            def fail():
                if workers.rank == 1:
                    raise OSError("disk\nfull")
                return workers.rank

            return workers.call_on_all(fail)

        first, second, third = WorkerThreads(3).run(act)
        assert isinstance(second, OSError)
        assert str(first) == str(third) == "worker 1: OSError: disk full"

    def test_options_that_differ_between_workers_are_named(self):
        results = WorkerThreads().run(lambda workers: workers.require_equal("images", {"a": 1, "b": workers.rank + 5}))
        message = "images of worker 0 and worker 1 differ: b is 5 and 6"
        assert [str(error) for error in results] == [message] * 2

    @pytest.mark.parametrize("together", [8, 2**24])
    def test_broadcast_copies_the_chiefs_values_to_the_bit(self, together, monkeypatch):
        monkeypatch.setattr(workers_module, "_BROADCAST_BYTES", together)
        values = [np.float32([[1e-42, np.nan, -0.0]]), np.int64(2**40), np.array([True, False]), np.float64(np.inf)]

        def act(workers):
            variables = [tf.Variable(value if (workers.rank == 0) else np.zeros_like(value)) for value in values]
            workers.broadcast_variables(variables)
            return [variable.numpy().tobytes() for variable in variables]

        assert WorkerThreads().run(act) == [[value.tobytes() for value in values]] * 2

    def test_error_of_a_lost_worker_is_one_line_with_the_reason(self):
        message = "Graph execution error:\n\nDetected at x\nCollective ops is aborted by: Connection reset by peer\n"
        with pytest.raises(LostWorkerError) as error, convert_lost_worker_errors(1):
            raise tf.errors.UnavailableError(None, None, message)
        assert "\n" not in str(error.value)
        assert "worker 1 cannot continue" in str(error.value) and "Connection reset by peer" in str(error.value)
