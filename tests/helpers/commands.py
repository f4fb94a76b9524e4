"""Functions that run a command of the program `tfdecouple` in the process of the test."""

from helpers.refusals import refused
from tfdecouple.cli import main


def command(*arguments, status=0):
    """Runs `tfdecouple` with `arguments`, of any type, and asserts that it ends with `status`."""
    assert main([str(argument) for argument in arguments]) == status


def refuse(capsys, *arguments, **options):
    """Runs `tfdecouple`, asserts as `refused` does that it ends with one line on the user's mistake; returns it."""
    return refused(capsys, lambda: main([str(argument) for argument in arguments]), **options)
