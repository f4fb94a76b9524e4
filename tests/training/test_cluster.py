import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST
from helpers.places import PATIENCE, ROOT, user_environment
from helpers.refusals import refusal
from helpers.runs import run_config
from helpers.worker_pairs import WorkerThreads, choose_addresses

from tfdecouple.errors import ConfigError, UserError
from tfdecouple.storage.files import write_json
from tfdecouple.training import workers
from tfdecouple.training.workers import Cluster, find_cluster, meet_workers


@pytest.fixture
def set_tf_config(monkeypatch):
    return lambda given: monkeypatch.setenv("TF_CONFIG", given if isinstance(given, str) else json.dumps(given))


def tf_config(cluster=None, **task):
    cluster = {"worker": ["a:1", "b:1"]} if cluster is None else cluster
    return {"cluster": cluster, "task": {"type": "worker", "index": 0, **task}}


class TestTfConfig:
    @pytest.mark.parametrize(
        ("given", "workers", "rank"),
        [
            (tf_config(index=1), ["a:1", "b:1"], 1),
            (tf_config({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, index="1"), ["c:1", "a:1", "b:1"], 2),
            (tf_config({"worker": ["a:1"], "chief": ["c:1"]}, type="chief"), ["c:1", "a:1"], 0),
        ],
    )
    def test_cluster_of_tf_config_lists_the_chief_first(self, set_tf_config, given, workers, rank):
        set_tf_config(given)
        assert (find_cluster().workers, find_cluster().rank) == (workers, rank)

    @pytest.mark.parametrize("given", ["", " ", {}, {"cluster": {}}, tf_config({"worker": ["a:1"]})])
    def test_tf_config_of_a_single_worker_is_no_cluster(self, set_tf_config, given):
        set_tf_config(given)
        assert find_cluster() is None

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("{", "Expecting property name"),
            (tf_config({"worker": ["a:1"], "ps": ["b:1"]}), "cluster.ps"),
            (tf_config({"worker": ["a", "b:1"]}), "cluster.worker.0"),
            (tf_config({"worker": ["a:1", "a:1"]}), "names an address twice"),
            (tf_config({"chief": ["a:1", "b:1"]}), "more than one chief"),
            ({"cluster": {"worker": ["a:1", "b:1"]}}, "task must name one of the workers"),
            (tf_config(type="chief"), "task must name one of the workers"),
            (tf_config(type=["worker"]), "task.type"),
            (tf_config(index=2), "task must name one of the workers"),
            (tf_config(index=-1), "task.index"),
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


KUBERNETES = (ROOT / "examples" / "cluster" / "kubernetes.yaml").read_text(encoding="utf-8")


class TestExamples:
    def test_kubernetes_schemas_accept_the_manifest(self):
        kubernetes_validate, yaml = pytest.importorskip("kubernetes_validate"), pytest.importorskip("yaml")
        for resource in yaml.safe_load_all(KUBERNETES):
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)

    @pytest.mark.parametrize("index", [0, 1])
    def test_kubernetes_pods_have_each_others_addresses(self, tmp_path, set_tf_config, index):
        script = KUBERNETES.partition("- |\n")[2].partition("ports:")[0]
        # This program stands in front of the real one.
        (tmp_path / "tfdecouple").write_text('#!/bin/bash\necho "$TF_CONFIG"\n')
        (tmp_path / "tfdecouple").chmod(0o755)
        variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        variables |= {"WORKERS": "2", "JOB_COMPLETION_INDEX": str(index)}
        written = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
        set_tf_config(written.stdout)
        cluster = find_cluster()
        assert cluster.workers == ["tfdecouple-0.tfdecouple:2222", "tfdecouple-1.tfdecouple:2222"]
        assert cluster.rank == index


class TestWorkers:
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


# Training on a Slurm cluster of two nodes, each in namespaces of this machine, needs slurm-wlm and munge.
# {PLACE} is a folder. Slurm starts a requeued job only after the credentials of its last start have expired.
CONF = """
ClusterName=test
SlurmctldHost=n1
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={PLACE}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={PLACE}/state
SlurmdSpoolDir={PLACE}/spool.%n
SlurmctldPidFile={PLACE}/slurmctld.pid
SlurmdPidFile={PLACE}/slurmd.%n.pid
SlurmctldLogFile={PLACE}/slurmctld.log
SlurmdLogFile={PLACE}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
SchedulerType=sched/backfill
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=n[1-2] CPUs=2 RealMemory=1000
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class Machine:
    """A host name, a network, a process tree and a file /etc/hosts of their own, on this machine."""

    def __init__(self, name, hosts):
        script = f"hostname {name} && mount --bind {hosts} /etc/hosts && ip link set lo up && echo up && exec sleep inf"
        command = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([*command, "sh", "-c", script], **pipes)
        if self._process.stdout.readline() != "up\n":
            pytest.skip("a Slurm cluster needs the right to make network namespaces")
        children = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
        self.pid = pathlib.Path(children).read_text().strip()

    def run(self, *command, **options):
        enter = ["nsenter", "--target", self.pid, "--net", "--uts", "--mount", "--pid", f"--wd={ROOT}"]
        done = subprocess.run([*enter, *map(str, command)], capture_output=True, text=True, timeout=PATIENCE, **options)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def end(self):
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def slurm(tmp_path):
    """A function that runs a command of Slurm on the first of two nodes, with its job's files in `tmp_path`."""
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("Slurm is not installed")
    for folder in ("state", "spool.n1", "spool.n2"):
        (tmp_path / folder).mkdir()
    (tmp_path / "slurm.conf").write_text(CONF.replace("{PLACE}", str(tmp_path)))
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.9.8.1 n1\n10.9.8.2 n2\n")
    key = tmp_path / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = {**user_environment(), "SLURM_CONF": str(tmp_path / "slurm.conf")}
    environment["PATH"] = f"{pathlib.Path(sys.executable).parent}:{environment['PATH']}"
    machines = []
    try:
        for name in ("n1", "n2"):
            machines.append(Machine(name, tmp_path / "hosts"))
        first, second = machines
        link = ["ip", "link", "add", "cable", "netns", first.pid, "type", "veth", "peer", "name", "cable"]
        subprocess.run([*link, "netns", second.pid], check=True)
        for number, machine in enumerate(machines, 1):
            machine.run("ip", "address", "add", f"10.9.8.{number}/24", "dev", "cable")
            machine.run("ip", "link", "set", "cable", "up")
        options = {"key-file": key, "socket": tmp_path / "munge.socket", "pid-file": tmp_path / "munged.pid"}
        options |= {"log-file": tmp_path / "munged.log", "seed-file": tmp_path / "munged.seed"}
        first.run("munged", "--force", *(f"--{name}={value}" for name, value in options.items()))
        first.run("slurmctld", "-i", env=environment)
        for machine in machines:
            machine.run("slurmd", env=environment)
        first.run("srun", "--nodes=2", "--ntasks=2", "hostname", env=environment)

        def run(*command):
            return first.run(*command, env=environment)

        yield run
    finally:
        for machine in machines:
            machine.end()


@pytest.mark.slow
def test_job_resumes_after_a_signal_a_lost_worker_and_the_time_limit(slurm, image_folder, tmp_path):
    endless = run_config(image_folder, model=LEAST, steps=10**6, evaluate_every=10**6, pictures=0)
    write_json(tmp_path / "config.json", endless.to_dict())
    job = ["sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", f"--output={tmp_path}/job.log"]
    script = ["examples/cluster/slurm.sh", "--config", tmp_path / "config.json", "--workdir", tmp_path / "run"]
    number = slurm(*job, *script).strip()
    begun = time.monotonic()

    def wait_for(is_done):
        """Waits until is_done(log of the job, steps at which it resumed, latest saved step); returns the log."""
        while True:
            log = (tmp_path / "job.log").read_text() if (tmp_path / "job.log").exists() else ""
            resumed = [int(step) for step in re.findall(r"resumes from step (\d+)\n", log)]
            saved = [int(path.stem[5:]) for path in (tmp_path / "run").glob("checkpoints/step-*.safetensors")]
            if is_done(log, resumed, max(saved, default=0)):
                return log
            assert time.monotonic() < begun + PATIENCE, log
            time.sleep(0.2)

    def wait_for_start(count):
        """Waits until the job has resumed `count` times and has saved a later step."""
        return wait_for(lambda log, resumed, saved: len(resumed) == count and saved > max(resumed, default=0))

    assert "2 CPUs of 2 workers" in wait_for_start(0)
    slurm("scancel", "--signal=TERM", number)
    log = wait_for_start(1)
    message = "stopped by SIGTERM at step "
    assert re.search(rf"{message}\d+ of 1000000, saved; the same command resumes\n", log)

    slurm("pkill", "--signal=KILL", "--full", "^python train.py ")
    assert "another worker has ended, so worker 1 cannot continue" in wait_for_start(2)

    # Slurm sends SIGTERM two minutes before the limit.
    minutes = int(slurm("squeue", "--noheader", "--format=%M", f"--jobs={number}").split(":")[-2])
    slurm("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes + 2}")
    wait_for(lambda log, resumed, saved: log.count(message) == 4)
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=UNLIMITED")
    wait_for_start(3)
    slurm("scancel", number)
