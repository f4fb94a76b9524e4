"""Types of command line options: they turn the text of an option into a value, or refuse the text in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

from tfdecouple.errors import one_line


def make_number_type(kind: type[int] | type[float], least: float = 0, most: float = 2**31 - 1) -> Callable[[str], Any]:
    """Returns the argparse type of an option whose value is a number from `least` to `most`, a whole one for `int`."""
    numeral = "a whole number" if kind is int else "a finite number"

    def convert(text: str) -> Any:
        try:
            value: float = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            bound = f"at least {least:,}" if value < least else f"at most {most:,}" if value > most else numeral
            raise argparse.ArgumentTypeError(f"is {one_line(text, 60)}; it must be {bound}")
        return value

    return convert


def add_number(
    parser: Any, name: str, default: float | None, text: str, least: float = 0, most: float = 2**31 - 1
) -> None:
    """Adds an option to a parser; its value is a number from `least` to `most`, whole unless the default is a float.

    Args:
        parser: the parser of the command, or a group of its options.
        name: the name of the option, for example "--count".
        default: the default value, which the help names; None if `text` explains the default.
        text: the help text.
        least: the smallest value.
        most: the largest value.
    """
    kind = make_number_type(float if isinstance(default, float) else int, least, most)
    help_text = text if default is None else f"{text} (default {default:g})"
    metavar = "X" if isinstance(default, float) else "N"
    parser.add_argument(name, type=kind, default=default, metavar=metavar, help=help_text)


def add_choice(parser: Any, name: str, values: Sequence[str], text: str) -> None:
    """Adds an option to a parser; its value is one of `values`, and the first of them is the default."""

    def convert(value: str) -> str:
        if value not in values:
            listed = f"{', '.join(values[:-1])} or {values[-1]}"
            raise argparse.ArgumentTypeError(f"is {one_line(repr(value), 60)}; it must be {listed}")
        return value

    parser.add_argument(name, type=convert, default=values[0], metavar="NAME", help=f"{text} (default {values[0]})")
