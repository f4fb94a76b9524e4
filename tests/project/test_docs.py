"""The documentation: programs accept its commands, its names and files exist, its links lead somewhere."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
import sys

import pytest
from helpers.documents import (
    DOCUMENTS,
    SHORT_NAMES,
    CommandError,
    check_command,
    find_inline_code,
    find_links,
    is_command,
    list_anchors,
    list_commands,
    split_code,
)
from helpers.places import ROOT

import tfdecouple
from tfdecouple import cli
from tfdecouple.cli import train
from tfdecouple.cli.evaluate import METRICS
from tfdecouple.config import Config, list_option_names, load_preset, override, preset_names

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# Options of programs that are not the project's, where the text speaks of them.
FOREIGN_OPTIONS = {"--gpus-per-task", "--signal", "--ignore-scripts", "--build-arg", "--user"}


def in_documents(test):
    """Parametrises a test by the path and the text of each document."""
    return pytest.mark.parametrize(
        ("path", "text"), [(path, path.read_text(encoding="utf-8")) for path in DOCUMENTS], ids=NAMES
    )(test)


def commands_of(text):
    """Returns all commands of a document, in its blocks and within the text."""
    commands = [
        line
        for block in split_code(text)[0]
        if block.language not in ("python", "json")
        for line in list_commands(block.text)
        if block.language or is_command(line)
    ]
    for code in find_inline_code(text):
        short, _, rest = code.partition(" ")
        if is_command(code):
            commands.append(code)
        elif short in SHORT_NAMES and rest:
            commands.append(f"python {SHORT_NAMES[short]} {rest}")
    return commands


@in_documents
def test_programs_accept_the_commands(path, text):
    for line in commands_of(text):
        # `a|b` stands for two commands.
        choice = re.search(r"\b\w+(\|\w+)+\b", line)
        for word in choice[0].split("|") if choice else [""]:
            try:
                check_command(line.replace(choice[0], word) if choice else line, path.parent)
            except CommandError as error:
                # The text may name a command without its options.
                if "arguments are required" not in str(error) or line not in find_inline_code(text) or " --" in line:
                    raise


@pytest.mark.parametrize("name", preset_names())
def test_train_accepts_the_options_in_the_notes_of_a_preset(name):
    preset = load_preset(name)
    option = r"--[a-z][\w-]* (?!with )(?:[^\s,;']|'[^']*')+"
    for together in re.findall(rf"{option}(?: {option})*", preset.notes):
        options = re.sub(r"\bPATH$", ".", together.rstrip(".:"))
        check_command(f"python train.py --preset {name} {options}")
    named = re.findall(r"the preset (\w+)", preset.notes)
    assert set(named) <= set(preset_names())


@pytest.mark.parametrize("program", ["train.py", "-m tfdecouple", "-m export"])
def test_programs_accept_the_commands_in_their_help(program, capsys, monkeypatch):
    from export.cli import main as export_main

    monkeypatch.setattr(sys, "argv", ["train.py" if program == "train.py" else "tfdecouple/__main__.py"])
    main = {"train.py": train.main, "-m tfdecouple": cli.main, "-m export": export_main}[program]
    # Each command of `python -m tfdecouple` has its own help.
    helps = [["--help"], *([name, "--help"] for name in cli.COMMANDS if program == "-m tfdecouple")]
    for arguments in helps:
        with pytest.raises(SystemExit):
            main(arguments)
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  python {program}")]
    assert len(examples) >= 3
    for line in examples:
        check_command(line.strip())


@functools.cache
def options_of_programs():
    """Returns every option of any program of the project, read from its Python files and its scripts for Node.js."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("examples/*/*.py"), *ROOT.glob("examples/*/*.mjs")]
    files += [path for folder in ("tfdecouple", "export", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    options = set(re.findall(r"[\"'](--[a-z][\w-]*)[\"']", text)) | {metric(None).option for metric in METRICS}
    # Scripts for Node.js name options without dashes.
    return options | {f"--{name}" for name in re.findall(r"\b([a-z]\w*)\"?: \{ ?type: \"(?:string|boolean)\"", text)}


@in_documents
def test_options_within_the_text_exist(path, text):
    known = options_of_programs() | FOREIGN_OPTIONS | {"--help"}
    for code in find_inline_code(text):
        if not code.startswith("--") or code == "--":
            continue
        found = re.findall(r"(?:^|\s)(--[a-z][\w-]*)", code)
        assert found and set(found) <= known, f"`{code}`: {sorted(set(found) - known)}"
        settings = re.findall(r"--set (\S+=\S+)", code)
        override(load_preset("quickstart"), [re.sub(r"=[A-Z]$", "=1", each) for each in settings])


@in_documents
def test_names_of_the_config_and_of_python_exist(path, text, tiny_model):
    for code in find_inline_code(text):
        option = re.match(r"(training|data|model)\.([a-z_]+)\b(?!\.py)", code)
        if option and "/" not in code:
            of_model = option[1] == "model" and option[2] in dir(tiny_model)
            assert option[0] in list_option_names() or of_model or code.endswith(".json"), f"`{code}`"
            setting = re.fullmatch(r"\w+\.\w+=\w+", code)
            if setting:
                override(Config(), [re.sub(r"=[A-Z]$", "=1", code)])
        dotted = re.match(r"((?:tfdecouple|export)(?:\.\w+)+)", code)
        if dotted:
            pkgutil.resolve_name(dotted[1])


@in_documents
def test_files_within_the_text_exist(path, text):
    places = (ROOT, path.parent, ROOT / "tfdecouple", ROOT / "export")
    for code in find_inline_code(text):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.(py|md|c|mjs|js|sh|yaml|cfg)", code):
            assert any((place / code).exists() for place in places), f"there is no `{code}`"


@in_documents
def test_links_lead_somewhere(path, text):
    for link in find_links(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            assert re.match(r"https?://[\w.-]+(:\d+)?(/|$)|mailto:", link), link
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.is_relative_to(ROOT) and file.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in list_anchors(file.read_text(encoding="utf-8")), f"{link}: there is no such heading"


def python_blocks():
    for path in DOCUMENTS:
        for block in split_code(path.read_text(encoding="utf-8"))[0]:
            if block.language == "python":
                yield pytest.param(block.text, id=f"{path.relative_to(ROOT)}:{block.line}")


@pytest.mark.parametrize("text", python_blocks())
def test_python_blocks_use_names_that_exist(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tfdecouple":
            assert hasattr(tfdecouple, node.attr)
