"""`python -m tfdecouple sample`: new images at several temperatures."""

from __future__ import annotations

import argparse
import math
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import start_tensorflow

TEMPERATURES = (0.5, 0.7, 0.8, 0.9, 1.0)


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "sample",
        "draw new images at several temperatures",
        "A column shares its z and the direction of its v over all temperatures.",
    )
    arguments.add_run(parser)
    arguments.add_drawing(parser, 10, "samples at each temperature")
    parser.add_argument(
        "--temperatures",
        nargs="+",
        type=float,
        default=list(TEMPERATURES),
        metavar="T",
        help=f"factors of v (default {' '.join(map(str, TEMPERATURES))})",
    )


def run(options: argparse.Namespace) -> int:
    """Writes sample.png and sample.json.

    Raises:
        UserError: for impossible arguments, a run without weights or samples that are not finite.
    """
    arguments.check(options)
    for temperature in options.temperatures:
        if not 0 <= temperature < math.inf:
            raise UserError(f"--temperatures has {temperature}; each must be at least 0 and finite")
    start_tensorflow()
    from tfdecouple.cli.opening import open_run
    from tfdecouple.cli.output import save_picture
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import sample_grid

    opened = open_run(options)
    with Counter("sampling", options.count * len(options.temperatures)) as counter:
        picture = sample_grid(
            opened.model,
            count=options.count,
            seed=options.seed,
            temperatures=options.temperatures,
            note=f"\n{opened.note()}",
            on_images=counter,
        )
    facts = {"seed": options.seed, "count": options.count, "temperatures": options.temperatures}
    listed = ", ".join(map(str, options.temperatures))
    save_picture(opened, options, "sample", picture, f"{options.count} samples at temperature {listed}", **facts)
    return 0
