"""`python -m tfdecouple import-wolf`: converts a checkpoint of wolf, the authors' PyTorch code, to a run folder."""

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.option_types import make_number_type
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `import-wolf` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands, "import-wolf", "turn a checkpoint of the paper's PyTorch code (wolf) into a run folder"
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the JSON config of the PyTorch code")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its state dict, .npz or .pt (needs torch)")
    text, sides = "shape of the images, such as 32 32 3", ("HEIGHT", "WIDTH", "CHANNELS")
    parser.add_argument(
        "--image-shape", required=True, type=make_number_type(int, 1), nargs=3, metavar=sides, help=text
    )
    parser.add_argument(
        "--n-bits", type=make_number_type(int, 1), default=8, metavar="N", help="bits per colour channel (default 8)"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run folder to make")


def run(options: argparse.Namespace) -> int:
    """Runs the command `import-wolf`: converts a checkpoint of the authors' code to a run folder; returns 0."""
    start_tensorflow()
    from tfdecouple.interop.wolf import import_wolf

    model = import_wolf(
        options.config,
        options.weights,
        image_shape=tuple(options.image_shape),
        n_bits=options.n_bits,
        workdir=options.workdir,
    )
    print(f"{options.workdir}: {model.parameter_count()['total']:,} parameters imported; open it with")
    print(f"  import tfdecouple; model = tfdecouple.load_model({options.workdir!r})")
    return 0
