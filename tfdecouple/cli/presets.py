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
    """Prints the presets, or all about one with its parameter count, for which alone TensorFlow is imported.

    Raises:
        ConfigError: where there is no such preset.
    """
    if not options.name:
        names = preset_names()
        width = max(map(len, names))
        for name in names:
            print(f"{name:{width}} {load_preset(name).description}")
        return 0
    config = load_preset(options.name)
    start_tensorflow()
    from tfdecouple.networks.plan import count_parameters

    print(f"{config.name} {count_parameters(config.model)['total']:,} parameters  {config.description}")
    # Description and notes are printed as text.
    values = {name: value for name, value in config.to_dict().items() if name not in ("description", "notes")}
    print(f"\n{config.notes}\n\nWhat each option means: {program()} explain\n")
    print(json.dumps(values, indent=2))
    return 0
