"""`python -m tfdecouple switch`: exchanges the global codes of pairs of images (paper Figures 1 and 7 to 11)."""

import argparse
import pathlib
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow

_TITLES = {"within": "Switch within a class", "across": "Switch across classes"}
# Default of --strength, from 0 (z of the photograph itself) to 1 (z of the pair's other photograph); chosen by eye.
DEFAULT_STRENGTH = 0.7


def add_parser(commands: Any) -> None:
    """Adds the command `switch` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "switch",
        "exchange the global codes z of pairs of images (paper Figure 1)",
        f"With your own photographs: {arguments.get_program_name()} switch a.jpg b.jpg. Without files, pairs come from "
        "the data set; where it has labels, one picture shows pairs within classes and another pairs across classes. "
        "With the bundled weights, colours and light follow z only in the scenes of their six training photographs.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_pairs(parser)
    arguments.add_drawing(parser, 10, "pairs")
    arguments.add_size(parser)
    text = "z of a result at its own size: from 0, z of the photograph itself, to 1, z of the other photograph"
    arguments.add_number(parser, "--strength", DEFAULT_STRENGTH, text, 0, 1)


def run(options: argparse.Namespace) -> int:
    """Runs the command `switch`: writes a picture per pairing, and the user's images with exchanged z; returns 0."""
    arguments.require_image_pairs(options)
    start_tensorflow()
    from tfdecouple.cli.run_images import OwnSizeResults, choose_pairs, get_pair_labels, save_picture
    from tfdecouple.model.interpolation import interpolate_codes
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_switch_grid

    opened = Run.open(options.run, z_for="switch")
    results = OwnSizeResults(options, opened.model) if options.files and options.size == "own" else None
    for how, (a, b) in choose_pairs(opened, options, ("within", "across")).items():
        title, labels = _TITLES.get(how, "Switch"), get_pair_labels(a, b)
        note = f"\n{a.note} {opened.note()}"
        with Counter("switching", 2 * len(a.pixels)) as counter:
            picture = draw_switch_grid(
                opened.model, a.pixels, b.pixels, what=title, note=note, on_images=counter, labels=labels
            )
        facts = {"first": a.facts, "second": b.facts, "seed": options.seed, "count": len(a.pixels)}
        facts |= {"strength": options.strength} if results else {}
        says = f"{title.lower()}, {len(a.pixels)} pair{'s' if len(a.pixels) > 1 else ''}"
        save_picture(opened, options, f"switch-{how}", picture, says, pairing=how, **facts)
    if results is not None:
        first, second = (opened.model.encode(small) for small in (results.small[::2], results.small[1::2]))
        for side, own, other in ((0, first, second), (1, second, first)):
            z = interpolate_codes(own.z, other.z, [options.strength])[:, 0]
            for pair, image in enumerate(np.asarray(opened.model.decode(z, own.v))):
                other_path = options.files[2 * pair + 1 - side]
                results.save_photograph(2 * pair + side, image, f"z-of-{pathlib.PurePath(other_path).stem}")
    return 0
