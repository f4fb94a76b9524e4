"""The workers (processes) and devices that train together: the cluster, the strategy, and calls across workers."""

import contextlib
import functools
import itertools
import json
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import tensorflow as tf

from tfdecouple.config import TrainingConfig
from tfdecouple.errors import ConfigError, RunError, UserError, one_line
from tfdecouple.storage.files import Facts, parse_json
from tfdecouple.system.devices import MOST_DEVICES
from tfdecouple.tensorflow_internals import worker_timeout

# Example of a value of the environment variable TF_CONFIG, for error messages.
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'

_Address = Annotated[str, pydantic.Field(pattern=r"^\S+:\d{1,5}$")]


# Seconds without a heartbeat after which a worker counts as dead. A worker that dies during a step is noticed at once.
_MOST_SILENCE = 40
# Seconds for which a failed worker waits for the other workers, and for which a program that connects may be silent.
_MOST_WAIT, _MOST_HANDSHAKE = 60, 10
# The chief's first line to each worker that connects, and the most bytes of a line that workers exchange.
_GREETING = b"tfdecouple\n"
_MOST_BYTES = 2**16

_Communication = tf.distribute.experimental.CommunicationImplementation


class Task(pydantic.BaseModel):
    """The job of this process in TF_CONFIG, "chief" or "worker", and its index among the processes with this job."""

    type: Literal["chief", "worker", ""] = ""
    index: pydantic.NonNegativeInt = 0


class Cluster(pydantic.BaseModel):
    """The workers (processes) of a run, as the environment variable TF_CONFIG describes them.

    Attributes:
        cluster: addresses (host:port) by job: "worker", and "chief" where there is one.
        task: the job and the index of this process.
    """

    cluster: dict[Literal["chief", "worker"], list[_Address]] = {}
    task: Task = Task()

    @property
    def workers(self) -> list[str]:
        """The addresses (host:port) of all workers of this cluster, a list with the chief's address first."""
        return [*self.cluster.get("chief", []), *self.cluster.get("worker", [])]

    @property
    def rank(self) -> int:
        """The rank of this process, its index among all workers; the chief has rank 0."""
        return self.task.index + (len(self.cluster.get("chief", [])) if self.task.type == "worker" else 0)

    def split_address(self, rank: int) -> tuple[str, int]:
        """Returns host and port of the worker with this rank."""
        host, _, port = self.workers[rank].rpartition(":")
        return host.strip("[]"), int(port)


def find_cluster() -> Cluster | None:
    """Returns the `Cluster` in TF_CONFIG; None if unset or of one worker; ConfigError for an invalid description."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        cluster = Cluster.model_validate(parse_json(text))
        workers, task = cluster.workers, cluster.task
        if len(workers) < 2:
            return None
        if len(set(workers)) < len(workers) or len(cluster.cluster.get("chief", [])) > 1:
            raise ValueError("it names an address twice, or more than one chief")
        if not task.type or task.index >= len(cluster.cluster.get(task.type, [])):
            raise ValueError("task must name one of the workers")
    except ValueError as error:
        first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else None
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else one_line(error)
        raise ConfigError(f"TF_CONFIG is no description of a cluster ({problem}); such as {_EXAMPLE}") from error
    return cluster


def make_strategy(devices: int | None = None, cluster: Cluster | None = None) -> tf.distribute.MirroredStrategy:
    """Returns a MirroredStrategy over all visible GPUs, or over the CPU if there is no GPU.

    In a cluster the function waits until all workers have started, and returns a MultiWorkerMirroredStrategy over the
    devices of all workers. Call it before TensorFlow runs its first operation.

    `devices` is the number of devices of each worker; None for all GPUs, or one CPU. Several devices without a GPU are
    logical CPU devices: they show how a run behaves on several devices, but are no faster. ConfigError is raised where
    there are fewer. `cluster` has all workers; None stands for this process alone.
    """
    if devices is not None and not 1 <= devices <= MOST_DEVICES:
        raise ConfigError(f"--devices is {devices}; it must be from 1 to {MOST_DEVICES}")
    if cluster is not None:
        if gpus := _choose_gpus(devices):
            tf.config.set_visible_devices(gpus, "GPU")
        implementation = _Communication.AUTO if gpus else _Communication.RING
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
        with worker_timeout(_MOST_SILENCE):
            # TensorFlow reads the same TF_CONFIG.
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    cpu = tf.config.list_physical_devices("CPU")[0]
    if kind == "CPU" and (devices or 1) > max(1, len(tf.config.get_logical_device_configuration(cpu) or [])):
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * (devices or 1))
        except RuntimeError as error:
            raise ConfigError(f"--devices is {devices}; TensorFlow has started with fewer logical CPUs") from error
    present = [device.name.partition("device:")[2] for device in tf.config.list_logical_devices(kind)]
    if devices is None:
        devices = len(present) if kind == "GPU" else 1
    if devices > len(present):
        raise ConfigError(f"--devices is {devices}; there are {len(present)} ({', '.join(present)})")
    return get_mirrored_strategy(tuple(present[:devices]))


def meet_workers(cluster: Cluster, devices: int | None = None) -> None:
    """Waits until all workers of a cluster have started, each with a free port and at least `devices` devices.

    TensorFlow then connects the workers through the same ports. Its own wait cannot be ended by a signal, and does not
    end if a worker has failed. So the other workers first connect to the chief's port, each with its failure if it has
    one, and the chief answers with the first failure. ConfigError is raised if this worker's port is in use, if it has
    too few devices, or if another program answers at the chief's address; RunError if another worker has failed.
    """
    failure = listener = first = None
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(_open_port(cluster))
            _choose_gpus(devices)
        except ConfigError as error:
            failure = error
        if cluster.rank:
            first = _send_failure(cluster, str(failure or ""))
        elif listener:
            first = _collect_failures(listener, len(cluster.workers), str(failure or ""))
    if failure:
        raise failure
    if first:
        raise RunError(f"worker {first[0]}: {first[1]}")


def _open_port(cluster: Cluster) -> socket.socket:
    """Returns a socket that listens on the port of this process, on all addresses as TensorFlow does."""
    port, dual = cluster.split_address(cluster.rank)[1], socket.has_dualstack_ipv6()
    try:
        return socket.create_server(("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ConfigError(
            f"cannot listen at {cluster.workers[cluster.rank]} ({reason}); end the program that uses this port, or "
            "choose another port in TF_CONFIG"
        ) from error


def _collect_failures(listener: socket.socket, count: int, failure: str) -> tuple[int, str] | None:
    """Returns the rank and the failure of the first failed worker, None if all have started; the chief calls it.

    `failure` is the chief's own failure, "" for none. After a failure, workers that start later are awaited for at most
    `_MOST_WAIT` seconds.
    """
    joined: dict[socket.socket, tuple[int, str]] = {}
    failures: list[tuple[int, str]] = []
    last = math.inf
    while len({rank for rank, _ in joined.values()}) < count - 1 and time.monotonic() < last:
        for readable in select.select([listener, *joined], [], [], 1)[0]:
            if readable is listener:
                connection = listener.accept()[0]
                connection.settimeout(_MOST_HANDSHAKE)
                # The file is closed here, as Python drops the exception of a signal that comes while a destructor runs.
                with contextlib.suppress(OSError, ValueError, TypeError), connection.makefile("rb") as lines:
                    connection.sendall(_GREETING)
                    rank, text = json.loads(lines.readline(_MOST_BYTES))
                    joined[connection] = rank, text
            else:
                # The worker has ended, and may be started again.
                joined.pop(readable)
                readable.close()
        failures = [(rank, text) for rank, text in [(0, failure), *joined.values()] if text]
        if failures:
            last = min(last, time.monotonic() + _MOST_WAIT)
    first = min(failures, default=None)
    for connection in joined:
        with contextlib.suppress(OSError), connection:
            connection.sendall(json.dumps(first).encode() + b"\n")
    return first


def _send_failure(cluster: Cluster, failure: str) -> tuple[int, str] | None:
    """Sends this worker's failure ("" for none) to the chief; returns rank and failure of the first failed worker."""
    limit = last = time.monotonic() + _MOST_WAIT if failure else math.inf
    while time.monotonic() < last:
        # Until the chief has started, its name may be unknown, and its port refuses connections.
        with contextlib.suppress(OSError):
            connection = socket.create_connection(cluster.split_address(0), timeout=_MOST_SILENCE)
            # The program that answers may be the chief of a run that is just ending.
            last = min(last, time.monotonic() + _MOST_WAIT)
            with connection, connection.makefile("rb") as lines:
                connection.sendall(json.dumps([cluster.rank, failure]).encode() + b"\n")
                connection.settimeout(_MOST_HANDSHAKE)
                if lines.readline(_MOST_BYTES) == _GREETING:
                    last = limit
                    connection.settimeout(None)
                    if answer := lines.readline(_MOST_BYTES):
                        return json.loads(answer)
        time.sleep(0.5)
    if failure:
        return None
    raise ConfigError(
        f"another program than worker 0 answers at {cluster.workers[0]}; end that program, or choose another port in "
        "TF_CONFIG"
    )


@functools.cache
def get_mirrored_strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Returns the MirroredStrategy over devices, named as in "GPU:0"; always the same object for the same devices.

    TensorFlow tells collective operations apart by numbers; a second strategy would use the numbers of the first again.
    """
    return tf.distribute.MirroredStrategy(list(devices))


def _choose_gpus(devices: int | None) -> list[tf.config.PhysicalDevice]:
    """Returns the first `devices` visible GPUs (None: all) of a cluster's worker; ConfigError if it has fewer."""
    gpus = tf.config.get_visible_devices("GPU")
    present = len(gpus) or 1
    if devices is not None and devices > present:
        kind = f"{present} GPUs" if gpus else "only one CPU device"
        raise ConfigError(f"--devices is {devices}; a worker of this cluster has {kind}")
    return gpus[: devices or present]


def make_device_input_options() -> tf.distribute.InputOptions:
    """Returns input options that make a distributed dataset copy the next batches to the devices during a step."""
    batches = 2 if tf.config.get_visible_devices("GPU") else 1
    return tf.distribute.InputOptions(experimental_per_replica_buffer_size=batches)


def require_divisible_batch(training: TrainingConfig, replicas: int) -> None:
    """Raises ConfigError unless the batch size is a multiple of `replicas` (devices) times the micro-batches."""
    size, slices = training.batch_size, replicas * training.micro_batches
    if size % slices:
        micro = f" times {training.micro_batches} micro-batches" if training.micro_batches > 1 else ""
        least = "smaller than" if size < slices else "no multiple of"
        raise ConfigError(
            f"training.batch_size is {size}, {least} the {replicas} devices{micro}; take a multiple of {slices}"
        )


# TensorFlow's collective operations raise one of these errors after another worker has ended.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.FailedPreconditionError,
)
# Variables are broadcast in groups of about this many bytes.
_BROADCAST_BYTES = 2**24


class LostWorkerError(RunError):
    """Raised in a worker that cannot continue because another worker has ended."""

    status = 4


@contextlib.contextmanager
def convert_lost_worker_errors(rank: int) -> Iterator[None]:
    """Returns a context that turns TensorFlow's errors after the end of another worker into LostWorkerError."""
    try:
        yield
    except _LOST as error:
        lines = [line.strip() for line in error.message.splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "aborted by" in line), lines[0])[:200]
        raise LostWorkerError(
            f"another worker has ended, so worker {rank} cannot continue; the same command on all of them "
            f"resumes from the last checkpoint ({reason})"
        ) from error


class Workers:
    """The workers (processes) of a run, or this process alone: calls functions in all workers and exchanges results.

    Every method is a barrier: all workers must call the same methods in the same order.

    >>> alone = Workers()
    >>> alone.call_on_chief(lambda: 1), alone.call_on_all(lambda: 2)
    (1, 2)

    Args:
        count: number of processes.
        rank: the rank of this process. Rank 0 is the chief, the only worker that prints and writes the run folder.
        add: function that takes this worker's byte array and returns the sum over all workers (`make_collective_sum`).
            At each index at most one worker has a byte above 0, so that no sum exceeds a byte.
    """

    def __init__(self, count: int = 1, rank: int = 0, add: Callable[[np.ndarray], np.ndarray] = np.array):
        self.count = count
        self.rank = rank
        self._add = add

    def call_on_all(self, act: Callable[[], Any]) -> Any:
        """Calls `act` in every process and returns the result of this process.

        If `act` fails in this process, its error is raised. If `act` fails only in others, RunError is raised with the
        message of the failed process of lowest rank.
        """
        if self.count == 1:
            return act()
        result, failure, message = None, None, ""
        try:
            result = act()
        except Exception as error:
            failure = error
            line = one_line(error)
            message = (str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {line}") or "failed"
        messages = [json.loads(text) for text in self._exchange_texts(json.dumps(message))]
        if failure is not None:
            raise failure
        for rank, other in enumerate(messages):
            if other:
                raise RunError(f"worker {rank}: {other}")
        return result

    def call_on_chief(self, act: Callable[[], Any]) -> Any:
        """Returns in every process what `act` returns in the chief's; an error there becomes RunError elsewhere."""
        result = self.call_on_all(act if self.rank == 0 else lambda: None)
        # A value that JSON cannot hold becomes a text, because an error in one process would let the others wait.
        text = self._exchange_texts(json.dumps(result, default=str))[0]
        return result if self.rank == 0 else json.loads(text)

    def require_equal(self, what: str, values: Facts) -> None:
        """Raises RunError in every process, with `what` and the differences, unless all workers have equal `values`."""
        chiefs, *others = map(json.loads, self._exchange_texts(json.dumps(values)))
        for rank, other in enumerate(others, 1):
            if changed := [f"{k} is {v!r} and {other[k]!r}" for k, v in chiefs.items() if other[k] != v]:
                raise RunError(f"{what} of worker 0 and worker {rank} differ: {'; '.join(changed)}")

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """Copies the values of `variables` from the chief's process (rank 0) to the processes of all other workers."""
        if self.count == 1:
            return
        variables = list(variables)
        ends = itertools.accumulate(variable.shape.num_elements() * variable.dtype.size for variable in variables)
        numbered = zip(variables, ends, strict=True)
        # Copies of all variables at once would need too much memory, and one sum per variable would take too long.
        for _, pack in itertools.groupby(numbered, lambda pair: pair[1] // _BROADCAST_BYTES):
            chosen = [variable for variable, _ in pack]
            # Bytes are summed instead of numbers, because sums of bytes are exact for every dtype, and for NaN.
            values = [variable.numpy() for variable in chosen]
            data = np.frombuffer(b"".join(value.tobytes() for value in values), np.uint8)
            data = self._add(data if self.rank == 0 else np.zeros_like(data))
            parts = np.split(data, np.cumsum([value.nbytes for value in values])[:-1])
            for variable, value, part in zip(chosen, values, parts, strict=True):
                variable.assign(np.frombuffer(part.tobytes(), value.dtype).reshape(value.shape))

    def _exchange_texts(self, text: str) -> list[str]:
        """Sends this worker's `text` to all workers, and returns a list of the texts of all workers, by rank."""
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


def on_chief(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `method` as a call on the chief (`Workers.call_on_chief`), by the attribute `workers` of its object."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return self.workers.call_on_chief(functools.partial(method, self, *args, **options))

    return call


def make_collective_sum(strategy: tf.distribute.Strategy, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that takes this worker's byte array and returns the sum of all workers' arrays."""
    devices = strategy.num_replicas_in_sync // count

    def add(data: np.ndarray) -> np.ndarray:
        def value_on_device(device: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            # Only the first device of each worker contributes the worker's data, so that the sum has them once.
            has_data = device.replica_id_in_sync_group % devices == 0
            return tf.constant(data if has_data else np.zeros_like(data), tf.float32)

        values = strategy.experimental_distribute_values_from_function(value_on_device)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().astype(np.uint8)

    return add
