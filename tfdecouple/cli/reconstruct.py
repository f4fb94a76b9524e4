"""`python -m tfdecouple reconstruct`: shows images beside their reconstructions from the codes."""

import argparse
import pathlib
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `reconstruct` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "reconstruct",
        "encode images, decode their codes and count the images that are equal to the last pixel",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_drawing(parser, 20, "images")
    text = (
        "neither crop nor resize the images; write a picture for each (only for the data sets folder and photographs)"
    )
    parser.add_argument("--own-size", action="store_true", help=text)


def run(options: argparse.Namespace) -> int:
    """Runs the command `reconstruct`: writes images beside their reconstructions as PNG, facts as JSON; returns 0."""
    start_tensorflow()
    from tfdecouple.cli.run_images import choose_images, save_picture
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_reconstruction_grid, reconstruct_images

    opened = Run.open(options.run)
    if options.own_size:
        return _reconstruct_at_own_size(opened, options)
    images = choose_images(opened, options)
    count = len(images.pixels)
    with Counter("reconstructing", count) as counter:
        decoded, exact = reconstruct_images(opened.model, images.pixels, counter, images.labels)
    picture = draw_reconstruction_grid(images.pixels, decoded, exact, f"\n{images.note} {opened.note()}")
    facts = {**images.facts, "seed": options.seed, "count": count, "exact": exact}
    summary = f"{exact} of {count} images come back to the last pixel"
    save_picture(opened, options, "reconstruct", picture, summary, **facts)
    return 0


def _reconstruct_at_own_size(opened: Any, options: argparse.Namespace) -> int:
    from tfdecouple.cli.run_images import open_data, save_picture
    from tfdecouple.metrics.drawn_images import draw_uncropped_images
    from tfdecouple.visualization.grids import draw_grid

    model = opened.model
    source = open_data(opened, options)
    for name, read in draw_uncropped_images(source, options.split, options.count, options.seed).items():
        image = model.quantizer.quantize_pixels(read()[None]).numpy()
        back = model.decode(*model.encode(image)).numpy()
        lost, (height, width) = int((back != image).sum()), image.shape[1:3]
        says = f"{width} x {height} pixels, {lost} of {image.size:,} subpixels do not come back"
        picture = draw_grid(np.stack([image, back], 1), f"Image and decode(encode(image)): {says}. {opened.note()}")
        facts = {"data": source.title, "split": options.split, "image": name, "height": height, "width": width}
        name = pathlib.PurePath(name).with_suffix("").as_posix().replace("/", "-")
        save_picture(opened, options, f"reconstruct-{name}", picture, says, **facts, lost_subpixels=lost)
    return 0
