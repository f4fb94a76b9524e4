"""`python -m tfdecouple presets`: lists the presets, named training configs, or shows one."""

import argparse
import json
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.config import load_preset, preset_names
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `presets` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(commands, "presets", "list the presets, or show one")
    parser.add_argument("name", nargs="?", help="show all options of this preset")


def run(options: argparse.Namespace) -> int:
    """Runs the command `presets`: prints all presets' names and descriptions, or one preset's options; returns 0."""
    if not options.name:
        names = preset_names()
        width = max(map(len, names))
        for name in names:
            print(f"{name:{width}} {load_preset(name).description}")
        return 0
    config = load_preset(options.name)
    start_tensorflow()
    from tfdecouple.networks.architecture import count_parameters

    print(f"{config.name} {count_parameters(config.model)['total']:,} parameters  {config.description}")
    values = {name: value for name, value in config.to_dict().items() if name not in ("description", "notes")}
    print(f"\n{config.notes}\n\nWhat each option means: {arguments.get_program_name()} explain\n")
    print(json.dumps(values, indent=2))
    return 0
