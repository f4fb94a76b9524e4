"""`python -m tfdecouple presets`: what can be trained."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tfdecouple.cli.options import program
from tfdecouple.config import load_preset, preset_names
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = commands.add_parser("presets", help="list the presets", description="Lists the presets.")
    parser.add_argument("name", nargs="?", help="say all about one preset")


def run(options: argparse.Namespace) -> int:
    """Prints the presets with their parameter counts, or all about one.

    Raises:
        ConfigError: where there is no such preset.
    """
    start_tensorflow()
    from tfdecouple.networks.plan import count_parameters

    # What the JSON need not say again.
    told = ("description", "notes")
    names = [options.name] if options.name else preset_names()
    width = max(map(len, names))
    for name in names:
        config = load_preset(name)
        print(f"{name:{width}} {count_parameters(config.model)['total']:>12,} parameters  {config.description}")
        if options.name:
            values = {name: value for name, value in config.to_dict().items() if name not in told}
            print(f"\n{config.notes}\n\nWhat each option means: {program()} explain\n")
            print(json.dumps(values, indent=2))
    return 0
