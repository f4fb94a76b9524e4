"""`python -m tfdecouple explain`: prints what the options of a training config mean."""

import argparse
import json
import textwrap
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.config import Config, describe_options, list_option_names
from tfdecouple.config.run import make_unknown_option_error


def add_parser(commands: Any) -> None:
    """Adds the command `explain` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "explain",
        "explain the options of a training, which --set changes",
        "The values are the defaults; presets have others.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only options whose names contain this text")


def run(options: argparse.Namespace) -> int:
    """Runs the command `explain`: prints default and meaning of all or of the named config options; returns 0."""
    for name in options.names:
        if not any(name in option for option in list_option_names()):
            raise make_unknown_option_error(name)
    defaults = Config().flatten_options()
    texts = [
        f"{name} = {json.dumps(defaults[name])}\n{textwrap.indent(textwrap.fill(meaning, 96), '    ')}"
        for name, meaning in describe_options().items()
        if not options.names or any(part in name for part in options.names)
    ]
    print("\n\n".join(texts))
    return 0
