"""`python -m tfdecouple switch`: exchanges the global codes of pairs of images (paper Figures 1 and 7 to 11)."""

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import start_tensorflow

_TITLES = {"within": "Switch within a class", "across": "Switch across classes"}
# Default of --strength, from 0 (z of the photograph itself) to 1 (z of the pair's other photograph); chosen by eye.
DEFAULT_STRENGTH = 0.9


def add_parser(commands: Any) -> None:
    """Adds the command `switch` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "switch",
        "exchange the global codes z of pairs of images (paper Figure 1)",
        f"With your own photographs: {arguments.get_program_name()} switch a.jpg b.jpg, or, for z of one image in a "
        "folder of photographs, switch --reference R.jpg FOLDER --to OUT. Without files, pairs come from the data set; "
        "where it has labels, one picture shows pairs within classes and another pairs across classes.",
    )
    arguments.add_run(parser, out=False)
    text = "folder for the results; default RUN/pictures, or ./pictures where RUN is no folder"
    parser.add_argument("--out", "--to", metavar="DIR", type=pathlib.Path, help=text)
    text = "decode all photographs of the folder FILE with z of the image R, at their own size, into the folder --to"
    parser.add_argument("--reference", metavar="R", help=text)
    arguments.add_data(parser)
    arguments.add_pairs(parser)
    arguments.add_drawing(parser, 10, "pairs")
    arguments.add_size(parser)
    text = "z of a result at its own size: from 0, z of the photograph itself, to 1, z of the other photograph"
    parser.set_defaults(max_side=None)
    arguments.add_number(parser, "--strength", DEFAULT_STRENGTH, text, 0, 1)


def run(options: argparse.Namespace) -> int:
    """Runs the command `switch`: writes a picture per pairing, and the user's photographs with exchanged z; returns 0.

    The pairing is "within" a label, "across" labels or "any"; for the user's photographs it is called "pairs". With
    --reference, the command writes a folder of photographs, and returns 1 if one of them cannot be read.
    """
    if options.reference is not None:
        return _switch_folder(options)
    options.max_side = options.max_side or arguments.MAX_SIDE
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


def _switch_folder(options: argparse.Namespace) -> int:
    """Writes all photographs of a folder with z of --reference; returns 1 if a photograph cannot be read, else 0."""
    if len(options.files) != 1 or options.out is None:
        raise UserError(f"--reference needs one folder of photographs, got {len(options.files)}, and --to OUT")
    if (options.pairing, options.size) != ("auto", "own"):
        raise UserError("--reference takes neither --pairing nor --size: each photograph is written at its own size")
    start_tensorflow()
    from tfdecouple.cli.run_images import name_unwritable_path
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.visualization.photograph_folder import switch_folder

    model = Run.open(options.run, z_for="switch").model
    limit = {"max_side": options.max_side} if options.max_side else {}
    with name_unwritable_path(options.out):
        result = switch_folder(model, options.reference, options.files[0], options.out, options.strength, **limit)
    for error in result.errors:
        print(f"skipped: {error}", file=sys.stderr)
    print(
        f"{options.out}: {len(result.written)} photographs with z of {options.reference} written, "
        f"{len(result.kept)} there already, {len(result.errors)} skipped"
    )
    return 1 if result.errors else 0
