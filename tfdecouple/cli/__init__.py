"""The command line: `python -m tfdecouple COMMAND`, and `python train.py`, which runs the command `train`."""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tfdecouple import __version__
from tfdecouple.cli.command_table import COMMANDS
from tfdecouple.cli.options import Parser, get_program_name
from tfdecouple.errors import UserError, nearest
from tfdecouple.runtime.process import get_arguments, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program `python -m tfdecouple` with `arguments`, by default the command line's; returns its status."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed[:1] == ["help"]:
        typed = [*typed[1:], "--help"]
    if typed[:1] == ["export"]:
        return int(import_export().main(typed[1:], f"{get_program_name()} export"))
    return run_program(lambda: run_command(get_arguments(typed)))


def run_command(arguments: Sequence[str]) -> int:
    """Runs the command `arguments[0]`, or prints the help; returns the status; UserError for an unknown command."""
    name = arguments[0] if arguments else ""
    if name and not name.startswith("-") and name not in COMMANDS:
        hint = nearest(name, [*COMMANDS, "export"])
        raise UserError(f"there is no command {name!r}{hint} ({get_program_name()} --help lists them)")
    parser = make_parser([name] if name in COMMANDS else [*COMMANDS])
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return COMMANDS[options.command].run(options)


def make_parser(names: Sequence[str], program: str = "") -> argparse.ArgumentParser:
    """Returns the parser of `program`, by default as the user called it, with the commands `names`."""
    parser = Parser(
        prog=program or get_program_name(),
        description="Trains and uses models that encode an image into a global code z (the image as a whole) and a "
        "local code v (all its detail). `python -m tfdecouple help COMMAND` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"tfdecouple {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in names:
        COMMANDS[name].add_parser(commands)
    commands.add_parser("export", help="write a run for other programs: python -m export")
    return parser


def import_export() -> Any:
    """Imports and returns `export.cli`, the module of `python -m export`, from the folder of package `tfdecouple`."""
    # An earlier folder in `sys.path` may have another package `export`, which would be imported instead.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    return importlib.import_module("export.cli")
