"""Training on a Slurm cluster of two nodes, each in namespaces of this machine; needs slurm-wlm and munge."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
from helpers.models import LEAST
from helpers.places import PATIENCE, ROOT, user_environment
from helpers.runs import run_config

from tfdecouple.storage.files import write_json

pytestmark = pytest.mark.slow

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
            saved = [int(path.stem[5:]) for path in (tmp_path / "run").glob("checkpoints/step-*.index")]
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
