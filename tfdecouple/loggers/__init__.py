"""Loggers, which write a run's metrics and pictures beside `metrics.jsonl`, and the registry of their names.

Loggers import large packages in their methods, because the config reads their names (`training.loggers`) without
TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfdecouple.loggers.base import Logger
from tfdecouple.loggers.tensorboard import TensorBoard
from tfdecouple.loggers.weights_and_biases import WeightsAndBiases
from tfdecouple.runtime.requirements import require

# Classes of the loggers by name, in the order of help texts and messages.
LOGGERS: dict[str, type[Logger]] = {
    logger.name: logger
    for logger in (
        TensorBoard,
        WeightsAndBiases,
    )
}


def require_loggers(names: Sequence[str]) -> None:
    """Raises MissingPackageError if a logger needs a package that is not installed; the message names the extra."""
    for name in names:
        if LOGGERS[name].package:
            require(LOGGERS[name].package, what=f"training.loggers={name}")
