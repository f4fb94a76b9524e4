import json
import os
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers.places import PATIENCE, ROOT
from helpers.refusals import refusal
from helpers.worker_pairs import WorkerThreads, choose_addresses

from tfdecouple.errors import ConfigError, UserError
from tfdecouple.training import workers
from tfdecouple.training.workers import Cluster, find_cluster, meet_workers


@pytest.fixture
def set_tf_config(monkeypatch):
    def set_config(values):
        monkeypatch.setenv("TF_CONFIG", values if isinstance(values, str) else json.dumps(values))

    return set_config


def tf_config(cluster=None, **task):
    cluster = {"worker": ["a:1", "b:1"]} if cluster is None else cluster
    return {"cluster": cluster, "task": {"type": "worker", "index": 0, **task}}


class TestTfConfig:
    @pytest.mark.parametrize(
        ("cluster", "task", "workers", "rank"),
        [
            (None, {"index": 1}, ["a:1", "b:1"], 1),
            ({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, {"index": "1"}, ["c:1", "a:1", "b:1"], 2),
            ({"worker": ["a:1"], "chief": ["c:1"]}, {"type": "chief"}, ["c:1", "a:1"], 0),
        ],
    )
    def test_cluster_of_tf_config_lists_the_chief_first(self, set_tf_config, cluster, task, workers, rank):
        set_tf_config(tf_config(cluster, **task))
        assert (find_cluster().workers, find_cluster().rank) == (workers, rank)

    @pytest.mark.parametrize("given", ["", " ", {}, {"cluster": {}}, tf_config({"worker": ["a:1"]})])
    def test_tf_config_of_a_single_worker_is_no_cluster(self, set_tf_config, given):
        set_tf_config(given)
        assert find_cluster() is None

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("{", "Expecting property name"),
            ([], "Input should be a valid dictionary"),
            (tf_config({"worker": ["a:1"], "ps": ["b:1"]}), "cluster.ps.[key]: Input should be 'chief' or 'worker'"),
            (tf_config({"worker": ["a", "b:1"]}), "cluster.worker.0: String should match pattern"),
            (tf_config({"worker": "a:1"}), "cluster.worker: Input should be a valid list"),
            (tf_config({"worker": ["a:1", "a:1"]}), "names an address twice"),
            (tf_config({"chief": ["a:1", "b:1"]}), "more than one chief"),
            ({"cluster": {"worker": ["a:1", "b:1"]}}, "task must name one of the workers"),
            (tf_config(type="chief"), "task must name one of the workers"),
            (tf_config(type=["worker"]), "task.type: Input should be 'chief', 'worker'"),
            (tf_config(index=2), "task must name one of the workers"),
            (tf_config(index=-1), "task.index: Input should be greater than or equal to 0"),
            (tf_config(index=None), "task.index: Input should be a valid integer"),
        ],
    )
    def test_wrong_tf_config_is_refused_in_one_line(self, set_tf_config, given, message):
        set_tf_config(given)
        refused = refusal(find_cluster)
        assert refused.startswith("TF_CONFIG is no description of a cluster") and message in refused


class TestMeeting:
    """Workers meet in threads of this process, at ports of this machine."""

    def meet(self, addresses, devices=(None, None), before=lambda rank: None):
        """Lets workers meet after `before(rank)`; returns what each returned or raised."""

        def act(worker):
            before(worker.rank)
            task = {"type": "worker", "index": worker.rank}
            return meet_workers(Cluster(cluster={"worker": addresses}, task=task), [*devices, None][worker.rank])

        return WorkerThreads(len(addresses)).run(act)

    def test_workers_meet_and_free_their_ports(self):
        addresses = choose_addresses()
        assert self.meet(addresses) == [None, None] == self.meet(addresses)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_port_in_use_ends_all_workers_with_one_line(self, monkeypatch, rank):
        if rank == 0:
            # The other worker gives up after this time, because the chief cannot tell it.
            monkeypatch.setattr(workers, "_MOST_WAIT", 1)
            monkeypatch.setattr(workers, "_MOST_HANDSHAKE", 0.1)
        addresses = choose_addresses()
        host, _, port = addresses[rank].partition(":")
        with socket.create_server((host, int(port))):
            ends = self.meet(addresses)
        message = f"cannot listen at {addresses[rank]} (Address already in use); end the program that uses this port"
        assert isinstance(ends[rank], ConfigError) and str(ends[rank]).startswith(message)
        other = f"worker 1: {message}" if rank else f"another program than worker 0 answers at {addresses[0]}; end"
        assert isinstance(ends[1 - rank], UserError) and str(ends[1 - rank]).startswith(other)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_missing_devices_of_one_worker_end_all(self, rank):
        ends = self.meet(choose_addresses(), [9 if worker == rank else None for worker in (0, 1)])
        message = "--devices is 9; a worker of this cluster has only one CPU device"
        assert list(map(str, ends)) == [message if worker == rank else f"worker {rank}: {message}" for worker in (0, 1)]

    def test_chief_waits_for_a_worker_that_ended_while_it_waited(self):
        addresses = choose_addresses(3)
        host, _, port = addresses[0].partition(":")
        ended = threading.Event()

        def connect_and_end(rank):
            if rank == 1:
                while (first := socket.socket()).connect_ex((host, int(port))):
                    time.sleep(0.05)
                with first, first.makefile("rb") as lines:
                    first.sendall(b'[1, ""]\n')
                    assert lines.readline()
                ended.set()
            elif rank == 2:
                assert ended.wait(PATIENCE)

        assert self.meet(addresses, before=connect_and_end) == [None] * 3


CLUSTER_EXAMPLES = ROOT / "examples" / "cluster"


def stand_in(folder, name, script):
    """Puts a program of this name in front of all others."""
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


class TestExamples:
    def test_kubernetes_schemas_accept_the_manifest(self):
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        yaml = pytest.importorskip("yaml")

        for resource in yaml.safe_load_all((CLUSTER_EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8")):
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)

    @pytest.mark.parametrize("index", [0, 1])
    def test_kubernetes_pods_have_each_others_addresses(self, tmp_path, set_tf_config, index):
        lines = (CLUSTER_EXAMPLES / "kubernetes.yaml").read_text().splitlines()
        first = next(number for number, line in enumerate(lines) if line.strip() == "- |") + 1
        script = "\n".join(lines[first : next(n for n, line in enumerate(lines) if "ports:" in line)])
        variables = stand_in(tmp_path, "tfdecouple", 'echo "$TF_CONFIG"')
        variables |= {"WORKERS": "2", "JOB_COMPLETION_INDEX": str(index)}
        written = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
        set_tf_config(written.stdout)
        cluster = find_cluster()
        assert cluster.workers == ["tfdecouple-0.tfdecouple:2222", "tfdecouple-1.tfdecouple:2222"]
        assert cluster.rank == index


class TestWorkers:
    def test_all_workers_get_the_chiefs_result(self):
        calls = []

        def act(workers):
            return workers.call_on_chief(lambda: calls.append(workers.rank) or {"steps": [5, None], "word": "größer"})

        assert WorkerThreads(3).run(act) == [{"steps": [5, None], "word": "größer"}] * 3
        assert calls == [0]

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
        monkeypatch.setattr(workers, "_BROADCAST_BYTES", together)
        values = [np.float32([[1e-42, np.nan, -0.0]]), np.int64(2**40), np.array([True, False]), np.float64(np.inf)]

        def act(workers):
            variables = [tf.Variable(value if (workers.rank == 0) else np.ones_like(value)) for value in values]
            workers.broadcast_variables(variables)
            return [variable.numpy().tobytes() for variable in variables]

        assert WorkerThreads().run(act) == [[value.tobytes() for value in values]] * 2
