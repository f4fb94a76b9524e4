"""`python -m tfdecouple completion`: prints a script with which a shell completes the program's command lines."""

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.requirements import require_packages


def add_parser(commands: Any) -> None:
    """Adds the command `completion` and its argument to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "completion",
        "print a script with which bash or zsh completes commands and options",
        "It completes the command `tfdecouple`, in bash after: source <(tfdecouple completion bash)",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")


def run(options: argparse.Namespace) -> int:
    """Runs the command `completion`: prints the script for the shell; returns 0."""
    require_packages("shtab", what="the command completion")
    import shtab

    from tfdecouple.cli import COMMANDS, import_export, make_parser

    parser = make_parser(COMMANDS, "tfdecouple")
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    commands.choices["export"] = import_export().make_export_parser("tfdecouple export")
    paths = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "RUN": shtab.DIRECTORY}
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in paths:
                action.complete = paths[action.metavar]
    print(shtab.complete(parser, options.shell))
    return 0
