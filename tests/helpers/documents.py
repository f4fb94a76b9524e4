"""Functions that read the project's Markdown documents, and check the commands in them without running them."""

import configparser
import importlib.util
import itertools
import pathlib
import re
import shlex

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from helpers.places import ROOT
from tfdecouple.cli import app
from tfdecouple.config import Config, preset_config

# Paths of the project's Markdown files, without model cards, whose commands run in an export folder.
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "MODEL_CARD.md" and "node_modules" not in path.parts
)
# Programs that documented commands run; those without a check in `_check_program` may have any arguments.
PROGRAMS = ("tfdecouple", "python", "python3", "make", "pip", "npm", "node", "pytest", "sbatch", "kubectl", "bash")
PROGRAMS += ("docker", "curl", "export", "sudo")


def split_code(text: str) -> list[Token]:
    """Returns the code blocks of a Markdown text; `info` is the language after the opening ```, `content` the code."""
    return [token for token in MarkdownIt().parse(text) if token.type in ("fence", "code_block")]


def find_inline_code(text: str) -> list[str]:
    """Returns the pieces of code between single backquotes in a Markdown text; code blocks are left out."""
    spans = [span for token in MarkdownIt().parse(text) for span in token.children or []]
    return [" ".join(span.content.split()) for span in spans if span.type == "code_inline"]


def find_links(text: str) -> list[str]:
    """Returns the targets (URLs or paths) of all links and images in a Markdown text, which can contain HTML."""
    spans = [span for token in MarkdownIt().parse(text) for span in token.children or []]
    targets = [span.attrGet("href") or span.attrGet("src") for span in spans]
    return [target for target in targets if target] + re.findall(r"(?:href|src)=\"([^\"]+)\"", text)


def list_anchors(text: str) -> set[str]:
    """Returns the anchors, such as "quick-start", that GitHub gives the headings of a Markdown text."""
    tokens = MarkdownIt().parse(text)
    headings = [after.children for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    titles = ["".join(span.content for span in spans) for spans in headings]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def list_commands(block: str) -> list[str]:
    """Returns the command lines in a code block; joins continued lines, and drops explanations after the commands."""
    block = re.sub(r"\s*\\\n\s*|\n\s+(?=\[?-|\|)|(?<=\|)\n\s*", " ", block)
    return [re.sub(r"\s{3,}(#|[A-Za-z]).*$", "", line.rstrip()) for line in block.splitlines() if line.strip()]


class CommandError(AssertionError):
    """A command in the documentation would fail if a user ran it."""


def _check_tfdecouple(arguments: list[str]) -> None:
    from tfdecouple.registry import FORMATS

    with pytest.MonkeyPatch.context() as patch:
        # Documents name photographs and folders that do not exist.
        patch.setattr(pathlib.Path, "exists", lambda path: True)
        patch.setattr(pathlib.Path, "is_dir", lambda path: True)
        program, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False, verbose=False)
    options = bound.arguments
    if program.__name__ == "train":
        preset = preset_config(options.get("preset", "quickstart"))
        (Config() if "config" in options else preset).override(options.get("settings", ()))
    elif program.__name__ == "export":
        assert set(options.get("format", ())) <= set(FORMATS), f"there is no format {options['format']}"
    elif program.__name__ == "presets" and options:
        preset_config(options["name"])


def _check_program(program: str, arguments: list[str], folder: pathlib.Path) -> None:
    """Raises an error if a program would fail for its arguments, or a file among these is missing."""
    if program in ("python", "python3"):
        # Python's option -P does not change which program runs.
        program, *arguments = [argument for argument in arguments if argument != "-P"]
        if program == "-m":
            program, *arguments = arguments
            assert importlib.util.find_spec(program.partition(".")[0]), f"there is no module {program}"
    words = [program, *arguments]
    if program == "train.py":
        return _check_tfdecouple(["train", *arguments])
    if program == "tfdecouple" or words[:2] == ["docker", "run"] and "tfdecouple" in words:
        return _check_tfdecouple(words[words.index("tfdecouple") + 1 :])
    for before, word in itertools.pairwise(["", *words]):
        path = word.partition("::")[0]
        if before in ("-f", "-r") or re.match(r"(examples|docs|benchmarks|tests)/|.*\.(py|mjs)$", path):
            # A document can name a program in its own folder, or client.py, which exports copy from the folder export/.
            assert any((place / path).exists() for place in (ROOT, folder, ROOT / "export")), f"there is no {path}"
        if before and program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert "=" in word or word in targets, f"make has no target {word}"
        if word.startswith("ARGS=") and "train" in words:
            _check_tfdecouple(["train", *shlex.split(word.removeprefix("ARGS="))])
        if extras := re.fullmatch(r"(?:\.|tfdecouple)\[([\w,-]+)\]", word):
            setup = configparser.ConfigParser()
            setup.read(ROOT / "setup.cfg")
            assert {*extras[1].split(",")} <= {*setup["options.extras_require"]}, f"setup.cfg lacks one of {extras[1]}"
    return None


def split_command(line: str) -> list[str]:
    """Returns the words of a documented command, without brackets, with examples instead of placeholders like NAME."""
    line = re.sub(r"\[(-[^\[\]]*)\]", r"\1", line)
    line = re.sub(r"\bNAME=VALUE\b", "model.alpha=0.5", line)
    words = [re.sub(r"(?<![^=])[A-Z](?=$)", "1", word) for word in shlex.split(line, comments=True)]
    return ["quickstart" if word == "NAME" else word for word in words if word != "..."]


def is_command(line: str) -> bool:
    """Returns whether a line begins with the name of a program in `PROGRAMS`, possibly after assignments VAR=value."""
    return re.sub(r"^(?:[A-Z_0-9]+=(?:'[^']*'|\"[^\"]*\"|\S*)\s+)*", "", line).partition(" ")[0] in PROGRAMS


def check_command(line: str, folder: pathlib.Path = ROOT) -> None:
    """Raises CommandError if a chain of commands names an option, preset or file, also of `folder`, that is missing."""
    for is_separator, words in itertools.groupby(split_command(line), lambda word: word in ("|", "&&", ";")):
        if is_separator:
            continue
        program, *arguments = itertools.dropwhile(lambda word: re.match(r"[A-Z_0-9]+=", word), words)
        if program not in PROGRAMS:
            raise CommandError(f"{program} is a program that this test does not know; add it to PROGRAMS")
        try:
            _check_program(program, arguments, folder)
        except Exception as error:
            raise CommandError(f"{line}\n{error}") from error
