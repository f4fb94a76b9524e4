"""`python -m tfdecouple reconstruct`: images beside what comes back from their codes."""

from __future__ import annotations

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "reconstruct",
        "encode images, decode them again and count those equal to the last pixel",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_drawing(parser, 20, "images")


def run(options: argparse.Namespace) -> int:
    """Writes reconstruct.png and reconstruct.json.

    Raises:
        UserError: for impossible arguments, a run without weights, or missing or unreadable images.
    """
    arguments.check(options)
    start_tensorflow()
    from tfdecouple.cli.output import save_picture
    from tfdecouple.cli.run_images import drawn_images, open_run
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import reconstruction_grid

    opened = open_run(options)
    images = drawn_images(opened, options)
    note = f"\n{images.note} {opened.note()}"
    with Counter("reconstructing", len(images.pixels)) as counter:
        picture, exact = reconstruction_grid(opened.model, images.pixels, note, counter, images.labels)
    facts = {**images.facts, "seed": options.seed, "count": len(images.pixels), "exact": exact}
    says = f"{exact} of {len(images.pixels)} images come back to the last pixel"
    save_picture(opened, options, "reconstruct", picture, says, **facts)
    return 0
