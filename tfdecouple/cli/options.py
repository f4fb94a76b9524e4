"""Arguments that the commands about a run share."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from typing import Any

from tfdecouple.data.sources import kinds_listed
from tfdecouple.errors import UserError
from tfdecouple.runs.pretrained import DEFAULT, HUB
from tfdecouple.runtime.process import at_least

MOST_IN_A_PICTURE = 100_000
# Of the steps along a direction.
MOST_AMOUNTS, MOST_AMOUNT = 50, 1000.0


def program() -> str:
    """Returns how the user called the commands: `tfdecouple`, or `python -m tfdecouple`."""
    return "tfdecouple" if pathlib.PurePath(sys.argv[0]).stem == "tfdecouple" else "python -m tfdecouple"


class Parser(argparse.ArgumentParser):
    """A parser whose help names the commands as the user called them."""

    def format_help(self) -> str:
        """Returns the help."""
        return super().format_help().replace("python -m tfdecouple", program())


def command(commands: Any, name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: what `add_subparsers` returned.
        name: of the command.
        summary: one line for the list of commands, without a full stop.
        details: what its help says besides.
    """
    description = f"{summary[0].upper()}{summary[1:]}.{details and f' {details}'}"
    return commands.add_parser(name, help=summary, description=description)


RUN_HELP = f"run folder; it may still be training. Or weights that were trained already: {DEFAULT}, or {HUB}OWNER/NAME"


def add_run(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Adds --run and --out.

    Args:
        parser: of the command.
        required: whether the user must name a run; otherwise the weights that come along are taken.
    """
    add_run_alone(parser, required=required)
    add_out(parser)


def add_run_alone(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Adds --run."""
    if required:
        parser.add_argument("--run", required=True, metavar="RUN", help=RUN_HELP)
    else:
        parser.add_argument("--run", default=DEFAULT, metavar="RUN", help=f"{RUN_HELP} (default {DEFAULT})")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds --out."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=pathlib.Path,
        help="folder for the pictures; default RUN/pictures, or ./pictures where RUN is no folder",
    )


def add_drawing(parser: argparse.ArgumentParser, count: int, what: str) -> None:
    """Adds --count and --seed."""
    parser.add_argument("--count", type=int, default=count, metavar="N", help=f"{what} (default {count})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random (default 0)")


def add_data(parser: argparse.ArgumentParser, split: str = "test", splits: str = "train, validation or test") -> None:
    """Adds --split, --data, --data-dir and --download."""
    parser.add_argument("--split", default=split, metavar="NAME", help=f"{splits} (default {split})")
    parser.add_argument("--data", metavar="SOURCE", help=f"{kinds_listed()}; default the run's")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of prepared TFDS data sets; default the run's")
    parser.add_argument("--download", action="store_true", help="download and prepare the TFDS data set if missing")


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Adds image files, --pairs and --pairing."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="own images: the same as --pairs")
    parser.add_argument(
        "--pairs",
        nargs="+",
        metavar="FILE",
        help="own images of any size, two and two, instead of the data set's: a.png b.png [c.png d.png ...]",
    )
    parser.add_argument(
        "--pairing", metavar="HOW", help="within a class, across classes or any; default as the labels allow"
    )


def add_amounts(parser: argparse.ArgumentParser) -> None:
    """Adds --amounts."""
    parser.add_argument(
        "--amounts",
        default="-2,-1,0,1,2",
        metavar="A,B,...",
        help="steps along the direction, in its own length; 0 is the image itself (default --amounts=-2,-1,0,1,2)",
    )


def amounts(options: argparse.Namespace) -> list[float]:
    """Returns the numbers of --amounts.

    Raises:
        UserError: where it has what is no finite number, or more than fit into a row.
    """
    found = []
    for text in options.amounts.split(","):
        try:
            found.append(float(text))
        except ValueError:
            found.append(math.nan)
        if not abs(found[-1]) <= MOST_AMOUNT:
            raise UserError(
                f"--amounts has {text.strip()!r}; each must be a number up to {MOST_AMOUNT:g}, with commas between them"
            )
    if len(found) > MOST_AMOUNTS:
        raise UserError(f"--amounts has {len(found)} numbers; a picture shows at most {MOST_AMOUNTS}")
    return found


def check(options: argparse.Namespace) -> None:
    """Refuses impossible values of the shared arguments.

    Raises:
        UserError: naming the argument and its value.
    """
    at_least(options, "count", 1)
    if getattr(options, "count", 0) > MOST_IN_A_PICTURE:
        raise UserError(f"--count is {options.count}; a picture shows at most {MOST_IN_A_PICTURE:,}")
    at_least(options, "seed", 0)
    if getattr(options, "seed", 0) >= 2**31:
        raise UserError(f"--seed is {options.seed}; it must be below 2**31")
    pairs = getattr(options, "pairs", None)
    if pairs is None and hasattr(options, "pairs") and options.files:
        pairs = options.pairs = options.files
    elif pairs and options.files:
        raise UserError("images are given twice, with --pairs and without it; leave --pairs out")
    if pairs is not None and len(pairs) % 2:
        raise UserError(f"--pairs got {len(pairs)} images; it takes them two and two, an even number")
    pairing = getattr(options, "pairing", None)
    if pairing not in (None, "within", "across", "any"):
        raise UserError(f"--pairing is {pairing!r}; it must be within, across or any")
    if pairing and pairs:
        raise UserError(f"--pairing {pairing} and --pairs exclude each other: own images have no labels")
