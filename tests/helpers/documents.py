"""Functions that read the project's Markdown documents, and check the commands in them without running the commands.

The checks call the project's argument parsers, load its presets, and look for the files that a command names.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import importlib
import importlib.util
import io
import itertools
import json
import pathlib
import re
import shlex
import sys
from typing import NamedTuple

import pytest

from helpers.places import ROOT
from tfdecouple import cli
from tfdecouple.cli import train
from tfdecouple.config import Config, load_preset, override

# Paths of the project's Markdown files, without model cards, whose commands run in an export folder.
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "MODEL_CARD.md" and "node_modules" not in path.parts
)


class Block(NamedTuple):
    """A block of code in a Markdown document.

    Attributes:
        language: the word after the opening ```, or "" for an indented block.
        text: the lines of code, without the indentation of an indented block.
        line: the line of the document, counted from 1, on which `text` begins.
    """

    language: str
    text: str
    line: int


def split_code(text: str) -> tuple[list[Block], str]:
    """Returns the code blocks of a Markdown text, and a copy of the text with empty lines in place of the blocks."""
    blocks: list[Block] = []
    prose: list[str] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"(`{3,}|~{3,})\s*([\w+-]*)", line)
        # An indented line after a list item continues the item, so it must not count as a code block.
        last = next((before for before in reversed(prose) if before.strip()), "")
        in_list = re.match(r"\s*([-*]|\d+\.) |  ", last)
        if fence:
            end = next(n for n in range(number + 1, len(lines) + 1) if lines[n].startswith(fence[1]))
            blocks.append(Block(fence[2], "\n".join(lines[number + 1 : end]), number + 2))
            end += 1
        elif line.startswith("    ") and (number == 0 or not lines[number - 1].strip()) and not in_list:
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            blocks.append(Block("", "\n".join(each[4:] for each in lines[number:end]).rstrip(), number + 1))
        else:
            prose.append(line)
            number += 1
            continue
        prose += [""] * (end - number)
        number = end
    return blocks, "\n".join(prose)


def find_inline_code(text: str) -> list[str]:
    """Returns the pieces of code between single backquotes in a Markdown text; code blocks are left out."""
    found = re.findall(r"(?<!`)`([^`]+)`(?!`)", split_code(text)[1])
    return [" ".join(code.split()) for code in found]


def find_links(text: str) -> list[str]:
    """Returns the targets (URLs or paths) of all links and images in a Markdown text, which can contain HTML."""
    prose = re.sub(r"(?<!`)`[^`]+`(?!`)", "`code`", split_code(text)[1])
    return re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", prose) + re.findall(r"(?:href|src)=\"([^\"]+)\"", prose)


def list_anchors(text: str) -> set[str]:
    """Returns the anchors, such as "quick-start", that GitHub gives the headings of a Markdown text."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*$", split_code(text)[1], re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        # GitHub appends -1, -2, ... to the anchors of later headings with the same text.
        anchors.add(next(name for n in itertools.count() if (name := f"{anchor}-{n}" if n else anchor) not in anchors))
    return anchors


def list_commands(block: str) -> list[str]:
    """Returns the command lines in a code block; joins continued lines, and drops explanations after the commands."""
    commands: list[str] = []
    is_continued = False
    for line in block.splitlines():
        if commands and (is_continued or re.match(r"\s+(\[?-|\|)", line)):
            commands[-1] += " " + line.strip()
        elif line.strip():
            commands.append(line.rstrip())
        is_continued = line.rstrip().endswith(("\\", "|"))
        if commands:
            commands[-1] = commands[-1].removesuffix("\\").rstrip()
    return [re.sub(r"\s{3,}(#|[A-Za-z]).*$", "", command) for command in commands]


class CommandError(AssertionError):
    """The assertion error for a command in the documentation that would fail if a user ran it."""


class _Parsed(BaseException):
    """The exception that ends a program as soon as it has parsed its command line; `args[0]` is the parsed options."""


def _require(condition: object, message: str) -> None:
    if not condition:
        raise CommandError(message)


def parse_options(program: object, arguments: list[str]) -> argparse.Namespace:
    """Runs a program until its argparse parser has read the command line, and returns the parsed options.

    Args:
        program: the function `main` of the program, which reads `sys.argv`.
        arguments: the words of the command line after the program.

    Raises:
        CommandError: if the parser refuses the command line.
    """

    def end_after(read):
        def parse_args(parser, args=None, namespace=None):
            raise _Parsed(read(parser, args, namespace))

        return parse_args

    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, end_after(getattr(argparse.ArgumentParser, name)))
        patch.setattr(sys, "argv", ["program", *arguments])
        # Documented commands must write options in full, so argparse must not accept abbreviations.
        patch.setattr(argparse.ArgumentParser, "_get_option_tuples", lambda parser, text: [])
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                program()
        except _Parsed as parsed:
            return parsed.args[0]
        except SystemExit as end:
            if end.code == 0 and {"--help", "-h", "help"} & set(arguments):
                return argparse.Namespace()
    raise CommandError(f"{shlex.join(arguments)}: {errors.getvalue().strip() or 'the program never read it'}")


def _load_main(path: pathlib.Path) -> object:
    """Imports the Python program in the file `path`, and returns the program's function `main`."""
    if path.parent.name == "benchmarks":
        sys.path.insert(0, str(ROOT))
        return importlib.import_module(f"benchmarks.{path.stem}").main
    spec = importlib.util.spec_from_file_location(f"documented_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def _check_train(arguments: list[str], folder: pathlib.Path) -> None:
    options = parse_options(train.main, arguments)
    # With --help the parser ends the program, `options` is empty, and there is no preset to check.
    if hasattr(options, "preset"):
        override(Config() if options.config else load_preset(options.preset), options.set)


def _check_commands(arguments: list[str], folder: pathlib.Path) -> None:
    options = parse_options(cli.main, arguments)
    if getattr(options, "command", None) == "presets" and options.name:
        load_preset(options.name)


def _check_export(arguments: list[str], folder: pathlib.Path) -> None:
    from export.cli import main
    from export.formats import FORMATS

    unknown = set(getattr(parse_options(main, arguments), "format", [])) - set(FORMATS)
    _require(not unknown, f"--format knows no {', '.join(sorted(unknown))}")


def _check_files(arguments: list[str], folder: pathlib.Path) -> None:
    """Raises CommandError if a path among the arguments exists neither in `folder` nor in the repository."""
    for before, argument in itertools.pairwise(["", *arguments]):
        path = argument.partition("::")[0]
        if before in ("-f", "-r") or re.match(r"(examples|docs|benchmarks|tests)/|.*\.py$", path):
            _require((folder / path).exists() or (ROOT / path).exists(), f"there is no {path}")


def _check_python(arguments: list[str], folder: pathlib.Path) -> None:
    # Python's option -P does not change which program runs, so it is dropped.
    first, *rest = [argument for argument in arguments if argument != "-P"]
    modules = {"tfdecouple": _check_commands, "export": _check_export, "pytest": _check_files}
    if first == "-m":
        name, *rest = rest
        if name in modules:
            modules[name](rest, folder)
        else:
            _require(importlib.util.find_spec(name.partition(".")[0]) is not None, f"there is no module {name}")
    elif first == "-c":
        compile(rest[0], "-c", "exec")
    elif first == "train.py":
        _check_train(rest, folder)
    else:
        # A document can name a program in its own folder, or client.py, which exports copy from the folder export/.
        places = (ROOT, folder, ROOT / "benchmarks", ROOT / "export")
        path = next((place / first for place in places if (place / first).is_file()), None)
        _require(path is not None, f"there is no {first}")
        source = path.read_text(encoding="utf-8")
        if "ArgumentParser" in source:
            parse_options(_load_main(path), rest)
        else:
            _check_options(source, rest)


def _check_options(source: str, arguments: list[str]) -> None:
    """Raises CommandError for an option that the text `source` of a program without argparse does not contain."""
    for option in arguments:
        if option.startswith("--") and option != "--":
            # The source of a program for Node.js has the options without dashes, as `name: { type: ... }`.
            pattern = rf"(?<![\w-]){option}(?![\w-])|\b{option[2:]}\b[\"']?\s*:\s*\{{\s*type"
            _require(re.search(pattern, source), f"the program has no option {option}")


def _check_make(arguments: list[str], folder: pathlib.Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for argument in arguments:
        _require("=" in argument or argument in targets, f"make has no target {argument}")
        if argument.startswith("ARGS=") and "train" in arguments:
            _check_train(shlex.split(argument.removeprefix("ARGS=")), folder)


def _check_pip(arguments: list[str], folder: pathlib.Path) -> None:
    _check_files(arguments, folder)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name.replace("_", "-") for name in setup["options.extras_require"]}
    for argument in arguments:
        if named := re.fullmatch(r"(?:\.|tfdecouple)\[([\w,-]+)\]", argument):
            unknown = set(named[1].split(",")) - extras
            _require(not unknown, f"setup.cfg has no extra {', '.join(sorted(unknown))}")


def _check_npm(arguments: list[str], folder: pathlib.Path) -> None:
    _require((folder / "package.json").is_file(), f"{folder} has no package.json")
    if arguments[0] in ("run", "run-script"):
        scripts = json.loads((folder / "package.json").read_text(encoding="utf-8"))["scripts"]
        _require(arguments[1] in scripts, f"package.json has no script {arguments[1]}")
        _check_node([scripts[arguments[1]].split()[1], *arguments[2:]], folder)


def _check_node(arguments: list[str], folder: pathlib.Path) -> None:
    _require((folder / arguments[0]).is_file(), f"there is no {arguments[0]}")
    _check_options((folder / arguments[0]).read_text(encoding="utf-8"), arguments[1:])


def _check_sbatch(arguments: list[str], folder: pathlib.Path) -> None:
    _check_files(arguments, folder)
    if arguments[0].endswith("slurm.sh"):
        _check_train(arguments[1:], folder)


def _check_tfdecouple(arguments: list[str], folder: pathlib.Path) -> None:
    """Raises CommandError for wrong arguments of the program `tfdecouple`; accepts an empty list."""
    if arguments:
        check = {"train": _check_train, "export": _check_export}.get(arguments[0])
        check(arguments[1:], folder) if check else _check_commands(arguments, folder)


def _check_docker(arguments: list[str], folder: pathlib.Path) -> None:
    """Raises CommandError if a file for `docker` is missing, or if `docker run ... tfdecouple ...` would fail."""
    _check_files(arguments, folder)
    if arguments[:1] == ["run"] and "tfdecouple" in arguments:
        _check_tfdecouple(arguments[arguments.index("tfdecouple") + 1 :], folder)


# {program in documented commands: function that checks its arguments, or None if any arguments are accepted}.
PROGRAMS = {
    "tfdecouple": _check_tfdecouple,
    "python": _check_python,
    "python3": _check_python,
    "make": _check_make,
    "pip": _check_pip,
    "npm": _check_npm,
    "node": _check_node,
    "pytest": _check_files,
    "sbatch": _check_sbatch,
    "kubectl": _check_files,
    "bash": _check_files,
    "docker": _check_docker,
    **dict.fromkeys(("curl", "export", "sudo")),
}
# {file name that the documentation uses for a program of the project: path of the program}.
SHORT_NAMES = {
    "throughput.py": "benchmarks/throughput.py",
    "client.py": "client.py",
    "scaling.py": "benchmarks/scaling.py",
}
_ASSIGNMENTS = r"^(?:[A-Z_0-9]+=(?:'[^']*'|\"[^\"]*\"|\S*)\s+)*"


def split_command(line: str) -> list[str]:
    """Returns the words of a documented command, with examples in place of placeholders such as NAME.

    Brackets around optional arguments are removed, as is the word "...". A placeholder of one capital letter becomes 1.
    """
    line = re.sub(r"\[(-[^\[\]]*)\]", r"\1", line)
    line = re.sub(r"\bNAME=VALUE\b", "model.alpha=0.5", line)
    words = [re.sub(r"(?<![^=])[A-Z](?=$)", "1", word) for word in shlex.split(line, comments=True)]
    return ["quickstart" if word == "NAME" else word for word in words if word != "..."]


def is_command(line: str) -> bool:
    """Returns whether a line begins with the name of a program in `PROGRAMS`, possibly after assignments VAR=value."""
    return re.sub(_ASSIGNMENTS, "", line).partition(" ")[0] in PROGRAMS


def check_command(line: str, folder: pathlib.Path = ROOT) -> None:
    """Raises CommandError if a command names an option, preset, file or module that does not exist.

    Args:
        line: the command in the documentation, possibly a pipe or a chain of commands.
        folder: the folder to which paths in the command are relative, if they are not relative to the repository.
    """
    for is_separator, words in itertools.groupby(split_command(line), lambda word: word in ("|", "&&", ";")):
        if is_separator:
            continue
        stage = [*itertools.dropwhile(lambda word: re.match(r"[A-Z_0-9]+=", word), words)]
        _require(stage, f"{line!r} is no command")
        program, *arguments = stage
        _require(program in PROGRAMS, f"{program} is a program that this test does not know; add it to PROGRAMS")
        try:
            if check := PROGRAMS[program]:
                check(arguments, folder)
        except Exception as error:
            raise CommandError(f"{line}\n{error}") from error
