"""Training: the step, and the loop around it."""

from tfdecouple.training.loop import DivergedError, InterruptedRunError, Outcome, train

__all__ = ["DivergedError", "InterruptedRunError", "Outcome", "train"]
