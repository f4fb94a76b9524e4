"""`python -m tfdecouple switch`: images with the global codes of others (paper Figures 1 and 7 to 11)."""

from __future__ import annotations

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow

_WHAT = {
    "within": "Switch within a class",
    "across": "Switch across classes",
    "any": "Switch",
    "pairs": "Switch",
}


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "switch",
        "exchange the global codes z of pairs of images (paper Figure 1)",
        "Where there are labels, pairs within a class and across classes are shown, each in a picture of its own.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_pairs(parser)
    arguments.add_drawing(parser, 10, "pairs")


def run(options: argparse.Namespace) -> int:
    """Writes switch-HOW.png and switch-HOW.json for each pairing: within, across, any, pairs.

    Raises:
        UserError: for impossible arguments, a run without weights or without z, or missing or unreadable images.
    """
    arguments.check(options)
    start_tensorflow()
    from tfdecouple.cli.opening import image_pairs, labels_of_pair, open_run
    from tfdecouple.cli.output import save_picture
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import switch_grid

    opened = open_run(options, z_for="switch")
    for how, (a, b) in image_pairs(opened, options, ("within", "across")).items():
        note = f"\n{a.note} {opened.note()}"
        with Counter("switching", 2 * len(a.pixels)) as counter:
            picture = switch_grid(
                opened.model,
                a.pixels,
                b.pixels,
                what=_WHAT[how],
                note=note,
                on_images=counter,
                labels=labels_of_pair(a, b),
            )
        facts = {"first": a.facts, "second": b.facts, "seed": options.seed, "count": len(a.pixels)}
        says = f"{_WHAT[how].lower()}, {len(a.pixels)} pair{'s' if len(a.pixels) > 1 else ''}"
        save_picture(opened, options, f"switch-{how}", picture, says, pairing=how, **facts)
    return 0
