"""`python -m tfdecouple edit`: adds multiples of a direction to z of images, and decodes with unchanged v."""

import argparse
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.errors import make_printable
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `edit` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "edit",
        "change images along a direction in z",
        "v of each image stays as it is. The command `directions` finds the directions of a run.",
    )
    arguments.add_run(parser, required=True)
    parser.add_argument("--direction", required=True, metavar="NAME", help="name of the direction")
    text = "how the direction was found: means, classifier or decoded; default the first that the run has"
    parser.add_argument("--method", choices=("means", "classifier", "decoded"), metavar="NAME", help=text)
    arguments.add_amounts(parser)
    arguments.add_size(parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="images of any size")


def run(options: argparse.Namespace) -> int:
    """Runs the command `edit`: writes edit.png, edit.json and, with --size own, changed photographs; returns 0."""
    amounts = options.amounts
    arguments.require_image_files(options)
    start_tensorflow()
    from tfdecouple.cli.run_images import OwnSizeResults, read_image_files, save_picture
    from tfdecouple.runs.opened_run import Run, load_directions
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_edit_grid

    opened = Run.open(options.run, z_for="edit")
    # For a run without directions, `opened.directions()` is None, and `load_directions` raises an error with advice.
    directions = opened.directions() or load_directions(options.run)
    direction = directions.find(options.direction, options.method)
    name = make_printable(direction.name, 100)
    images = read_image_files(opened, options.files)
    results = OwnSizeResults(options, opened.model) if options.size == "own" else None
    note = f"{images.note} {opened.note()}"
    with Counter("editing", len(images.pixels) * len(amounts)) as counter:
        picture = draw_edit_grid(opened.model, images.pixels, {"": direction.vector}, amounts, name, note, counter)
    facts = {**images.facts, "direction": direction.name, "method": direction.method, "amounts": amounts}
    count = len(images.pixels)
    says = f"{count} image{'s' if count > 1 else ''} along {name}, {direction.method}"
    save_picture(opened, options, "edit", picture, says, **facts)
    if results is not None:
        change = arguments.make_file_name(direction.name)
        z, v = opened.model.encode(results.small)[:2]
        assert z is not None
        for amount in filter(None, amounts):
            edited = np.asarray(opened.model.decode(z + np.float32(amount) * direction.vector, v))
            for index, image in enumerate(edited):
                results.save_photograph(index, image, f"{change}{amount:+g}")
    return 0
