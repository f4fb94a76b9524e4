"""The command lines: `python train.py`, `python -m tfdecouple` and its commands.

The module of a command has two functions: `add_parser(commands)` declares the options, and `run(options)` does the work
and returns the exit status. All functions here raise UserError for a mistake that the user can correct, such as a
missing run or image, and the program prints it as one line. TensorFlow is imported within `run`, so that help appears
without it.
"""

from tfdecouple.cli.commands import main, train_main

__all__ = ["main", "train_main"]
