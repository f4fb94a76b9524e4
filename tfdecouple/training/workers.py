"""The processes that train together: barriers, broadcasts, and what only the first of them does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import RunError, UserError, one_line

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
