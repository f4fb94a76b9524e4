"""`python -m tfdecouple reconstruct`: shows images beside their reconstructions from the codes."""

from __future__ import annotations

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Declares the options."""
    parser = arguments.add_command(
        commands, "reconstruct", "encode images, decode them again and count those that come back to the last pixel"
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_drawing(parser, 20, "images")


def run(options: argparse.Namespace) -> int:
    """Writes reconstruct.png and reconstruct.json."""
    start_tensorflow()
    from tfdecouple.cli.run_images import draw_images, open_run, save_picture
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_reconstruction_grid, reconstruct_images

    opened = open_run(options)
    images = draw_images(opened, options)
    count = len(images.pixels)
    with Counter("reconstructing", count) as counter:
        decoded, exact = reconstruct_images(opened.model, images.pixels, counter, images.labels)
    picture = draw_reconstruction_grid(images.pixels, decoded, exact, f"\n{images.note} {opened.note()}")
    facts = {**images.facts, "seed": options.seed, "count": count, "exact": exact}
    summary = f"{exact} of {count} images come back to the last pixel"
    save_picture(opened, options, "reconstruct", picture, summary, **facts)
    return 0
