"""`python -m tfdecouple interpolate`: between two images, z and v apart (paper Figure 5)."""

from __future__ import annotations

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "interpolate",
        "go from one image to another in z and v apart (paper Figure 5)",
        "z changes downwards, v to the right; the two images are in the upper left and lower right corners.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_pairs(parser)
    arguments.add_drawing(parser, 1, "pairs, one below another")
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="images in a row and in a column (default 6)")


def run(options: argparse.Namespace) -> int:
    """Writes interpolate.png and interpolate.json.

    Raises:
        UserError: for impossible arguments, a run without weights, or missing or unreadable images.
    """
    arguments.check(options)
    arguments.at_least(options, "steps", 2)
    start_tensorflow()
    from tfdecouple.cli.opening import image_pairs, labels_of_pair, open_run
    from tfdecouple.cli.output import save_picture
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import interpolation_grid

    opened = open_run(options)
    ((how, (a, b)),) = image_pairs(opened, options, ("across",)).items()
    places = [step / (options.steps - 1) for step in range(options.steps)]
    note = f"\n{a.note} {opened.note()}"
    rows = len(places) if opened.config.model.has_latent else 1
    with Counter("interpolating", len(a.pixels) * rows * len(places)) as counter:
        picture = interpolation_grid(
            opened.model, a.pixels, b.pixels, places, note, counter, labels=labels_of_pair(a, b)
        )
    facts = {"first": a.facts, "second": b.facts, "seed": options.seed, "count": len(a.pixels), "places": places}
    what = "z downwards, v to the right" if opened.config.model.has_latent else "v from left to right, no z"
    says = f"{len(a.pixels)} pair{'s' if len(a.pixels) > 1 else ''} of images, {what}"
    save_picture(opened, options, "interpolate", picture, says, pairing=how, **facts)
    return 0
