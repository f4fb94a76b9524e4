"""Training of a model: the function `train`, its result (`Outcome`), and the errors that it raises."""

from tfdecouple.errors import DivergedError
from tfdecouple.system.signals import InterruptedRunError
from tfdecouple.training.loop import Outcome, train
from tfdecouple.training.workers import LostWorkerError

__all__ = ["DivergedError", "InterruptedRunError", "LostWorkerError", "Outcome", "train"]
