"""The processes that train together: which they are, barriers, broadcasts, and what only the first of them does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import ConfigError, RunError, UserError, one_line
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


# What TensorFlow raises where another process has gone: the collective operations of this one are aborted.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.FailedPreconditionError,
)


# How much is broadcast at a time, at least.
_BROADCAST_BYTES = 2**24


class LostWorkerError(RunError):
    """Another worker has ended, and without it this one cannot go on."""


@contextlib.contextmanager
def lost_worker_errors(rank: int) -> Iterator[None]:
    """Turns TensorFlow's errors about a worker that has gone into one line.

    Args:
        rank: of this process.

    Raises:
        LostWorkerError: in place of them.
    """
    try:
        yield
    except _LOST as error:
        raise LostWorkerError(
            f"another worker has ended, so worker {rank} cannot go on; the same command on all of them goes on from "
            f"the last checkpoint ({_reason(error)})"
        ) from error


def _reason(error: tf.errors.OpError) -> str:
    """Returns the line of TensorFlow's report that says what happened."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "aborted by" in line), lines[0])[:200]


class Workers:
    """All processes of a run, by rank; often this is the only one.

    All that they exchange goes through one collective operation, the sum over devices, which exists wherever training
    works. Every method is a barrier: it must be called by all workers, in the same order.

    >>> alone = Workers()
    >>> alone.on_chief(lambda: 1), alone.on_all(lambda: 2)
    (1, 2)

    Args:
        count: number of processes.
        rank: of this process. Rank 0 is the chief, which alone writes and speaks.
        add: returns the sum over all ranks of bytes of which no two are above 0 at one index; see `collective_sum`.
    """

    def __init__(self, count: int = 1, rank: int = 0, add: Callable[[np.ndarray], np.ndarray] = np.array):
        self.count = count
        self.rank = rank
        self._add = add

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder and says how it goes."""
        return self.rank == 0

    def on_all(self, act: Callable[[], Any]) -> Any:
        """Does something in every process; if it fails in one, it fails in all.

        Returns:
            What `act` returned here.

        Raises:
            Exception: that of `act`.
            RunError: with the message of the first worker where it failed.
        """
        return self._checked(act)[0]

    def on_chief(self, act: Callable[[], Any]) -> Any:
        """Does something in the chief's process alone; all wait for it, and fail if it fails.

        Args:
            act: returns plain JSON.

        Returns:
            What `act` returned, in every process.

        Raises:
            Exception: that of `act`, in the chief's process.
            RunError: with its message, in the others.
        """
        result, texts = self._checked(act if self.is_chief else lambda: None)
        return result if self.is_chief else json.loads(texts[0])

    def same(self, what: str, value: str) -> None:
        """Makes sure that all have the same.

        Raises:
            RunError: in every process, naming a worker with another value.
        """
        values = self._exchange(value)
        for index, other in enumerate(values):
            if other != values[0]:
                raise RunError(f"{what} of worker {index} are {other}, of worker 0 {values[0]}")

    def broadcast(self, variables: Iterable[tf.Variable]) -> None:
        """Gives variables the values that they have in the chief's process."""
        if self.count == 1:
            return
        batch: list[tf.Variable] = []
        for variable in variables:
            batch.append(variable)
            if sum(each.shape.num_elements() * each.dtype.size for each in batch) >= _BROADCAST_BYTES:
                self._broadcast(batch)
                batch = []
        if batch:
            self._broadcast(batch)

    def _broadcast(self, variables: list[tf.Variable]) -> None:
        # Sums of bytes are exact for every type, and for values that are not finite.
        values = [variable.numpy() for variable in variables]
        data = np.frombuffer(b"".join(value.tobytes() for value in values), np.uint8)
        data = self._add(data if self.is_chief else np.zeros_like(data))
        ends = np.cumsum([value.nbytes for value in values])[:-1]
        for variable, value, own in zip(variables, values, np.split(data, ends), strict=True):
            variable.assign(np.frombuffer(own.tobytes(), value.dtype).reshape(value.shape))

    def _checked(self, act: Callable[[], Any]) -> tuple[Any, list[str]]:
        """Does something here; returns its result, and all workers' as JSON."""
        if self.count == 1:
            return act(), []
        result, failure = None, None
        try:
            result = act()
        except Exception as error:
            failure = error
        # What another process cannot use need not be JSON.
        said = json.dumps(result, default=str) if self.is_chief and not failure else "null"
        failed = "" if failure is None else (_line(failure) or "failed")
        answers = [json.loads(text) for text in self._exchange(json.dumps([failed, said]))]
        if failure is not None:
            raise failure
        for index, (message, _) in enumerate(answers):
            if message:
                raise RunError(f"worker {index}: {message}")
        return result, [text for _, text in answers]

    def _exchange(self, text: str) -> list[str]:
        """Returns the texts of all workers, in their order."""
        if self.count == 1:
            return [text]
        data = np.frombuffer(text.encode("utf-8"), np.uint8)
        sizes = np.zeros(self.count, np.int64)
        sizes[self.rank] = len(data)
        sizes = np.frombuffer(self._add(np.frombuffer(sizes.tobytes(), np.uint8)).tobytes(), np.int64)
        table = np.zeros([self.count, sizes.max()], np.uint8)
        table[self.rank, : len(data)] = data
        table = self._add(table)
        return [bytes(row[:size]).decode("utf-8") for row, size in zip(table, sizes, strict=True)]


def collective_sum(strategy: tf.distribute.Strategy, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns how `count` workers add up bytes over the devices of a strategy."""
    devices = strategy.num_replicas_in_sync // count

    def add(data: np.ndarray) -> np.ndarray:
        def of(context: tf.distribute.ValueContext) -> tf.Tensor:
            # One device speaks for its worker. Bytes as float32: every implementation can add these.
            speaks = context.replica_id_in_sync_group % devices == 0
            return tf.constant(data if speaks else np.zeros_like(data), tf.float32)

        values = strategy.experimental_distribute_values_from_function(of)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().astype(np.uint8)

    return add


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
