"""Command-line options whose values are numbers in a range; other values raise an error of one line."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from tfdecouple.errors import one_line


def make_number_type(kind: type[int] | type[float], least: float = 0, most: float = 2**31 - 1) -> Callable[[str], Any]:
    """Returns a function for argparse's `type`: text to int or float in a range, or ArgumentTypeError."""
    numeral = "a whole number" if kind is int else "a finite number"

    def convert(text: str) -> Any:
        try:
            # `isascii`, because int() and float() also accept digits of other alphabets, such as full-width ones.
            value: float = kind(text) if text.isascii() else math.nan
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
    """Adds an option for a number from `least` to `most`, a float if `default` is one; the help ends with `default`."""
    kind = make_number_type(float if isinstance(default, float) else int, least, most)
    help_text = text if default is None else f"{text} (default {default:g})"
    metavar = "X" if isinstance(default, float) else "N"
    parser.add_argument(name, type=kind, default=default, metavar=metavar, help=help_text)
