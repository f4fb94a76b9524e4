"""Who the workers of a run are, as TF_CONFIG, Slurm and the examples say."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import tensorflow as tf
from helpers.places import ROOT
from helpers.refusals import refusal
from helpers.runs import run_config
from helpers.threads import Together

from tfdecouple.cli import run_images
from tfdecouple.cli.evaluate import Evaluation
from tfdecouple.errors import ConfigError, RunError
from tfdecouple.training import loop, strategy, train
from tfdecouple.training.strategy import make_strategy
from tfdecouple.training.workers import find_cluster


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
    return refusal(lambda: find_cluster(choice))


class TestTfConfig:
    def test_workers_are_named_in_their_order(self, environment):
        environment(TF_CONFIG=tf_config(index=1))
        cluster = find_cluster()
        assert (cluster.workers, cluster.rank, cluster.sharing_host) == (["a:1", "b:1"], 1, 1)

    def test_chief_comes_first(self, environment):
        environment(TF_CONFIG=tf_config({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, index="1"))
        cluster = find_cluster()
        assert (cluster.workers, cluster.rank) == (["c:1", "a:1", "b:1"], 2)
        environment(TF_CONFIG=tf_config({"worker": ["a:1"], "chief": ["c:1"]}, type="chief"))
        assert find_cluster().rank == 0

    def test_those_of_one_host_share_its_gpus_unless_told_which(self, environment):
        environment(TF_CONFIG=tf_config({"worker": ["b:1", "a:1", "a:2"]}, index=2))
        assert (find_cluster().rank_on_host, find_cluster().sharing_host) == (1, 2)
        environment(CUDA_VISIBLE_DEVICES="3")
        assert (find_cluster().rank_on_host, find_cluster().sharing_host) == (0, 1)

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
            (tf_config(type=["worker"]), "must say in task.type"),
            (tf_config(index=2), "has task.index 2; it must be from 0 to 1"),
            (tf_config(index=-1), "has task.index -1"),
            (tf_config(index=None), "has task.index None"),
        ],
    )
    def test_mistakes_are_named_in_one_line(self, environment, given, message):
        environment(TF_CONFIG=given)
        assert message in refused()


class TestSlurm:
    def test_tasks_of_a_step_are_the_workers(self, environment):
        environment(**slurm())
        cluster = find_cluster()
        hosts, ports = zip(*(address.split(":") for address in cluster.workers), strict=True)
        assert hosts == ("node01", "node01", "node02", "node02")
        assert int(ports[1]) == int(ports[0]) + 1 and ports[:2] == ports[2:]
        assert (cluster.rank, cluster.rank_on_host, cluster.sharing_host) == (2, 0, 2)

    def test_every_task_finds_itself(self, environment):
        numbers = []
        for node, local in (("node01", "0"), ("node01", "1"), ("node02", "0"), ("node02", "1")):
            environment(**slurm(SLURMD_NODENAME=node, SLURM_LOCALID=local, SLURM_PROCID=str(len(numbers))))
            numbers.append(find_cluster().rank)
        assert numbers == [0, 1, 2, 3]

    def test_hosts_that_sort_otherwise_than_ranks(self, environment):
        nodes = {"SLURM_STEP_NODELIST": "node[9-10]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NUM_TASKS": "2"}
        for rank, node in enumerate(("node9", "node10")):
            environment(**slurm(**nodes, SLURM_PROCID=str(rank), SLURMD_NODENAME=node))
            cluster = find_cluster()
            assert cluster.workers[cluster.rank].startswith(f"{node}:")

    def test_jobs_have_their_own_ports(self, environment):
        seen = set()
        for job in range(100):
            environment(**slurm(SLURM_JOB_ID=str(job)))
            seen |= {int(address.split(":")[1]) for address in find_cluster().workers}
        assert len(seen) == 200 and min(seen) >= 16000 and max(seen) < 32000

    def test_gpus_that_slurm_gives_to_each_task_are_not_divided_again(self, environment):
        environment(**slurm(SLURM_GPUS_PER_TASK="1"))
        assert find_cluster().sharing_host == 1

    def test_one_task_or_a_batch_script_without_srun_is_one_process(self, environment):
        environment(**slurm(SLURM_STEP_NUM_TASKS="1"))
        assert find_cluster() is None
        environment(SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_JOB_NODELIST="node[01-02]")
        os.environ.pop("SLURM_STEP_NUM_TASKS")
        assert find_cluster() is None
        assert "start the program with srun" in refused("slurm")

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

    def test_choice(self, environment):
        assert "use one of auto, tf-config, slurm, none" in refused("kubernetes")
        environment(TF_CONFIG="{", **slurm())
        assert find_cluster("none") is None


def test_strategy_of_one_process_ignores_tf_config(environment):
    environment(TF_CONFIG="{")
    # The cached function would return the strategy of another test.
    assert strategy.get_mirrored_strategy.__wrapped__(("CPU:0",)).num_replicas_in_sync == 1
    assert os.environ["TF_CONFIG"] == "{"


def test_evaluation_on_several_gpus_has_that_strategy(monkeypatch):
    def refuse(*_):
        raise ConfigError("no run")

    asked, devices = [], tf.config.list_logical_devices("CPU")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    alone = tf.distribute.get_strategy()
    monkeypatch.setattr(strategy, "get_mirrored_strategy", lambda names: asked.append(names) or alone)
    monkeypatch.setattr(run_images, "open_run", refuse)
    with pytest.raises(ConfigError, match="no run"):
        Evaluation(None, [])
    assert asked == [("CPU:0", "CPU:1")]


@pytest.fixture
def hidden_gpu(monkeypatch):
    """Adds a GPU that this process does not see."""
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    listed = tf.config.list_physical_devices
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [gpu] if kind == "GPU" else listed(kind))


def test_gpu_that_is_hidden_is_none(hidden_gpu, environment):
    assert "CPU" in make_strategy(1).extended.worker_devices[0]
    environment(TF_CONFIG=tf_config())
    with pytest.raises(ConfigError, match="a worker of this cluster has only one CPU device"):
        make_strategy(2, find_cluster())


def test_memory_is_asked_of_the_machine_where_its_gpu_is_hidden(hidden_gpu, image_folder, tmp_path, monkeypatch):
    def refuse(model, copies):
        raise ConfigError(f"{copies} copies")

    monkeypatch.setattr(loop, "require_memory", refuse)
    # Weights, gradients, two moments and averages.
    with pytest.raises(ConfigError, match="5 copies"):
        train(run_config(image_folder), tmp_path / "run")


def test_too_little_memory_of_one_worker_is_refused_by_all(image_folder, tmp_path, monkeypatch):
    together, devices = Together(), make_strategy(1)
    monkeypatch.setattr(loop, "find_cluster", lambda rank: SimpleNamespace(rank=int(rank), workers=["a:1", "b:1"]))
    monkeypatch.setattr(loop, "make_strategy", lambda *_: devices)
    monkeypatch.setattr(loop, "make_collective_sum", lambda *_: None)
    monkeypatch.setattr(loop, "Workers", lambda count=1, rank=0, add=None: together.workers[rank])
    # Whichever comes first has too few.
    addresses = iter([3 * 2**30, 2**50])
    monkeypatch.setattr(loop, "address_space", lambda: next(addresses))

    def act(workers):
        return train(run_config(image_folder), tmp_path / "run", cluster=str(workers.rank))

    ends = together.run(act)
    assert [type(end) for end in ends] == [RunError, RunError]
    first, second = sorted(map(str, ends), key=len)
    assert first.startswith("programs may use 3.2 GB of addresses here") and second in {
        f"worker {rank}: {first}" for rank in (0, 1)
    }
    assert not (tmp_path / "run").exists()


CLUSTER_EXAMPLES = ROOT / "examples" / "cluster"


def stand_in(folder, name, script):
    """Puts a program of this name in front of all others."""
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


class TestExamples:
    @pytest.mark.parametrize(
        ("status", "restarts", "again"),
        [(0, 0, False), (75, 0, True), (137, 3, True), (2, 0, False), (75, 50, False)],
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
        variables = stand_in(tmp_path, "tfdecouple", 'echo "$TF_CONFIG"') | {
            "WORKERS": "2",
            "JOB_COMPLETION_INDEX": str(index),
        }
        written = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
        environment(TF_CONFIG=written.stdout)
        cluster = find_cluster()
        assert cluster.workers == ["tfdecouple-0.tfdecouple:2222", "tfdecouple-1.tfdecouple:2222"]
        assert (cluster.rank, cluster.sharing_host) == (index, 1)
