"""Options that several commands share: functions that add them to a parser, and checks of their values."""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tfdecouple.data.sources import list_source_kinds
from tfdecouple.errors import DataError, UserError, nearest
from tfdecouple.runs.pretrained import DEFAULT, HUB
from tfdecouple.runtime.option_types import add_number, make_number_type

SPLITS = ("train", "validation", "test")
# Largest value of --temperature and --temperatures, the factors by which v is multiplied.
MOST_TEMPERATURE = 1000
RUN_HELP = f"run folder, also one in training; the bundled weights, {DEFAULT}; or weights on the Hub, {HUB}OWNER/NAME"
# Largest value of --max-side, in pixels; every supported image format can store sides of this length.
_LONGEST_SIDE = 16_383
# Default of --max-side, in pixels; a folder of photographs with --reference has no limit by default.
MAX_SIDE = 2048
# Largest value of --count, the number of images in a picture.
MOST_IN_A_PICTURE = 100_000
# The list --amounts has at most MOST_AMOUNTS multiples of a direction in z, from -MOST_AMOUNT to MOST_AMOUNT.
MOST_AMOUNTS, MOST_AMOUNT = 50, 1000.0
DEFAULT_AMOUNTS = "-1,-0.5,0,0.5,1"


def get_program_name() -> str:
    """Returns the command by which the user called the program: `tfdecouple`, or `python -m tfdecouple`."""
    return "tfdecouple" if pathlib.PurePath(sys.argv[0]).stem == "tfdecouple" else "python -m tfdecouple"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help has the program's name as the user wrote it, and whose errors are UserErrors."""

    def format_help(self) -> str:
        """Returns the help text with the program's name as the user wrote it."""
        return super().format_help().replace("python -m tfdecouple", get_program_name())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments as argparse does, but calls `error` for unknown ones: in a command's parser, its own."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = nearest(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Raises UserError with the `message` of argparse, instead of printing the usage and ending the program."""
        # Messages of `option_types`, such as "is 0; it must be at least 1", make a sentence after the option's name.
        value = re.fullmatch(r"argument (\S+): (is .*)", message, re.DOTALL)
        raise UserError(f"{value[1]} {value[2]}" if value else f"{message}; {self.prog} --help lists the options")


def add_command(commands: Any, name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Adds the parser of the command `name` to `commands`, argparse's sub-parsers, and returns the parser.

    `summary`, without a full stop, stands in the list of commands; `details` are sentences for the command's help.
    """
    description = f"{summary[0].upper()}{summary[1:]}.{details and f' {details}'}"
    return commands.add_parser(name, help=summary, description=description)


def add_run(parser: argparse.ArgumentParser, *, required: bool = False, out: bool = True) -> None:
    """Adds --run to a parser, and --out if `out`; unless `required`, the default of --run is the bundled weights."""
    if required:
        parser.add_argument("--run", required=True, metavar="RUN", help=RUN_HELP)
    else:
        parser.add_argument("--run", default=DEFAULT, metavar="RUN", help=f"{RUN_HELP} (default {DEFAULT})")
    if out:
        add_out(parser)


def add_out(parser: argparse.ArgumentParser, what: str = "pictures", names: Sequence[str] = ("--out",)) -> None:
    """Adds the option --out, a folder for results, to a parser; by default the sub-folder `what` of the run folder."""
    text = f"folder for the {what}; default RUN/{what}, or ./{what} where RUN is no folder"
    parser.add_argument(*names, metavar="DIR", type=pathlib.Path, help=text)


def add_drawing(parser: argparse.ArgumentParser, count: int, what: str) -> None:
    """Adds --seed and --count to a parser; --count counts `what`, such as "samples", and has the default `count`."""
    add_number(parser, "--count", count, f"number of {what}", 1, MOST_IN_A_PICTURE)
    add_number(parser, "--seed", 0, "seed of all draws")


def add_choice(parser: argparse.ArgumentParser, name: str, values: Sequence[str], text: str) -> None:
    """Adds the option `name` with the help `text` to a parser; its value is one of `values`, by default the first."""
    text = f"{text} (default {values[0]})"
    parser.add_argument(name, choices=values, default=values[0], metavar="NAME", help=text)


def add_data(parser: argparse.ArgumentParser, split: str = "test", splits: Sequence[str] = SPLITS) -> None:
    """Adds to a parser the options that choose images: --split (default `split`), --data, --data-dir, --download."""
    text = f"part of the data: {', '.join(splits)} (default {split})"
    parser.add_argument("--split", choices=splits, default=split, metavar="NAME", help=text)
    parser.add_argument("--data", metavar="SOURCE", help=f"data set: {list_source_kinds()}; default that of the run")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of prepared TFDS data sets; default that of the run")
    parser.add_argument("--download", action="store_true", help="download and prepare the TFDS data set if missing")


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Adds to a parser the argument FILE, for image files in pairs, and --pairing, how to pair a data set's images."""
    text = "pairs of your own images, of any size, instead of the data set's: a.png b.png [c.png d.png ...]"
    parser.add_argument("files", nargs="*", metavar="FILE", help=text)
    text = "pairs of the data set: within a class, across classes or any; auto: within and across if there are classes"
    add_choice(parser, "--pairing", ("auto", "within", "across", "any"), text)


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds the options --size and --max-side, for results at a photograph's own size, to a parser."""
    text = (
        "own: also write each result at your photograph's own size, where a guided filter repeats the change of "
        "colours that the model made at its size; model: only the picture at the model's size, whose pixels are exact"
    )
    add_choice(parser, "--size", ("own", "model"), text)
    text = "shrink larger photographs until both sides have at most N pixels"
    add_number(parser, "--max-side", MAX_SIDE, text, 1, _LONGEST_SIDE)


def require_image_files(options: argparse.Namespace) -> None:
    """Raises DataError if one of the user's image files is missing; commands check this before TensorFlow starts."""
    for path in options.files:
        if not pathlib.Path(path).exists():
            raise DataError(f"there is no image file {path}; give the paths of image files")


def require_image_pairs(options: argparse.Namespace) -> None:
    """Raises UserError if the number of image files is odd, one is missing, or the user also gives --pairing."""
    if len(options.files) % 2:
        raise UserError(f"{options.command} got {len(options.files)} images; it takes pairs, an even number")
    if options.files and options.pairing != "auto":
        raise UserError(f"--pairing {options.pairing} is for images of a data set: own images have no labels")
    require_image_files(options)


def add_amounts(parser: argparse.ArgumentParser) -> None:
    """Adds the option --amounts, multiples of a direction in z, to a parser."""
    text = (
        "multiples of the direction that are added to z, in standard deviations of its property over images; 0 gives "
    )
    text += f"the image itself (default --amounts={DEFAULT_AMOUNTS})"
    parser.add_argument("--amounts", type=parse_amounts, default=DEFAULT_AMOUNTS, metavar="A,B,...", help=text)


def parse_amounts(text: str) -> list[float]:
    """Converts the text of --amounts, "A,B,...", to a list of floats; raises UserError for more than `MOST_AMOUNTS`."""
    amounts = [make_number_type(float, -MOST_AMOUNT, MOST_AMOUNT)(part) for part in text.split(",")]
    if len(amounts) > MOST_AMOUNTS:
        raise UserError(f"--amounts has {len(amounts)} numbers; a picture shows at most {MOST_AMOUNTS}")
    return amounts


def make_file_name(name: str) -> str:
    """Returns `name` as part of a file's name: its first 80 characters, with `_` for all but letters, digits and `_.-`.

    >>> make_file_name("a/b c")
    'a_b_c'
    """
    return re.sub(r"[^\w.-]", "_", name)[:80]
