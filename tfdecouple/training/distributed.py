"""A trainer beside others: what several workers must do together, wrapped around the trainer of one process."""

from __future__ import annotations

import contextlib
from typing import Any, cast

from tfdecouple.training.figures import StepResult
from tfdecouple.training.loop import Trainer
from tfdecouple.training.run_directory import RunRecord
from tfdecouple.training.signals import StopRequest
from tfdecouple.training.workers import Workers


class _OnChief:
    """An object that the chief alone uses: a call of a method is its call there, whose result all ranks have."""

    def __init__(self, workers: Workers, target: Any):
        self._workers = workers
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value
        return lambda *args, **options: self._workers.on_chief(lambda: value(*args, **options))


class DistributedTrainer(Trainer):
    """A trainer of one of several workers, which take every step together.

    Only the chief uses the run folder; what it reads into variables it broadcasts.

    Args:
        workers: all of them.
        *args: as for `Trainer`; the strategy has the devices of all.
    """

    def __init__(self, workers: Workers, *args: Any):
        super().__init__(*args)
        self.workers = workers
        self.record = cast(RunRecord, _OnChief(workers, self.record))
        self.reports = cast(Any, _OnChief(workers, self.reports))

    def _restore(self) -> tuple[list[str], bool]:
        messages, is_new = super()._restore()
        if not is_new:
            self.workers.broadcast(variable for group in self.state.groups().values() for variable in group.values())
            self._take_position()
        return messages, is_new

    def _devices(self) -> str:
        return f"{super()._devices()} of {self.workers.count} workers"

    def _check_precision(self) -> None:
        self.workers.on_all(super()._check_precision)

    def _start_weights(self) -> None:
        super()._start_weights()
        # Other hardware may round otherwise.
        self._broadcast_model()

    def _load_best(self) -> None:
        super()._load_best()
        self._broadcast_model()

    def _broadcast_model(self) -> None:
        self.workers.broadcast(self.state.model_group()["model"].values())

    def _ended_by(self, stop: StopRequest, where: str) -> contextlib.AbstractContextManager[None]:
        """Lets nothing end it: the others wait for what this worker measures."""
        return contextlib.nullcontext()

    def _stops(self, stop: StopRequest, read: StepResult | None = None) -> bool:
        """Returns whether to stop here: at a step that was read, with which the wish of any has reached all workers."""
        return read is not None and bool(read.stop)
