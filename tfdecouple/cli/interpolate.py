"""`python -m tfdecouple interpolate`: interpolates z and v between two images, each separately (paper Figure 5)."""

import argparse
import pathlib
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `interpolate` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "interpolate",
        "go from one image to another in z and v apart (paper Figure 5)",
        "In the picture z changes downwards and v to the right; two corners have the images themselves.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_pairs(parser)
    arguments.add_drawing(parser, 1, "pairs, one below another")
    arguments.add_size(parser)
    arguments.add_number(parser, "--steps", 6, "images in a row and in a column", 2)
    text = "path of v: lerp, a straight line as in the paper; slerp, an arc around the origin; or both"
    arguments.add_choice(parser, "--path", ("lerp", "slerp", "both"), text)


def run(options: argparse.Namespace) -> int:
    """Runs the command `interpolate`: writes interpolate.png, .json, and the user's photographs, changed; returns 0.

    The file A-z-X-of-B is photograph A with v of A, and z at the fraction X of the way from z of A to z of B. In these
    files, at full size, v is not interpolated, because each photograph keeps its own fine detail.
    """
    arguments.require_image_pairs(options)
    start_tensorflow()
    from tfdecouple.cli.run_images import OwnSizeResults, choose_pairs, get_pair_labels, save_picture
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_interpolation_grid, interpolate_pairs

    opened = Run.open(options.run)
    wants_own_size = options.files and options.size == "own" and opened.config.model.has_latent
    results = OwnSizeResults(options, opened.model) if wants_own_size else None
    ((how, (a, b)),) = choose_pairs(opened, options, ("across",)).items()
    places = [step / (options.steps - 1) for step in range(options.steps)]
    paths = ("lerp", "slerp") if options.path == "both" else (options.path,)
    rows = len(places) if opened.config.model.has_latent else 1
    with Counter("interpolating", len(a.pixels) * len(paths) * rows * len(places)) as counter:
        of_pair = get_pair_labels(a, b)
        tiles = interpolate_pairs(opened.model, a.pixels, b.pixels, places, paths, counter, of_pair)
    picture = draw_interpolation_grid(tiles, places, paths, f"\n{a.note} {opened.note()}")
    facts = {"first": a.facts, "second": b.facts, "seed": options.seed, "count": len(a.pixels), "places": places}
    facts["path"] = options.path
    what = "z downwards, v to the right" if opened.config.model.has_latent else "v from left to right, no z"
    says = f"{len(a.pixels)} pair{'s' if len(a.pixels) > 1 else ''} of images, {what}"
    save_picture(opened, options, "interpolate", picture, says, pairing=how, **facts)
    if results is not None:
        made = np.asarray(opened.model.interpolate(results.small[::2], results.small[1::2], places, [0, 1]))
        names = [pathlib.PurePath(path).stem for path in options.files]
        for pair, images in enumerate(made):
            for step, place in enumerate(places[1:], 1):
                results.save_photograph(2 * pair, images[step, 0], f"z-{place:.2g}-of-{names[2 * pair + 1]}")
                results.save_photograph(2 * pair + 1, images[-1 - step, 1], f"z-{place:.2g}-of-{names[2 * pair]}")
    return 0
