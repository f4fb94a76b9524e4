"""Where a run's figures and pictures go beside `metrics.jsonl`: the loggers, and the registry of their names.

What is heavy is imported in their methods: the config knows their names (`training.loggers`) without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfdecouple.loggers.base import Logger
from tfdecouple.loggers.ml_flow import MLflow
from tfdecouple.loggers.tables import Tables
from tfdecouple.loggers.tensorboard import TensorBoard
from tfdecouple.loggers.weights_and_biases import WeightsAndBiases
from tfdecouple.runtime.extras import require

# By name, in the order in which they are listed to users.
LOGGERS: dict[str, type[Logger]] = {
    logger.name: logger
    for logger in (
        TensorBoard,
        Tables,
        WeightsAndBiases,
        MLflow,
    )
}


def require_loggers(names: Sequence[str]) -> None:
    """Looks whether the packages of some loggers are installed.

    Raises:
        MissingPackageError: naming the extra that brings one.
    """
    for name in names:
        if LOGGERS[name].package:
            require(LOGGERS[name].package, what=f"training.loggers={name}")
