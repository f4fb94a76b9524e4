"""Training: the step, and the loop around it."""

from tfdecouple.errors import DivergedError
from tfdecouple.training.loop import Outcome, train
from tfdecouple.training.signals import InterruptedRunError
from tfdecouple.training.workers import LostWorkerError

__all__ = ["DivergedError", "InterruptedRunError", "LostWorkerError", "Outcome", "train"]
