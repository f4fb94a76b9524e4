import contextlib
import io
import json
import signal
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.models import LEAST
from helpers.places import PATIENCE, run_python
from helpers.runs import assert_same_checkpoint, read_log, run_config
from helpers.worker_pairs import WorkerProcesses, WorkerThreads, choose_addresses

from tfdecouple.data.sources import open_source
from tfdecouple.storage.files import write_json
from tfdecouple.system.progress import Counter
from tfdecouple.training import InterruptedRunError, loop, train
from tfdecouple.training.loop import Trainer
from tfdecouple.training.step import TrainingState
from tfdecouple.training.training_folder import TrainingFolder
from tfdecouple.training.workers import make_strategy


@pytest.fixture
def pair(image_folder, tmp_path):
    endless = run_config(image_folder, model=LEAST, steps=10**6, evaluate_every=10**6, pictures=0)
    pair = WorkerProcesses(tmp_path, endless)
    yield pair
    pair.kill()


@pytest.fixture(scope="module")
def shared_run(image_folder, tmp_path_factory):
    """The run of `finished_run`, by two workers: its folder, and how they ended."""
    pair = WorkerProcesses(tmp_path_factory.mktemp("shared"), run_config(image_folder))
    pair.start()
    return SimpleNamespace(folder=pair.run, ended=pair.end())


class TestTwoRanks:
    @pytest.fixture
    def ranks(self, image_folder, tmp_path, stand_ins, fake_step):
        """Returns a function that runs both to their end, and returns their states and what each returned or raised."""

        def run(**training):
            config = run_config(image_folder, model=LEAST, **training)
            source, strategy = open_source(config.data, (8, 8, 3)), make_strategy(1)
            states = [TrainingState(config) for _ in range(2)]

            def act(workers):
                state, progress = states[workers.rank], Counter("step", config.training.steps, file=io.StringIO())
                with contextlib.closing(TrainingFolder(tmp_path / "run", config, workers=workers)) as directory:
                    directory.require_same_run()
                    with loop.StopRequest() as stop:
                        trainer = Trainer(state, source, strategy, directory, progress, stop)
                        if summary := trainer.start():
                            return summary
                        trainer.train_to_last_step()
                        return trainer.measure_test_images()

            return states, WorkerThreads().run(act)

        return run

    def test_two_ranks_stop_at_one_step_resume_with_the_chiefs_state_and_the_chief_alone_writes(
        self, ranks, stand_ins, fake_step, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(fake_step, "told_to_stop", 3)
        for error in ranks()[1]:
            assert isinstance(error, InterruptedRunError)
            assert "stopped by a signal to another worker at step 4 of 10, saved" in str(error)
        monkeypatch.setattr(fake_step, "told_to_stop", None)
        stops, make = [], loop.StopRequest

        def measure(split):
            # After the last step, a signal ends no distributed run. Threads get no signals.
            for stop in stops if split == "test" else ():
                stop.reason = "SIGTERM"
            return 8.0

        monkeypatch.setattr(loop, "StopRequest", lambda: stops.append(make()) or stops[-1])
        stand_ins(measure)
        states, (chiefs, others) = ranks()
        assert chiefs == others == json.loads((tmp_path / "run" / "summary.json").read_text())
        assert chiefs["steps"] == 10 and chiefs["test"]["bits_per_dim"] == 8.0
        evaluations = {("validation", 5), ("validation", 10), ("test", 10)}
        assert set(read_log(tmp_path / "run")) == {("train", step) for step in range(2, 11, 2)} | evaluations
        assert [int(state.updates.numpy()) for state in states] == [10, 10]
        ours, theirs = (state.group_checkpoint_variables() for state in states)
        for group, values in ours.items():
            for name, value in values.items():
                np.testing.assert_array_equal(value.numpy(), theirs[group][name].numpy(), err_msg=f"{group}: {name}")


@pytest.mark.slow
class TestTwoProcesses:
    def test_two_processes_write_the_folder_of_one_and_only_the_chief_prints(self, shared_run, finished_run):
        (status, out, err), other = shared_run.ended
        assert (status, err) == (0, "") and other == (0, "", "")
        assert "2 CPUs of 2 workers" in out and "step 10: validation" in out
        for pattern in ("*", "images/*", "checkpoints/*"):
            names = [sorted(path.name for path in run.glob(pattern)) for run in (shared_run.folder, finished_run)]
            assert names[0] == names[1]
        assert len(list((shared_run.folder / "tensorboard").iterdir())) == 1

    def test_two_devices_train_exactly_as_two_processes(self, shared_run, finished_run, image_folder, tmp_path, forked):
        # A program like the two: the last digits depend on how many threads an operation has.
        write_json(tmp_path / "config.json", run_config(image_folder, pictures=0).to_dict())
        options = ("--config", tmp_path / "config.json", "--devices", 2, "--workdir", tmp_path / "run")
        done = run_python("train.py", *options)
        assert (done.returncode, done.stderr) == (0, "") and "2 CPUs" in done.stdout
        for step in (5, 10):
            assert_same_checkpoint(shared_run.folder, tmp_path / "run", f"step-{step:09d}")
        ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (tmp_path / "run", finished_run))
        assert ours["test"]["images"] == theirs["test"]["images"]
        assert ours["test"]["bits_per_dim"] == pytest.approx(theirs["test"]["bits_per_dim"], abs=1e-3)


@pytest.mark.slow
class TestInterruption:
    def test_signal_to_one_worker_stops_both_and_any_number_of_workers_resumes(self, pair, image_folder, capfd):
        pair.start()
        pair.wait_for_checkpoint()
        pair.processes[1].send_signal(signal.SIGTERM)
        (status, _, err), (other_status, other_out, other_err) = pair.end()
        assert (status, other_status) == (75, 75)
        stopped = max(pair.saved())
        ending = f"at step {stopped} of 1000000, saved; the same command resumes\n"
        assert err == f"stopped by a signal to another worker {ending}"
        assert (other_out, other_err) == ("", f"stopped by SIGTERM {ending}")

        # One process resumes the run of two,
        config = run_config(image_folder, model=LEAST, steps=stopped + 2, evaluate_every=10**6, pictures=0)
        assert train(config, pair.run).summary["steps"] == stopped + 2
        assert f"resumes from step {stopped}\n" in capfd.readouterr().out
        # and two resume the run of one.
        pair.start("--steps", stopped + 4)
        (status, out, err), (other_status, _, other_err) = pair.end()
        assert (status, other_status, err, other_err) == (0, 0, "", "")
        assert f"resumes from step {stopped + 2}\n" in out
        # Every second step has a row, and the last step of each finished run.
        expected = {*range(2, stopped + 5, 2), stopped + 2, stopped + 4}
        assert {step for kind, step in read_log(pair.run) if kind == "train"} == expected

    @pytest.mark.parametrize("rank", [0, 1])
    def test_signal_ends_a_worker_that_waits_for_the_others(self, pair, rank):
        addresses = choose_addresses()
        host, _, port = addresses[0].partition(":")
        with contextlib.ExitStack() as stack:
            if rank:
                chief = stack.enter_context(socket.create_server((host, int(port))))
            pair.start(addresses=addresses, ranks=[rank])
            (process,) = pair.processes
            if rank:
                chief.settimeout(PATIENCE)
                chief.accept()
            else:
                while socket.socket().connect_ex((host, int(port))):
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            ((status, _, err),) = pair.end()
        message = "stopped by SIGTERM before all workers had started; the same command starts again\n"
        assert (status, err) == (75, message)

    @pytest.mark.parametrize("killed", [0, 1])
    def test_same_command_resumes_a_distributed_run_after_a_killed_worker(self, pair, killed):
        pair.start()
        saved = pair.wait_for_checkpoint()
        pair.processes[killed].kill()
        status, _, err = pair.end()[1 - killed]
        assert status == 4
        assert err.count("\n") == 1 and "Traceback" not in err
        assert f"another worker has ended, so worker {1 - killed} cannot continue" in err
        kept = max(pair.saved())
        assert kept >= saved

        pair.start("--steps", kept + 2)
        (status, out, err), (other_status, _, other_err) = pair.end()
        assert (status, other_status, err, other_err) == (0, 0, "", "")
        assert f"resumes from step {kept}\n" in out
        assert max(pair.saved()) == kept + 2
