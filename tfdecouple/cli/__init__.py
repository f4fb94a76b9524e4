"""The command lines: `python train.py`, `python -m tfdecouple` and its commands.

Each module of a command offers `add_parser(commands)`, which describes its arguments, and `run(options)`, which returns
the exit status. TensorFlow is imported by `run`, so that help and mistakes in the arguments are answered at once.
"""

from tfdecouple.cli.commands import main, train_main

__all__ = ["main", "train_main"]
