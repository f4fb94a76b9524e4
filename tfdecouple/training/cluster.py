"""Which processes train together: read from TF_CONFIG or from Slurm."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import tensorflow as tf

from tfdecouple.errors import ConfigError
from tfdecouple.storage.files import parse_json

CHOICES = ("auto", "tf-config", "slurm", "none")

_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'

# Below the ports that systems give to clients, and of each job its own: two jobs can share a host.
_SLURM_PORTS = range(16000, 32000)
_PORTS_PER_JOB = 16


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, as one of them sees them.

    Attributes:
        jobs: addresses (host:port) by job: "worker", and "chief" where there is one.
        job: of this process.
        index: of this process in its job.
        rank_on_host: of this process among the workers that share this host and its GPUs, from 0.
        sharing_host: how many these are.
    """

    jobs: dict[str, list[str]]
    job: str
    index: int
    rank_on_host: int = 0
    sharing_host: int = 1

    @property
    def workers(self) -> list[str]:
        """The addresses of all workers, the chief's first."""
        return [*self.jobs.get("chief", []), *self.jobs.get("worker", [])]

    @property
    def rank(self) -> int:
        """The number of this process among all workers; that of the chief is 0."""
        return self.index + (len(self.jobs.get("chief", [])) if self.job == "worker" else 0)


def find_cluster(choice: str = "auto") -> Cluster | None:
    """Returns the cluster that this process belongs to; None where it trains alone.

    TF_CONFIG counts where it names more than one worker, else Slurm where `srun` started more than one task. A batch
    script of Slurm that calls the program without `srun` is one process, however many tasks it has reserved.

    Args:
        choice: one of `CHOICES`. "tf-config" and "slurm" insist on the one, "none" ignores both.

    Raises:
        ConfigError: where the environment contradicts itself or the choice.
    """
    if choice not in CHOICES:
        raise ConfigError(f"--cluster is {choice!r}; use one of {', '.join(CHOICES)}")
    cluster = None
    if choice in ("auto", "tf-config"):
        cluster = _from_tf_config(os.environ.get("TF_CONFIG", ""))
        if cluster is None and choice == "tf-config":
            raise ConfigError(f"--cluster is tf-config, but TF_CONFIG names no second worker; such as {_EXAMPLE}")
    if choice in ("auto", "slurm") and cluster is None:
        cluster = _from_slurm()
        if cluster is None and choice == "slurm":
            raise ConfigError("--cluster is slurm, but this is no step of several tasks; start the program with srun")
    return cluster


def _from_tf_config(text: str) -> Cluster | None:
    if not text.strip():
        return None
    try:
        given = parse_json(text)
    except ValueError as error:
        raise _malformed(f"is no JSON ({error})") from error
    if not isinstance(given, dict) or not isinstance(given.get("cluster", {}), dict):
        raise _malformed("holds no object")
    jobs = given.get("cluster", {})
    for job, addresses in jobs.items():
        if job not in ("chief", "worker"):
            raise _malformed(f"has a job {job!r}; there are only workers, and a chief among them")
        if not isinstance(addresses, list) or not all(_is_address(address) for address in addresses):
            raise _malformed(f"must list the {job} addresses as host:port")
    everyone = [address for addresses in jobs.values() for address in addresses]
    if len(set(everyone)) < len(everyone):
        raise _malformed("names an address twice")
    if len(everyone) < 2:
        return None
    if len(jobs.get("chief", [])) > 1:
        raise _malformed("has more than one chief")
    task = given.get("task")
    # Within a list: what was given need not have a hash.
    if not isinstance(task, dict) or task.get("type") not in list(jobs):
        raise _malformed(f"must say in task.type which of {', '.join(jobs)} this process is")
    index = task.get("index")
    # Some launchers write numbers as text.
    if isinstance(index, bool) or not re.fullmatch(r"\d+", str(index)) or int(str(index)) >= len(jobs[task["type"]]):
        raise _malformed(f"has task.index {index!r}; it must be from 0 to {len(jobs[task['type']]) - 1}")
    cluster = Cluster(jobs, task["type"], int(str(index)))
    # Whoever sets CUDA_VISIBLE_DEVICES has given each worker its own.
    return cluster if "CUDA_VISIBLE_DEVICES" in os.environ else _sharing_gpus(cluster)


def _malformed(problem: str) -> ConfigError:
    return ConfigError(f"TF_CONFIG {problem}; such as {_EXAMPLE}")


def _is_address(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"\S+:\d{1,5}", text) is not None


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _from_slurm() -> Cluster | None:
    # srun sets it; a batch script has SLURM_NTASKS and SLURM_PROCID too, but runs once.
    if _number("SLURM_STEP_NUM_TASKS", 1) < 2:
        return None
    job, local = _number("SLURM_JOB_ID", 0), _number("SLURM_LOCALID", 0)
    first_port = _SLURM_PORTS[job * _PORTS_PER_JOB % len(_SLURM_PORTS)]
    try:
        # How many GPUs there are is asked of TensorFlow later; the resolver divides by these numbers.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=first_port, gpus_per_node=_PORTS_PER_JOB, gpus_per_task=1, auto_set_gpu=False
        )
        addresses = resolver.cluster_spec().as_dict()["worker"]
        index = resolver.task_id
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(
            f"Slurm's variables name no cluster ({said}); start it with srun, or train alone with --cluster none"
        ) from error
    own = f"{os.environ.get('SLURMD_NODENAME')}:{first_port + local}"
    if own in addresses:
        # The resolver takes for granted that ranks follow the sorted names of the hosts; node10 sorts before node9.
        index = addresses.index(own)
    cluster = Cluster({"worker": addresses}, "worker", index)
    # With these, Slurm shows each task its own GPUs; without, those of the host to all of its tasks.
    bound = os.environ.get("SLURM_GPUS_PER_TASK") or os.environ.get("SLURM_GPU_BIND")
    return cluster if bound else _sharing_gpus(cluster)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name) or str(otherwise)
    # Python would take more for a number: signs, underscores, digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise ConfigError(
            f"{name} is {text[:60]!r}; it must be a number. --cluster none trains without Slurm's variables"
        )
    return int(text)


def _sharing_gpus(cluster: Cluster) -> Cluster:
    """Returns the cluster with the process' rank among those of its host."""
    own = cluster.jobs[cluster.job][cluster.index]
    neighbours = [address for address in cluster.workers if _host(address) == _host(own)]
    return dataclasses.replace(cluster, rank_on_host=neighbours.index(own), sharing_host=len(neighbours))
