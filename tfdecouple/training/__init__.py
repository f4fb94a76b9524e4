"""Training of a model: the training loop, its outcome, and the errors that it raises."""

from tfdecouple.errors import DivergedError
from tfdecouple.training.loop import Outcome, train
from tfdecouple.training.signals import InterruptedRunError
from tfdecouple.training.workers import LostWorkerError

__all__ = ["DivergedError", "InterruptedRunError", "LostWorkerError", "Outcome", "train"]
