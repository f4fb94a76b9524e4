"""The workers, which are the processes that train together: addresses, barriers, broadcasts, calls on the chief."""

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

# Ports of workers under Slurm, below the ports that systems give to clients.
_SLURM_PORTS = range(16000, 32000)
# Number of ports of each Slurm job. Successive jobs get different ports, because they can share a host.
_PORTS_PER_JOB = 16


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The addresses of all workers of a run, and the position of this process among them.

    Attributes:
        jobs: addresses (host:port) by job: "worker", and "chief" where there is one.
        job: the job of this process.
        index: the index of this process in its job.
        rank_on_host: the rank, from 0, of this process among the workers that share its host and the host's GPUs.
        sharing_host: number of workers that share the host and its GPUs.
    """

    jobs: dict[str, list[str]]
    job: str
    index: int
    rank_on_host: int = 0
    sharing_host: int = 1

    @property
    def workers(self) -> list[str]:
        """The addresses of all workers, with the chief's first."""
        return [*self.jobs.get("chief", []), *self.jobs.get("worker", [])]

    @property
    def rank(self) -> int:
        """The rank of this process among all workers; the chief has rank 0."""
        return self.index + (len(self.jobs.get("chief", [])) if self.job == "worker" else 0)


def find_cluster(choice: str = "auto") -> Cluster | None:
    """Returns the cluster that this process belongs to; None where it trains alone.

    TF_CONFIG is used where it names more than one worker, otherwise Slurm where `srun` started more than one task. A
    batch script of Slurm that calls the program without `srun` is one process, however many tasks it has reserved.

    Args:
        choice: one of `CHOICES`. "tf-config" and "slurm" require a cluster of that source; "none" ignores both sources.

    Raises:
        ConfigError: where environment variables contradict each other or the choice.
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
        values = parse_json(text)
    except ValueError as error:
        raise _malformed(f"is no JSON ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("cluster", {}), dict):
        raise _malformed("holds no object")
    jobs = values.get("cluster", {})
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
    task = values.get("task")
    # A list is searched, not the dict, because an untrusted type may be unhashable.
    if not isinstance(task, dict) or task.get("type") not in list(jobs):
        raise _malformed(f"must say in task.type which of {', '.join(jobs)} this process is")
    index, count = task.get("index"), len(jobs[task["type"]])
    # A text of digits is accepted, because some launchers write numbers as texts.
    if isinstance(index, bool) or not re.fullmatch(r"\d+", str(index)) or int(str(index)) >= count:
        raise _malformed(f"has task.index {index!r}; it must be from 0 to {count - 1}")
    cluster = Cluster(jobs, task["type"], int(str(index)))
    # Where CUDA_VISIBLE_DEVICES is set, the launcher has already divided the GPUs among the workers.
    return cluster if "CUDA_VISIBLE_DEVICES" in os.environ else _with_shared_gpus(cluster)


def _malformed(problem: str) -> ConfigError:
    return ConfigError(f"TF_CONFIG {problem}; such as {_EXAMPLE}")


def _is_address(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"\S+:\d{1,5}", text) is not None


def _from_slurm() -> Cluster | None:
    # Only srun sets this variable; a batch script has SLURM_NTASKS and SLURM_PROCID, too, but runs as one process.
    if _number("SLURM_STEP_NUM_TASKS", 1) < 2:
        return None
    job, local = _number("SLURM_JOB_ID", 0), _number("SLURM_LOCALID", 0)
    first_port = _SLURM_PORTS[job * _PORTS_PER_JOB % len(_SLURM_PORTS)]
    try:
        # Any numbers of GPUs will do: the resolver only divides by them, and TensorFlow finds the GPUs later.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=first_port, gpus_per_node=_PORTS_PER_JOB, gpus_per_task=1, auto_set_gpu=False
        )
        addresses = resolver.cluster_spec().as_dict()["worker"]
        index = resolver.task_id
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(
            f"Slurm's variables name no cluster ({reason}); start it with srun, or train alone with --cluster none"
        ) from error
    own = f"{os.environ.get('SLURMD_NODENAME')}:{first_port + local}"
    if own in addresses:
        # The resolver's index is wrong unless ranks follow the sorted names of hosts: node10 sorts before node9.
        index = addresses.index(own)
    cluster = Cluster({"worker": addresses}, "worker", index)
    # With these variables Slurm shows each task only its GPUs; without them a task sees all GPUs of the host.
    bound = os.environ.get("SLURM_GPUS_PER_TASK") or os.environ.get("SLURM_GPU_BIND")
    return cluster if bound else _with_shared_gpus(cluster)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name) or str(otherwise)
    # The pattern is stricter than `int`, which also accepts signs, underscores and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise ConfigError(
            f"{name} is {text[:60]!r}; it must be a number. --cluster none trains without Slurm's variables"
        )
    return int(text)


def _with_shared_gpus(cluster: Cluster) -> Cluster:
    """Returns the cluster with the rank of this process among the workers of its host."""
    own = cluster.jobs[cluster.job][cluster.index]
    host = own.rpartition(":")[0]
    neighbours = [address for address in cluster.workers if address.rpartition(":")[0] == host]
    return dataclasses.replace(cluster, rank_on_host=neighbours.index(own), sharing_host=len(neighbours))


# Errors that TensorFlow raises where another process has ended and the collective operations of this one are aborted.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.FailedPreconditionError,
)
# Smallest number of bytes of variables that are broadcast together, except for the last variables.
_BROADCAST_BYTES = 2**24


class LostWorkerError(RunError):
    """An error that ends this worker because another worker has ended."""


@contextlib.contextmanager
def lost_worker_errors(rank: int) -> Iterator[None]:
    """Returns a context that turns TensorFlow's errors about an ended worker into LostWorkerError, with one line.

    Args:
        rank: the rank of this process.
    """
    try:
        yield
    except _LOST as error:
        lines = [line.strip() for line in error.message.splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "aborted by" in line), lines[0])[:200]
        raise LostWorkerError(
            f"another worker has ended, so worker {rank} cannot go on; the same command on all of them goes on from "
            f"the last checkpoint ({reason})"
        ) from error


class Workers:
    """The processes of a run, called workers, and the calls and values that they exchange; often there is only one.

    The only collective operation is the sum over devices, which exists wherever training works. Every method is a
    barrier: all workers must call the same methods in the same order.

    >>> alone = Workers()
    >>> alone.call_on_chief(lambda: 1), alone.call_on_all(lambda: 2)
    (1, 2)

    Args:
        count: number of processes.
        rank: the rank of this process. Rank 0 is the chief, the only one that writes the run folder and prints.
        add: function that returns the sum of the byte arrays of all ranks, of which at most one is above 0 at each
            index; see `make_collective_sum`.
    """

    def __init__(self, count: int = 1, rank: int = 0, add: Callable[[np.ndarray], np.ndarray] = np.array):
        self.count = count
        self.rank = rank
        self._add = add

    def call_on_all(self, act: Callable[[], Any]) -> Any:
        """Returns the result of `act` in this process, after every process has called `act`.

        Raises:
            Exception: the error of `act`, where `act` failed in this process.
            RunError: where `act` failed in another process only, with the message of the first such worker.
        """
        return self._call(act)[0]

    def call_on_chief(self, act: Callable[[], Any]) -> Any:
        """Returns in every process the result of `act`, JSON values, which only the chief's process calls.

        Raises:
            Exception: in the chief's process, the error of `act`.
            RunError: in the other processes, with the message of the error.
        """
        result, texts = self._call(act if self.rank == 0 else lambda: None)
        return result if self.rank == 0 else json.loads(texts[0])

    def require_equal(self, what: str, value: str) -> None:
        """Raises RunError in every process if `value` differs between workers; the message has two such values."""
        values = self._exchange(value)
        for index, other in enumerate(values):
            if other != values[0]:
                raise RunError(f"{what} of worker {index} are {other}, of worker 0 {values[0]}")

    def broadcast(self, variables: Iterable[tf.Variable]) -> None:
        """Sets the variables of every process to the values in the chief's process."""
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
        # Bytes are summed instead of numbers, because sums of bytes are exact for every type and for NaN.
        values = [variable.numpy() for variable in variables]
        data = np.frombuffer(b"".join(value.tobytes() for value in values), np.uint8)
        data = self._add(data if self.rank == 0 else np.zeros_like(data))
        ends = np.cumsum([value.nbytes for value in values])[:-1]
        for variable, value, received in zip(variables, values, np.split(data, ends), strict=True):
            variable.assign(np.frombuffer(received.tobytes(), value.dtype).reshape(value.shape))

    def _call(self, act: Callable[[], Any]) -> tuple[Any, list[str]]:
        """Returns the result of `act` in this process, and one JSON text per worker; the chief's text is its result."""
        if self.count == 1:
            return act(), []
        result, failure, message = None, None, ""
        try:
            result = act()
        except Exception as error:
            failure = error
            line = one_line(error)
            message = (str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {line}") or "failed"
        # Results of `call_on_all` may be no JSON, as no other process reads them, so they may become any text.
        text = json.dumps(result, default=str) if self.rank == 0 and not failure else "null"
        answers = [json.loads(answer) for answer in self._exchange(json.dumps([message, text]))]
        if failure is not None:
            raise failure
        for index, (other, _) in enumerate(answers):
            if other:
                raise RunError(f"worker {index}: {other}")
        return result, [answer for _, answer in answers]

    def _exchange(self, text: str) -> list[str]:
        """Returns the texts of all workers, in the order of their ranks."""
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


def make_collective_sum(strategy: tf.distribute.Strategy, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that adds up the byte arrays of `count` workers over the devices of a strategy."""
    devices = strategy.num_replicas_in_sync // count

    def add(data: np.ndarray) -> np.ndarray:
        def value_on_device(context: tf.distribute.ValueContext) -> tf.Tensor:
            # Only one device of each worker contributes, so that its data is added once; float32 holds bytes exactly.
            has_data = context.replica_id_in_sync_group % devices == 0
            return tf.constant(data if has_data else np.zeros_like(data), tf.float32)

        values = strategy.experimental_distribute_values_from_function(value_on_device)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().astype(np.uint8)

    return add
