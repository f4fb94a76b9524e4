"""The parser of command lines, functions that make options for it, and checks of options."""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tfdecouple.errors import DataError, UserError, nearest
from tfdecouple.runtime.option_types import add_number
from tfdecouple.runtime.requirements import require_packages

# A function that adds an option, or a group of options, to a parser or group of argparse.
AddOption = Callable[[Any], Any]


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
        # Messages of `make_number_type`, such as "is 0; it must be at least 1", follow the option's name.
        value = re.fullmatch(r"argument (\S+): (is .*)", message, re.DOTALL)
        if lacking := re.fullmatch(r"argument (\S+): expected one argument", message):
            option = lacking[1].rpartition("/")[2]
            raise UserError(f"{option} needs a value; write {option}=VALUE if the value begins with -")
        raise UserError(f"{value[1]} {value[2]}" if value else f"{message}; {self.prog} --help lists the options")


def option(usage: str, text: str, **settings: Any) -> AddOption:
    """Returns an option or argument with the help `text`; `usage` is like "--labels NAME ..." or "--out/--to DIR"."""
    names, _, metavar = usage.partition(" ")
    if metavar.endswith(" ..."):
        settings["nargs"] = "+"
    if metavar:
        settings["metavar"] = metavar.removesuffix(" ...")
    return lambda parser: parser.add_argument(*names.split("/"), help=text, **settings)


def flag(name: str, text: str) -> AddOption:
    """Returns an option without a value, with the help `text`."""
    return option(name, text, action="store_true")


def number(name: str, default: float | None, text: str, least: float = 0, most: float = 2**31 - 1) -> AddOption:
    """Returns an option for a number from `least` to `most`, a float if `default` is one."""
    return lambda parser: add_number(parser, name, default, text, least, most)


def choice(name: str, values: Sequence[str], text: str) -> AddOption:
    """Returns an option whose value is one of `values`, by default the first."""
    return option(f"{name} NAME", f"{text} (default {values[0]})", choices=values, default=values[0])


def group(title: str, *options: AddOption) -> AddOption:
    """Returns a group of options, which the help lists under `title`; with the title "", at most one may be given."""

    def add(parser: Any) -> None:
        made = parser.add_argument_group(title) if title else parser.add_mutually_exclusive_group()
        for add_option in options:
            add_option(made)

    return add


def require_image_files(options: argparse.Namespace) -> None:
    """Raises DataError if one of the user's image files is missing; commands check this before TensorFlow starts."""
    for path in options.files:
        if not pathlib.Path(path).exists():
            raise DataError(f"there is no image file {path}; give the paths of image files")


def require_image_pairs(options: argparse.Namespace) -> None:
    """Raises UserError if the number of image files is odd, one is missing, or others are for a data set."""
    if len(options.files) % 2:
        raise UserError(f"{options.command} got {len(options.files)} images; it takes pairs, an even number")
    if options.files:
        _refuse_data_options(options)
    require_image_files(options)


def _refuse_data_options(options: argparse.Namespace) -> None:
    for name in ("pairing", "count", "split", "data", "data_dir", "download"):
        if getattr(options, name) != options.get_default(name):
            option = f"--{name.replace('_', '-')}"
            got = f"the command got {options.files[0]}; leave {option} out"
            raise UserError(f"{option} is for images of a data set, and {got}")


def require_switch(options: argparse.Namespace) -> None:
    """Raises UserError for wrong pairs of `switch`, or for options that do not fit --reference."""
    if options.reference is None:
        require_image_pairs(options)
    elif len(options.files) != 1 or options.out is None:
        raise UserError(f"--reference needs one folder of photographs, got {len(options.files)}, and --to OUT")
    elif (options.pairing, options.size) != ("auto", "own"):
        raise UserError("--reference takes neither --pairing nor --size: each photograph is written at its own size")
    else:
        _refuse_data_options(options)


def require_encode_arguments(options: argparse.Namespace) -> None:
    """Raises UserError if the command `encode` lacks --run, or a package for --format; --verify needs neither."""
    if options.run is None and not options.verify:
        raise UserError("encode needs --run RUN, the run folder whose model encodes")
    if options.format == "parquet" and not options.verify:
        require_packages("pyarrow", what="--format parquet")


def make_file_name(name: str) -> str:
    """Returns `name` as part of a file's name: its first 80 characters, with `_` for all but letters, digits and `_.-`.

    >>> make_file_name("a/b c")
    'a_b_c'
    """
    return re.sub(r"[^\w.-]", "_", name)[:80]
