"""Where a run's figures and pictures go beside `metrics.jsonl`, by the names of `training.loggers`."""

from __future__ import annotations

from collections.abc import Sequence

from tfdecouple.config.training import LOGGERS as NAMES
from tfdecouple.runtime.extras import require
from tfdecouple.training.loggers.base import Logger
from tfdecouple.training.loggers.ml_flow import MLflow
from tfdecouple.training.loggers.tables import Tables
from tfdecouple.training.loggers.tensorboard import TensorBoard
from tfdecouple.training.loggers.weights_and_biases import WeightsAndBiases

LOGGERS: dict[str, type[Logger]] = {logger.name: logger for logger in (TensorBoard, Tables, WeightsAndBiases, MLflow)}
assert tuple(LOGGERS) == NAMES


def require_loggers(names: Sequence[str]) -> None:
    """Looks whether the packages of some loggers are installed.

    Raises:
        MissingPackageError: naming the extra that brings one.
    """
    for name in names:
        if LOGGERS[name].package:
            require(LOGGERS[name].package, what=f"training.loggers={name}")
