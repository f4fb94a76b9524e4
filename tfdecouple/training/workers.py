"""The processes that train together: what they tell each other, and what only the first of them does."""

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


# How much is spread at a time, at least.
_SPREAD_BYTES = 2**24


class LostWorkerError(RunError):
    """Another worker has ended, and without it this one cannot go on."""


@contextlib.contextmanager
def losses_in_one_line(number: int) -> Iterator[None]:
    """Turns TensorFlow's errors about a worker that has gone into one line.

    Args:
        number: of this worker.

    Raises:
        LostWorkerError: in place of them.
    """
    try:
        yield
    except _LOST as error:
        raise LostWorkerError(
            f"another worker has ended, so worker {number} cannot go on; the same command on all of them goes on from "
            f"the last checkpoint ({_reason(error)})"
        ) from error


def _reason(error: tf.errors.OpError) -> str:
    """Returns the line of TensorFlow's report that says what happened."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "aborted by" in line), lines[0])[:200]


class Workers:
    """All processes of a run; often this is the only one.

    All that they exchange goes through one collective operation, the sum over devices, which exists wherever training
    works. Every method must be called by all workers, in the same order.

    Args:
        strategy: the devices of all workers.
        count: number of workers.
        index: of this process. Number 0 is the chief, which alone writes and speaks.
    """

    def __init__(self, strategy: tf.distribute.Strategy, count: int = 1, index: int = 0):
        self.strategy = strategy
        self.count = count
        self.index = index

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder and says how it goes."""
        return self.index == 0

    def together(self, act: Callable[[], Any]) -> Any:
        """Does something in every process; if it fails in one, it fails in all.

        Returns:
            What `act` returned here.

        Raises:
            Exception: that of `act`.
            RunError: with the message of the first worker where it failed.
        """
        return self._checked(act)[0]

    def by_chief(self, act: Callable[[], Any]) -> Any:
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

    def spread(self, variables: Iterable[tf.Variable]) -> None:
        """Gives variables the values that they have in the chief's process."""
        if self.count == 1:
            return
        batch: list[tf.Variable] = []
        for variable in variables:
            batch.append(variable)
            if sum(each.shape.num_elements() * each.dtype.size for each in batch) >= _SPREAD_BYTES:
                self._spread(batch)
                batch = []
        self._spread(batch)

    def _spread(self, variables: list[tf.Variable]) -> None:
        # Sums of bytes are exact for every type, and for values that are not finite.
        values = [variable.numpy() for variable in variables]
        data = np.frombuffer(b"".join(value.tobytes() for value in values), np.uint8)
        data = self._sum(data if self.is_chief else np.zeros_like(data))
        ends = np.cumsum([value.nbytes for value in values])[:-1]
        for variable, value, part in zip(variables, values, np.split(data, ends), strict=True):
            variable.assign(np.frombuffer(part.tobytes(), value.dtype).reshape(value.shape))

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
        sizes[self.index] = len(data)
        sizes = np.frombuffer(self._sum(np.frombuffer(sizes.tobytes(), np.uint8)).tobytes(), np.int64)
        table = np.zeros([self.count, sizes.max()], np.uint8)
        table[self.index, : len(data)] = data
        table = self._sum(table)
        return [bytes(row[:size]).decode("utf-8") for row, size in zip(table, sizes, strict=True)]

    def _sum(self, data: np.ndarray) -> np.ndarray:
        """Returns the sum over the workers of bytes of which no two are above 0 in the same place."""

        def of(context: tf.distribute.ValueContext) -> tf.Tensor:
            # One device speaks for its worker. Bytes as float32: every implementation can add these.
            speaks = context.replica_id_in_sync_group % self._devices == 0
            return tf.constant(data if speaks else np.zeros_like(data), tf.float32)

        values = self.strategy.experimental_distribute_values_from_function(of)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().astype(np.uint8)

    @property
    def _devices(self) -> int:
        return self.strategy.num_replicas_in_sync // self.count


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
