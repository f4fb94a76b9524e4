"""Checks of documented commands against the project's parsers, presets and files, without running the commands."""

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
from collections.abc import Iterator

import pytest

from helpers.places import ROOT
from tfdecouple.cli import commands as cli
from tfdecouple.config import Config, load_preset, override


class CommandError(AssertionError):
    """The error for a command in the documentation that would fail."""


class _Parsed(BaseException):
    """The exception that ends a program as soon as its command line is parsed, with the parsed options."""

    def __init__(self, options: argparse.Namespace):
        super().__init__()
        self.options = options


def _need(condition: object, message: str) -> None:
    if not condition:
        raise CommandError(message)


def parse(program: object, arguments: list[str], until: tuple[str, ...] = ()) -> argparse.Namespace:
    """Returns the options that a program's own parser reads; the program ends after parsing.

    Args:
        program: the function `main` of the program, which reads `sys.argv`.
        arguments: the words of the command line after the program.
        until: dotted names of functions at which the program ends instead, if it checks options after parsing.

    Raises:
        CommandError: if the parser refuses the command line.
    """
    options = argparse.Namespace()

    def end(*_: object) -> None:
        raise _Parsed(options)

    def ends(read):
        def parse_args(parser, args=None, namespace=None):
            read(parser, args, options)
            return options if until else end()

        return parse_args

    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, ends(getattr(argparse.ArgumentParser, name)))
        for name in until:
            patch.setattr(name, end)
        patch.setattr(sys, "argv", ["program", *arguments])
        # The documentation must write options in full, so abbreviations are turned off.
        patch.setattr(argparse.ArgumentParser, "_get_option_tuples", lambda parser, text: [])
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                program()
        except _Parsed as parsed:
            return parsed.options
        except SystemExit as end:
            if end.code == 0 and {"--help", "-h"} & set(arguments):
                return argparse.Namespace()
    raise CommandError(f"{shlex.join(arguments)}: {errors.getvalue().strip() or 'the program never read it'}")


def main_of(path: pathlib.Path) -> object:
    """Returns the function `main` of a Python file."""
    name = path.stem if path.parent == ROOT else f"documented_{path.parent.name}_{path.stem}"
    if path.parent.name == "benchmarks":
        sys.path.insert(0, str(ROOT))
        return importlib.import_module(f"benchmarks.{path.stem}").main
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def trained_config(arguments: list[str]) -> Config:
    """Returns the config that `train.py` makes from `--preset`, `--set` and `--steps`, or the default for `--help`.

    Raises:
        CommandError: if the parser refuses the arguments.
        UserError: if a preset or option is unknown, or a value is invalid.
    """
    options = parse(cli.train_main, arguments)
    if not hasattr(options, "preset"):
        return Config()
    config = Config() if options.config else load_preset(options.preset)
    steps = vars(options)["training.steps"]
    return override(config, [*options.set, *([] if steps is None else [f"training.steps={steps}"])])


def _train(arguments: list[str], folder: pathlib.Path) -> None:
    trained_config(arguments)


def _tfdecouple(arguments: list[str], folder: pathlib.Path) -> None:
    options = parse(cli.main, arguments)
    if getattr(options, "command", None) == "presets" and options.name:
        load_preset(options.name)


def _export(arguments: list[str], folder: pathlib.Path) -> None:
    from export.cli import main
    from export.formats import FORMATS

    options = parse(main, arguments, ("export.cli.start_tensorflow", "export.cli._verify"))
    unknown = set(getattr(options, "format", [])) - set(FORMATS)
    _need(not unknown, f"--format knows no {', '.join(sorted(unknown))}")


def _pytest(arguments: list[str], folder: pathlib.Path) -> None:
    for argument in arguments:
        if not argument.startswith("-") and ("/" in argument or argument.endswith(".py")):
            _need((ROOT / argument.partition("::")[0]).exists(), f"there is no {argument}")


def _python(arguments: list[str], folder: pathlib.Path) -> None:
    # The option -P only keeps the working folder off Python's path, so it is dropped.
    first, *rest = [argument for argument in arguments if argument != "-P"]
    modules = {"tfdecouple": _tfdecouple, "export": _export, "pytest": _pytest}
    if first == "-m":
        name, *rest = rest
        if name in modules:
            modules[name](rest, folder)
        else:
            _need(importlib.util.find_spec(name.partition(".")[0]) is not None, f"there is no module {name}")
    elif first == "-c":
        compile(rest[0], "-c", "exec")
    elif first == "train.py":
        _train(rest, folder)
    else:
        # A program may be in the document's folder, or in an export folder, whose client.py comes from export/.
        places = (ROOT, folder, ROOT / "benchmarks", ROOT / "export")
        path = next((place / first for place in places if (place / first).is_file()), None)
        _need(path is not None, f"there is no {first}")
        source = path.read_text(encoding="utf-8")
        if "ArgumentParser" in source:
            parse(main_of(path), rest)
        else:
            check_options(source, rest)


def _make(arguments: list[str], folder: pathlib.Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for argument in arguments:
        _need("=" in argument or argument in targets, f"make has no target {argument}")
        if argument.startswith("ARGS=") and "train" in arguments:
            _train(shlex.split(argument.removeprefix("ARGS=")), folder)


def _pip(arguments: list[str], folder: pathlib.Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name.replace("_", "-") for name in setup["options.extras_require"]}
    for before, argument in itertools.pairwise(arguments):
        if before == "-r":
            _need((folder / argument).is_file() or (ROOT / argument).is_file(), f"there is no {argument}")
        named = re.fullmatch(r"(?:\.|tfdecouple)\[([\w,-]+)\]", argument)
        if named:
            unknown = set(named[1].split(",")) - extras
            _need(not unknown, f"setup.cfg has no extra {', '.join(sorted(unknown))}")


def _npm(arguments: list[str], folder: pathlib.Path) -> None:
    _need((folder / "package.json").is_file(), f"{folder} has no package.json")
    if arguments[0] in ("run", "run-script"):
        scripts = json.loads((folder / "package.json").read_text(encoding="utf-8"))["scripts"]
        _need(arguments[1] in scripts, f"package.json has no script {arguments[1]}")
        check_options((folder / scripts[arguments[1]].split()[1]).read_text(encoding="utf-8"), arguments[2:])


def _node(arguments: list[str], folder: pathlib.Path) -> None:
    _need((folder / arguments[0]).is_file(), f"there is no {arguments[0]}")
    check_options((folder / arguments[0]).read_text(encoding="utf-8"), arguments[1:])


def check_options(source: str, arguments: list[str]) -> None:
    """Raises CommandError if an option is not in the source of a program that has no argparse parser."""
    for option in arguments:
        if option.startswith("--") and option != "--":
            known = re.search(rf"(?<![\w-]){option}(?![\w-])", source) or re.search(
                rf"\b{option[2:]}\b[\"']?\s*:\s*\{{\s*type", source
            )
            _need(known, f"the program has no option {option}")


def _file(arguments: list[str], folder: pathlib.Path) -> None:
    """Raises CommandError if an argument of a foreign program is a missing file of the project."""
    for argument in arguments:
        if re.match(r"(examples|docs|benchmarks|tests)/", argument):
            _need((ROOT / argument).exists(), f"there is no {argument}")
    if arguments[0].endswith("slurm.sh"):
        _train(arguments[1:], folder)


def _installed(arguments: list[str], folder: pathlib.Path) -> None:
    """Checks a command `tfdecouple ...`; without arguments it is only the name of the project."""
    programs = {"train": _train, "export": _export}
    if arguments:
        command = programs.get(arguments[0])
        command(arguments[1:], folder) if command else _tfdecouple(arguments, folder)


def _docker(arguments: list[str], folder: pathlib.Path) -> None:
    """Raises CommandError if a Dockerfile is missing or the command inside `docker run ... tfdecouple` is wrong."""
    for before, argument in itertools.pairwise(arguments):
        if before == "-f":
            _need((ROOT / argument).is_file(), f"there is no {argument}")
    if arguments[:1] == ["run"] and "tfdecouple" in arguments:
        _installed(arguments[arguments.index("tfdecouple") + 1 :], folder)


PROGRAMS = {
    "tfdecouple": _installed,
    "python": _python,
    "python3": _python,
    "make": _make,
    "pip": _pip,
    "npm": _npm,
    "node": _node,
    "pytest": _pytest,
    "sbatch": _file,
    "kubectl": _file,
    "bash": _file,
    "docker": _docker,
    "curl": lambda arguments, folder: None,
    "export": lambda arguments, folder: None,
    "sudo": lambda arguments, folder: None,
}
# Programs that the text of the documentation calls by a short name, and their paths.
SHORT = {"throughput.py": "benchmarks/throughput.py", "client.py": "client.py", "scaling.py": "benchmarks/scaling.py"}


def words(line: str) -> list[str]:
    """Returns the words of a documented command, with examples instead of placeholders.

    Brackets around optional arguments and words "..." are removed; a placeholder of one capital letter becomes 1.
    """
    line = re.sub(r"\[(-[^\[\]]*)\]", r"\1", line)
    line = re.sub(r"\bNAME=VALUE\b", "model.alpha=0.5", line)
    found = []
    for word in shlex.split(line, comments=True):
        word = re.sub(r"(?<![^=])[A-Z](?=$)", "1", word)
        found += [] if word == "..." else ["quickstart" if word == "NAME" else word]
    return found


def is_command(line: str) -> bool:
    """Returns whether a line begins with a program in `PROGRAMS`, after assignments of environment variables."""
    first = re.sub(r"^(?:[A-Z_0-9]+=(?:'[^']*'|\"[^\"]*\"|\S*)\s+)*", "", line).partition(" ")[0]
    return first in PROGRAMS


def _stages(found: list[str]) -> Iterator[list[str]]:
    """Yields the words of each command in a pipe or a chain of commands."""
    stage: list[str] = []
    for word in found:
        if word in ("|", "&&", ";"):
            yield stage
            stage = []
        else:
            stage.append(word)
    yield stage


def check_command(line: str, folder: pathlib.Path = ROOT) -> None:
    """Raises CommandError if a command names an option, preset, file or module that does not exist.

    Args:
        line: the command in the documentation.
        folder: folder of its relative paths, which may also be relative to the root of the repository.
    """
    for stage in _stages(words(line)):
        while stage and re.match(r"[A-Z_0-9]+=", stage[0]):
            stage = stage[1:]
        _need(stage, f"{line!r} is no command")
        program, *arguments = stage
        _need(program in PROGRAMS, f"{program} is a program that this test does not know; add it to PROGRAMS")
        try:
            PROGRAMS[program](arguments, folder)
        except Exception as error:
            raise CommandError(f"{line}\n{error}") from error
