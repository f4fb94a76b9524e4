"""The commands that draw pictures of a run, as a table: help, options, and the functions in `drawings` that draw."""

# mypy: disable-error-code="func-returns-value"

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.cli.options import (
    MOST_TEMPERATURE,
    add_choice,
    add_data,
    add_drawing,
    add_pairs,
    add_run,
    add_size,
)
from tfdecouple.errors import UserError
from tfdecouple.runtime.option_types import add_number, make_number_type
from tfdecouple.runtime.process import start_tensorflow
from tfdecouple.runtime.requirements import require_packages

# Default of --strength, from 0 (z of the photograph itself) to 1 (z of the pair's other photograph); chosen by eye.
DEFAULT_STRENGTH = 0.9


@dataclasses.dataclass(frozen=True)
class PictureCommand:
    """A command that opens a run and writes pictures, each with a JSON file of facts.

    Attributes:
        name: the command; the function `draw_NAME` in `drawings` yields its pictures.
        summary: what the command does, for the list of commands.
        details: sentences for the command's help.
        add_options: a function that adds the command's options to its parser.
        needs_z: whether the command refuses models without z.
        needs_plots: whether the command needs Matplotlib.
        check: a function that checks options before TensorFlow starts.
    """

    name: str
    summary: str
    details: str
    add_options: Callable[[argparse.ArgumentParser], Any]
    needs_z: bool = False
    needs_plots: bool = False
    check: Callable[[argparse.Namespace], None] = lambda options: None

    def add_parser(self, commands: Any) -> None:
        """Adds the command and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
        self.add_options(arguments.add_command(commands, self.name, self.summary, self.details))

    def run(self, options: argparse.Namespace) -> int:
        """Runs the command: writes each picture as PNG and its facts as JSON; returns the exit status."""
        if self.needs_plots:
            require_packages("matplotlib", what=f"the command {self.name}")
        self.check(options)
        start_tensorflow()
        from tfdecouple.cli import drawings
        from tfdecouple.cli.run_images import save_picture
        from tfdecouple.runs.opened_run import Run

        opened = Run.open(options.run, z_for=self.name if self.needs_z else "")
        if getattr(options, "reference", None) is not None:
            return drawings.switch_photograph_folder(opened, options)
        for name, picture, summary, facts in getattr(drawings, f"draw_{self.name}")(opened, options):
            save_picture(opened, options, name, picture, summary, **facts)
        return 0


def _check_switch(options: argparse.Namespace) -> None:
    if options.reference is None:
        options.max_side = options.max_side or arguments.MAX_SIDE
        arguments.require_image_pairs(options)
    elif len(options.files) != 1 or options.out is None:
        raise UserError(f"--reference needs one folder of photographs, got {len(options.files)}, and --to OUT")
    elif (options.pairing, options.size) != ("auto", "own"):
        raise UserError("--reference takes neither --pairing nor --size: each photograph is written at its own size")


PICTURE_COMMANDS = [
    PictureCommand(
        "sample",
        "draw new images at several temperatures",
        "The temperature multiplies v: below 1 samples are smoother. A column shares z and the direction of v.",
        lambda parser: [
            add_run(parser),
            add_drawing(parser, 10, "samples at each temperature"),
            parser.add_argument(
                "--temperatures", nargs="+", type=make_number_type(float, 0, MOST_TEMPERATURE), metavar="T",
                default=(0.5, 0.7, 0.8, 0.9, 1.0), help="temperatures (default 0.5 0.7 0.8 0.9 1.0)",
            ),
            parser.add_argument(
                "--labels", nargs="+", metavar="NAME",
                help="draw a row of samples for each of these labels, or for all; needs a model with labels",
            ),
        ],
    ),
    PictureCommand(
        "reconstruct",
        "encode images, decode their codes and count the images that are equal to the last pixel",
        "",
        lambda parser: [
            add_run(parser),
            add_data(parser),
            add_drawing(parser, 20, "images"),
            parser.add_argument(
                "--own-size", action="store_true",
                help="neither crop nor resize the images; write a picture for each (only for the data sets folder and "
                "photographs)",
            ),
        ],
    ),
    PictureCommand(
        "switch",
        "exchange the global codes z of pairs of images (paper Figure 1)",
        f"With your own photographs: {arguments.get_program_name()} switch a.jpg b.jpg, or, for z of one image in a "
        "folder of photographs, switch --reference R.jpg FOLDER --to OUT. Without files, pairs come from the data set; "
        "where it has labels, one picture shows pairs within classes and another pairs across classes.",
        lambda parser: [
            add_run(parser, out=False),
            arguments.add_out(parser, names=("--out", "--to")),
            parser.add_argument(
                "--reference", metavar="R",
                help="decode all photographs of the folder FILE with z of the image R, at their own size, into the "
                "folder --to",
            ),
            add_data(parser),
            add_pairs(parser),
            add_drawing(parser, 10, "pairs"),
            add_size(parser),
            parser.set_defaults(max_side=None),
            add_number(
                parser, "--strength", DEFAULT_STRENGTH,
                "z of a result at its own size: from 0, z of the photograph itself, to 1, z of the other photograph",
                0, 1,
            ),
        ],
        needs_z=True,
        check=_check_switch,
    ),
    PictureCommand(
        "interpolate",
        "go from one image to another in z and v apart (paper Figure 5)",
        "In the picture z changes downwards and v to the right; two corners have the images themselves.",
        lambda parser: [
            add_run(parser),
            add_data(parser),
            add_pairs(parser),
            add_drawing(parser, 1, "pairs, one below another"),
            add_size(parser),
            add_number(parser, "--steps", 6, "images in a row and in a column", 2),
            add_choice(
                parser, "--path", ("lerp", "slerp", "both"),
                "path of v: lerp, a straight line as in the paper; slerp, an arc around the origin; or both",
            ),
        ],
        check=arguments.require_image_pairs,
    ),
    PictureCommand(
        "edit",
        "change images along a direction in z",
        "v of each image does not change. The command `directions` finds the directions of a run.",
        lambda parser: [
            add_run(parser, required=True),
            parser.add_argument("--direction", required=True, metavar="NAME", help="name of the direction"),
            parser.add_argument(
                "--method", choices=("means", "classifier", "decoded"), metavar="NAME",
                help="how the direction was found: means, classifier or decoded; default the first that the run has",
            ),
            arguments.add_amounts(parser),
            add_size(parser),
            parser.add_argument("files", nargs="+", metavar="FILE", help="images of any size"),
        ],
        needs_z=True,
        check=arguments.require_image_files,
    ),
    PictureCommand(
        "neighbours",
        "show samples beside the training images nearest to them",
        "Distances are Euclidean, between pixels and, where the model has z, between z. A model that repeats its "
        "training images gives samples equal to their neighbours.",
        lambda parser: [
            add_run(parser),
            add_data(parser, split="train"),
            add_drawing(parser, 6, "samples"),
            add_number(parser, "--temperature", 0.8, "factor of v", 0, MOST_TEMPERATURE),
            add_number(parser, "--search", 1000, "number of images to search, drawn at random; 0 for all"),
        ],
    ),
    PictureCommand(
        "project",
        "show the global codes z of images in the plane, coloured by label",
        "Images with similar z lie close together.",
        lambda parser: [
            add_run(parser),
            add_data(parser),
            add_drawing(parser, 1000, "images"),
            add_choice(parser, "--method", ("pca", "tsne"), "pca, principal components, or tsne, t-SNE"),
        ],
        needs_z=True,
        needs_plots=True,
    ),
]  # fmt: skip
