"""`python -m tfdecouple explain`: what the options of a run mean."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from tfdecouple.config import Config, option_meanings, option_names
from tfdecouple.config.values import unknown


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = commands.add_parser(
        "explain",
        help="say what each option means that --set changes",
        description="Says what each option of a run means, with its default; a preset has its own values.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only options with this in their names")


def run(options: argparse.Namespace) -> int:
    """Prints the options.

    Raises:
        ConfigError: for a name that is in none of them.
    """
    for name in options.names:
        if not any(name in option for option in option_names()):
            raise unknown(name, option_names())
    default = Config().options()
    meanings = option_meanings()
    chosen = [name for name in meanings if not options.names or any(part in name for part in options.names)]
    texts = []
    for name in chosen:
        texts.append(
            f"{name} = {json.dumps(default[name])}\n{textwrap.indent(textwrap.fill(meanings[name], 96), '    ')}"
        )
    print("\n\n".join(texts))
    return 0
