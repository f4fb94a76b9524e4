"""Several workers: who they are, how they share the images, and runs of two processes on this machine."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from helpers.places import ROOT, user_environment
from helpers.runs import run_config

from tfdecouple.cli import train_main
from tfdecouple.data import evaluation_batches, open_source, own_share, training_batches
from tfdecouple.errors import ConfigError, RunError
from tfdecouple.storage.files import write_json
from tfdecouple.training import train
from tfdecouple.training.cluster import find_cluster
from tfdecouple.training.log import read_metrics
from tfdecouple.training.strategy import make_strategy
from tfdecouple.training.workers import LostWorkerError, Workers, losses_in_one_line

# What waits for another process waits this long at most, in seconds; a busy machine takes its time to start two.
PATIENCE = 900


# --- who the workers are ---


@pytest.fixture
def environment(monkeypatch):
    """Sets variables of the environment, after those that tell of a cluster have been taken out of it."""
    for name in list(os.environ):
        if name.startswith("SLURM") or name in ("TF_CONFIG", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name)

    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value if isinstance(value, str) else json.dumps(value))

    return set_all


def tf_config(cluster=None, **task):
    cluster = {"worker": ["a:1", "b:1"]} if cluster is None else cluster
    return {"cluster": cluster, "task": {"type": "worker", "index": 0, **task}}


def slurm(**changes):
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURMD_NODENAME": "node02",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "node[01-02]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        **changes,
    }


def refused(choice="auto"):
    with pytest.raises(ConfigError) as error:
        find_cluster(choice)
    message = str(error.value)
    assert message and "\n" not in message
    return message


class TestTfConfig:
    def test_workers_are_named_in_their_order(self, environment):
        environment(TF_CONFIG=tf_config(index=1))
        cluster = find_cluster()
        assert (cluster.workers, cluster.number, cluster.sharing_host) == (["a:1", "b:1"], 1, 1)

    def test_chief_comes_first(self, environment):
        environment(TF_CONFIG=tf_config({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, index="1"))
        cluster = find_cluster()
        assert (cluster.workers, cluster.number) == (["c:1", "a:1", "b:1"], 2)
        environment(TF_CONFIG=tf_config({"worker": ["a:1"], "chief": ["c:1"]}, type="chief"))
        assert find_cluster().number == 0

    def test_those_of_one_host_share_its_gpus_unless_told_which(self, environment):
        environment(TF_CONFIG=tf_config({"worker": ["b:1", "a:1", "a:2"]}, index=2))
        assert (find_cluster().place_on_host, find_cluster().sharing_host) == (1, 2)
        environment(CUDA_VISIBLE_DEVICES="3")
        assert (find_cluster().place_on_host, find_cluster().sharing_host) == (0, 1)

    @pytest.mark.parametrize("given", ["", " ", {}, {"cluster": {}}, tf_config({"worker": ["a:1"]})])
    def test_one_worker_is_no_cluster(self, environment, given):
        environment(TF_CONFIG=given)
        assert find_cluster() is None
        assert "no second worker" in refused("tf-config")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("{", "TF_CONFIG is no JSON"),
            ([], "TF_CONFIG holds no object"),
            (tf_config({"worker": ["a:1"], "ps": ["b:1"]}), "has a job 'ps'; there are only workers"),
            (tf_config({"worker": ["a", "b:1"]}), "must list the worker addresses as host:port"),
            (tf_config({"worker": "a:1"}), "must list the worker addresses as host:port"),
            (tf_config({"worker": ["a:1", "a:1"]}), "names an address twice"),
            (tf_config({"chief": ["a:1", "b:1"]}), "has more than one chief"),
            ({"cluster": {"worker": ["a:1", "b:1"]}}, "must say in task.type which of worker this process is"),
            (tf_config(type="evaluator"), "must say in task.type"),
            (tf_config(index=2), "has task.index 2; it must be from 0 to 1"),
            (tf_config(index=-1), "has task.index -1"),
            (tf_config(index=None), "has task.index None"),
        ],
    )
    def test_mistakes_are_named_in_one_line(self, environment, given, message):
        environment(TF_CONFIG=given)
        assert message in refused()

    def test_none_ignores_it(self, environment):
        environment(TF_CONFIG="{", **slurm())
        assert find_cluster("none") is None

    def test_mistake_ends_the_program_with_one_line(self, environment, capsys, tmp_path):
        environment(TF_CONFIG="{")
        assert train_main(["--workdir", str(tmp_path / "run")]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert not (tmp_path / "run").exists()


class TestSlurm:
    def test_tasks_of_a_step_are_the_workers(self, environment):
        environment(**slurm())
        cluster = find_cluster()
        hosts, ports = zip(*(address.split(":") for address in cluster.workers), strict=True)
        assert hosts == ("node01", "node01", "node02", "node02")
        assert int(ports[1]) == int(ports[0]) + 1 and ports[:2] == ports[2:]
        assert (cluster.number, cluster.place_on_host, cluster.sharing_host) == (2, 0, 2)

    def test_every_task_finds_itself(self, environment):
        numbers = []
        for node, local in (("node01", "0"), ("node01", "1"), ("node02", "0"), ("node02", "1")):
            environment(**slurm(SLURMD_NODENAME=node, SLURM_LOCALID=local, SLURM_PROCID=str(len(numbers))))
            numbers.append(find_cluster().number)
        assert numbers == [0, 1, 2, 3]

    def test_hosts_that_sort_otherwise_than_ranks(self, environment):
        nodes = {"SLURM_STEP_NODELIST": "node[9-10]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NUM_TASKS": "2"}
        for rank, node in enumerate(("node9", "node10")):
            environment(**slurm(**nodes, SLURM_PROCID=str(rank), SLURMD_NODENAME=node))
            cluster = find_cluster()
            assert cluster.workers[cluster.number].startswith(f"{node}:")

    def test_jobs_have_their_own_ports(self, environment):
        seen = set()
        for job in range(100):
            environment(**slurm(SLURM_JOB_ID=str(job)))
            seen |= {int(address.split(":")[1]) for address in find_cluster().workers}
        assert len(seen) == 200 and min(seen) >= 16000 and max(seen) < 32000

    def test_gpus_that_slurm_gives_to_each_task_are_not_divided_again(self, environment):
        environment(**slurm(SLURM_GPUS_PER_TASK="1"))
        assert find_cluster().sharing_host == 1

    def test_batch_script_without_srun_is_one_process(self, environment):
        environment(SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_JOB_NODELIST="node[01-02]")
        assert find_cluster() is None
        assert "start the program with srun" in refused("slurm")

    def test_step_of_one_task_is_one_process(self, environment):
        environment(**slurm(SLURM_STEP_NUM_TASKS="1"))
        assert find_cluster() is None

    def test_tf_config_goes_before(self, environment):
        environment(TF_CONFIG=tf_config(), **slurm())
        assert find_cluster().workers == ["a:1", "b:1"]
        assert len(find_cluster("slurm").workers) == 4

    def test_variables_that_do_not_fit_are_one_line(self, environment):
        environment(**slurm(SLURM_STEP_NODELIST="node[01-"))
        assert "Slurm's variables name no cluster" in refused()
        for name in ("SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "SLURM_LOCALID"):
            for value in ("two", "2(x3)", "-1", "9" * 400):
                environment(**slurm(**{name: value}))
                assert f"{name} is '{value[:60]}'; it must be a number" in refused()
        environment(**slurm(SLURM_STEP_TASKS_PER_NODE="two"))
        assert "Slurm's variables name no cluster" in refused()
        environment(**slurm(SLURM_STEP_NODELIST="node[01-"))
        assert "Slurm's variables name no cluster" in refused()

    def test_unknown_choice(self):
        assert "use one of auto, tf-config, slurm, none" in refused("kubernetes")


# --- how they share the images ---


@pytest.fixture(scope="module")
def source(image_folder):
    return open_source(run_config(image_folder).data, 8)


def contexts(pipelines, replicas):
    return [tf.distribute.InputContext(pipelines, number, replicas) for number in range(pipelines)]


@pytest.mark.parametrize(("pipelines", "replicas"), [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8)])
class TestSharing:
    @pytest.mark.parametrize("start_step", [0, 3])
    def test_slices_in_order_are_the_batch(self, source, image_folder, pipelines, replicas, start_step):
        options = {"batch_size": 8, "seed": 3, "start_step": start_step}
        config = run_config(image_folder).data
        # Two batches an epoch: four steps cross its border.
        whole = list(training_batches(source, config, **options).take(4).as_numpy_iterator())
        own = replicas // pipelines
        shares = [
            list(training_batches(source, config, **options, context=context).take(4 * own).as_numpy_iterator())
            for context in contexts(pipelines, replicas)
        ]
        for step, batch in enumerate(whole):
            parts = [part for share in shares for part in share[step * own : (step + 1) * own]]
            assert all(len(part["label"]) == 8 // replicas for part in parts)
            for name in batch:
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])

    def test_evaluation_counts_each_image_once(self, source, pipelines, replicas):
        batches = evaluation_batches(source, "train", batch_size=8)
        counted = []
        for context in contexts(pipelines, replicas):
            for part in own_share(batches, context).as_numpy_iterator():
                assert len(part["weight"]) == 8 // replicas
                counted += [int(index) for index, weight in zip(part["index"], part["weight"], strict=True) if weight]
        assert sorted(counted) == list(range(20))


# --- what they tell each other ---


class Together:
    """Workers as threads of this process, which add up through shared memory in place of a network."""

    def __init__(self, count=2):
        self.count = count
        self.barrier = threading.Barrier(count, timeout=20)
        self.data = [None] * count

    def run(self, act):
        """Calls `act(workers)` in a thread for each worker; returns what each returned or raised."""
        results = [None] * self.count

        def thread(index):
            workers = Workers(SimpleNamespace(num_replicas_in_sync=self.count), self.count, index)
            workers._sum = lambda data: self.sum(index, data)
            try:
                results[index] = act(workers)
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=thread, args=(index,)) for index in range(self.count)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return results

    def sum(self, index, data):
        self.data[index] = data
        self.barrier.wait()
        total = np.sum(self.data, 0).astype(np.uint8)
        self.barrier.wait()
        return total


class TestWorkers:
    def test_chief_acts_and_all_have_the_result(self):
        calls = []

        def act(workers):
            return workers.by_chief(lambda: calls.append(workers.index) or {"steps": [5, None], "word": "größer"})

        assert Together(3).run(act) == [{"steps": [5, None], "word": "größer"}] * 3
        assert calls == [0]

    def test_failure_of_the_chief_is_that_of_all(self):
        def fail():
            raise ConfigError("no such thing")

        first, second = Together().run(lambda workers: workers.by_chief(fail))
        assert isinstance(first, ConfigError)
        assert isinstance(second, RunError) and str(second) == "worker 0: no such thing"

    def test_failure_of_one_is_that_of_all(self):
        def act(workers):
            def fail():
                if workers.index == 1:
                    raise OSError("disk\nfull")
                return workers.index

            return workers.together(fail)

        first, second, third = Together(3).run(act)
        assert isinstance(second, OSError)
        assert str(first) == str(third) == "worker 1: OSError: disk full"

    def test_what_differs_is_named(self):
        results = Together().run(lambda workers: workers.same("the images", str(workers.index + 5)))
        assert [str(error) for error in results] == ["the images of worker 1 are 6, of worker 0 5"] * 2

    def test_values_of_the_chief_are_spread_to_the_bit(self):
        values = [np.float32([[1e-42, np.nan, -0.0]]), np.int64(2**40), np.array([True, False]), np.float64(np.inf)]

        def act(workers):
            variables = [tf.Variable(value if workers.is_chief else np.zeros_like(value)) for value in values]
            workers.spread(variables)
            return [variable.numpy().tobytes() for variable in variables]

        assert Together().run(act) == [[value.tobytes() for value in values]] * 2

    def test_alone_there_is_nobody_to_ask(self):
        workers = Workers(None)
        assert workers.is_chief
        assert workers.by_chief(lambda: pathlib.Path("x")) == pathlib.Path("x")
        assert workers.together(lambda: 3) == 3
        workers.same("nothing", "")
        workers.spread([])

    def test_loss_is_one_line_with_the_reason(self):
        message = "Graph execution error:\n\nDetected at x\nCollective ops is aborted by: Connection reset by peer\n"
        with pytest.raises(LostWorkerError) as error, losses_in_one_line(1):
            raise tf.errors.UnavailableError(None, None, message)
        assert "\n" not in str(error.value)
        assert "worker 1 cannot go on" in str(error.value) and "Connection reset by peer" in str(error.value)

    def test_cluster_has_one_cpu_device_a_worker(self, environment):
        environment(TF_CONFIG=tf_config())
        with pytest.raises(ConfigError, match="--devices is 2; a worker of this cluster has only one CPU device"):
            make_strategy(2, find_cluster())


# --- the examples ---

CLUSTER_EXAMPLES = ROOT / "examples" / "cluster"


def stand_in(folder, name, script):
    """Puts a program of this name in front of all others."""
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


class TestExamples:
    @pytest.mark.parametrize(
        ("status", "restarts", "again"),
        [(0, 0, False), (75, 0, True), (4, 3, True), (137, 0, True), (2, 0, False), (3, 0, False), (75, 50, False)],
    )
    def test_slurm_script_goes_on_where_that_helps(self, tmp_path, status, restarts, again):
        stand_in(tmp_path, "srun", f'echo "srun $@"; exit {status}')
        environment = stand_in(tmp_path, "scontrol", 'echo "scontrol $@"')
        environment |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        command = ["bash", str(CLUSTER_EXAMPLES / "slurm.sh"), "--preset", "cifar10", "--set", "model.steps=[1, 2]"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (status, "")
        expected = ["srun python train.py --preset cifar10 --set model.steps=[1, 2]"]
        assert ended.stdout.splitlines() == [*expected, *(["scontrol requeue 7"] if again else [])]

    @pytest.mark.parametrize("index", [0, 1])
    def test_pods_of_kubernetes_know_each_other(self, tmp_path, environment, index):
        lines = (CLUSTER_EXAMPLES / "kubernetes.yaml").read_text().splitlines()
        first = next(number for number, line in enumerate(lines) if line.strip() == "- |") + 1
        script = "\n".join(lines[first : next(n for n, line in enumerate(lines) if "ports:" in line)])
        variables = stand_in(tmp_path, "python", 'echo "$TF_CONFIG"') | {
            "WORKERS": "2",
            "JOB_COMPLETION_INDEX": str(index),
        }
        written = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
        environment(TF_CONFIG=written.stdout)
        cluster = find_cluster()
        assert cluster.workers == ["tfdecouple-0.tfdecouple:2222", "tfdecouple-1.tfdecouple:2222"]
        assert (cluster.number, cluster.sharing_host) == (index, 1)


# --- two processes on this machine ---


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Pair:
    """Two workers that run `train.py` on one config and one run folder."""

    def __init__(self, folder, config):
        self.run = folder / "run"
        self.folder = folder
        write_json(folder / "config.json", config.to_dict())
        self.processes = []

    def start(self, *arguments):
        addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
        command = [sys.executable, "train.py", "--config", str(self.folder / "config.json"), "--workdir", str(self.run)]
        for index in (0, 1):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            self.processes.append(
                subprocess.Popen(
                    [*command, *map(str, arguments)],
                    cwd=ROOT,
                    env={**user_environment(), "TF_CONFIG": json.dumps(task)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def end(self):
        """Waits for both; returns status, standard output and standard error of each."""
        try:
            said = [process.communicate(timeout=PATIENCE) for process in self.processes]
            return [(process.returncode, *texts) for process, texts in zip(self.processes, said, strict=True)]
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []

    def saved(self):
        return sorted(int(path.stem[5:]) for path in self.run.glob("checkpoints/step-*.index"))

    def wait_for_checkpoint(self, beyond=0):
        """Waits until a step beyond this one is saved, and returns it."""
        begun = time.monotonic()
        while max(self.saved(), default=0) <= beyond:
            assert all(process.poll() is None for process in self.processes), [p.communicate() for p in self.processes]
            assert time.monotonic() < begun + PATIENCE
            time.sleep(0.1)
        return max(self.saved())


@pytest.fixture
def pair(image_folder, tmp_path):
    """Two workers that would train for a long time and save every 5 steps."""
    endless = run_config(image_folder, steps=10**6, evaluate_every=10**6)
    pair = Pair(tmp_path, endless)
    yield pair
    pair.kill()


@pytest.fixture(scope="module")
def shared_run(image_folder, tmp_path_factory):
    """The run of `finished_run`, by two workers: its folder, and how they ended."""
    pair = Pair(tmp_path_factory.mktemp("shared"), run_config(image_folder))
    pair.start()
    return SimpleNamespace(folder=pair.run, ended=pair.end())


def checkpoint(run, step):
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / f"step-{step:09d}"))
    keys = [key for key in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in key]
    return {key: reader.get_tensor(key) for key in keys}


def rows(run):
    """The log's rows by kind and step, each of which must be there once."""
    found = read_metrics(run / "metrics.jsonl")
    values = {(row["kind"], row["step"]): row for row in found}
    assert len(values) == len(found)
    return values


class TestTwoProcesses:
    def test_end_well_and_only_the_chief_speaks(self, shared_run):
        (status, out, err), (other_status, other_out, other_err) = shared_run.ended
        assert (status, other_status) == (0, 0), (err, other_err)
        assert (err, other_err) == ("", "")
        assert "2 CPUs of 2 workers" in out and "step 10: validation" in out
        assert other_out == ""

    @pytest.mark.parametrize("step", [5, 10])
    def test_weights_are_those_of_one_process(self, shared_run, finished_run, step):
        # Ten steps of Adam at a learning rate of 0.01 enlarge what another order of additions changes; two devices of
        # one process differ from one by as much.
        ours, theirs = (checkpoint(run, step) for run in (shared_run.folder, finished_run))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_allclose(value, theirs[key], rtol=5e-5, atol=5e-5, err_msg=key)

    def test_folder_is_that_of_one_process(self, shared_run, finished_run):
        for pattern in ("*", "images/*", "checkpoints/*"):
            names = [sorted(path.name for path in run.glob(pattern)) for run in (shared_run.folder, finished_run)]
            assert names[0] == names[1]
        assert len(list((shared_run.folder / "tensorboard").iterdir())) == 1

    def test_figures_are_those_of_one_process(self, shared_run, finished_run):
        ours, theirs = rows(shared_run.folder), rows(finished_run)
        assert ours.keys() == theirs.keys()
        for key, row in ours.items():
            for name in ("bits_per_dim", "kl", "gradient_norm", "images", "standard_error"):
                if name in row:
                    assert row[name] == pytest.approx(theirs[key][name], rel=1e-4, abs=1e-4), (key, name)

    @pytest.mark.slow
    def test_weights_are_those_of_two_devices_to_the_bit(self, shared_run, image_folder, tmp_path):
        # A program like the two: the last digits depend on how many threads an operation has.
        write_json(tmp_path / "config.json", run_config(image_folder).to_dict())
        command = [sys.executable, "train.py", "--config", str(tmp_path / "config.json"), "--devices", "2"]
        command += ["--workdir", str(tmp_path / "run")]
        subprocess.run(command, cwd=ROOT, env=user_environment(), capture_output=True, timeout=PATIENCE, check=True)
        for step in (5, 10):
            ours, theirs = (checkpoint(run, step) for run in (shared_run.folder, tmp_path / "run"))
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                np.testing.assert_array_equal(value, theirs[key], err_msg=key)


@pytest.mark.slow
class TestInterruption:
    def test_signal_to_one_stops_both_and_any_number_goes_on(self, pair, image_folder, capfd):
        pair.start()
        pair.wait_for_checkpoint()
        pair.processes[1].send_signal(signal.SIGTERM)
        (status, _, err), (other_status, other_out, other_err) = pair.end()
        assert (status, other_status) == (75, 75)
        stopped = max(pair.saved())
        ending = f"at step {stopped} of 1000000, saved; the same command goes on from here\n"
        assert err == f"error: stopped by a signal to another worker {ending}"
        assert (other_out, other_err) == ("", f"error: stopped by SIGTERM {ending}")

        # One process goes on from what two have saved,
        config = run_config(image_folder, steps=stopped + 2, evaluate_every=10**6)
        assert train(config, pair.run).summary["steps"] == stopped + 2
        assert f"goes on from step {stopped}\n" in capfd.readouterr().out
        # and two from what one has saved.
        pair.start("--steps", stopped + 4)
        (status, out, err), (other_status, _, other_err) = pair.end()
        assert (status, other_status, err, other_err) == (0, 0, "", "")
        assert f"goes on from step {stopped + 2}\n" in out
        # Every second step has a row, and the last one of each run that came to its end.
        expected = {*range(2, stopped + 5, 2), stopped + 2, stopped + 4}
        assert {step for kind, step in rows(pair.run) if kind == "train"} == expected

    @pytest.mark.parametrize("killed", [0, 1])
    def test_after_a_killed_worker_the_same_command_goes_on(self, pair, killed):
        pair.start()
        saved = pair.wait_for_checkpoint()
        pair.processes[killed].kill()
        status, _, err = pair.end()[1 - killed]
        assert status == 4
        assert err.count("\n") == 1 and "Traceback" not in err
        assert f"another worker has ended, so worker {1 - killed} cannot go on" in err
        kept = max(pair.saved())
        assert kept >= saved

        pair.start("--steps", kept + 2)
        (status, out, err), (other_status, _, other_err) = pair.end()
        assert (status, other_status, err, other_err) == (0, 0, "", "")
        assert f"goes on from step {kept}\n" in out
        assert max(pair.saved()) == kept + 2


@pytest.mark.slow
class TestRefusals:
    def test_are_those_of_all_workers(self, pair):
        """Whatever the chief finds wrong with the folder ends the others, too, which would wait for it otherwise."""
        pair.run.mkdir()
        (pair.run / "diary.txt").write_text("dear diary")
        pair.start()
        (status, _, err), (other_status, other_out, other_err) = pair.end()
        assert (status, other_status) == (2, 2)
        assert "exists and is no run folder" in err and other_err.startswith("error: worker 0: ")
        assert (err.count("\n"), other_err.count("\n"), other_out) == (1, 1, "")
