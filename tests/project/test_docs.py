"""The documentation: programs accept its commands, its names and files exist, its links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import sys

import pytest
from helpers.command_lines import SHORT, CommandError, check_command, is_command
from helpers.documents import DOCUMENTS, anchors, command_lines, inline_code, links, split_code
from helpers.places import ROOT

import tfdecouple
from tfdecouple.cli import commands as cli
from tfdecouple.cli.evaluate import METRICS
from tfdecouple.config import Config, load_preset, option_names, override, preset_names

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# Options of programs that are not the project's, where the text speaks of them.
FOREIGN_OPTIONS = {"--gpus-per-task", "--signal", "--ignore-scripts", "--build-arg", "--user"}


def in_documents(test):
    """Parametrises a test by the path and the text of each document."""
    return pytest.mark.parametrize(
        ("path", "text"), [(path, path.read_text(encoding="utf-8")) for path in DOCUMENTS], ids=NAMES
    )(test)


def commands(text):
    """All commands of a document, in its blocks and within the text."""
    blocks = split_code(text)[0]
    found = [
        line
        for block in blocks
        if block.language not in ("python", "json")
        for line in command_lines(block.text)
        if block.language or is_command(line)
    ]
    found += [code for code in inline_code(text) if is_command(code)]
    for code in inline_code(text):
        short, _, rest = code.partition(" ")
        if short in SHORT and rest:
            found.append(f"python {SHORT[short]} {rest}")
    return found


@in_documents
def test_programs_accept_the_commands(path, text):
    for line in commands(text):
        # `a|b` stands for two commands.
        choice = re.search(r"\b\w+(\|\w+)+\b", line)
        for word in choice[0].split("|") if choice else [""]:
            try:
                check_command(line.replace(choice[0], word) if choice else line, path.parent)
            except CommandError as error:
                # The text may name a command without its options.
                missing = "arguments are required" in str(error) or "are needed" in str(error)
                short = missing and line in inline_code(text)
                if not (short and " --" not in line):
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
    main = {"train.py": cli.train_main, "-m tfdecouple": cli.main, "-m export": export_main}[program]
    # Each command of `python -m tfdecouple` has its own help.
    helps = [["--help"], *([name, "--help"] for name in cli.COMMANDS if program == "-m tfdecouple")]
    for arguments in helps:
        with pytest.raises(SystemExit):
            main(arguments)
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  python {program}")]
    assert len(examples) >= 3
    for line in examples:
        check_command(line.strip())


def options_of_programs():
    """Every option of any program of the project, read from its Python files and its scripts for Node."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("examples/*/*.py"), *ROOT.glob("examples/*/*.mjs")]
    files += [path for folder in ("tfdecouple", "export", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"[\"'](--[a-z][\w-]*)[\"']", text)) | {metric(None).option for metric in METRICS}
    # Options of Node's parseArgs have no dashes there.
    return named | {f"--{name}" for name in re.findall(r"\b([a-z]\w*)\"?: \{ ?type: \"(?:string|boolean)\"", text)}


@in_documents
def test_options_within_the_text_exist(path, text):
    known = options_of_programs() | FOREIGN_OPTIONS | {"--help"}
    for code in inline_code(text):
        if not code.startswith("--") or code == "--":
            continue
        found = re.findall(r"(?:^|\s)(--[a-z][\w-]*)", code)
        assert found and set(found) <= known, f"`{code}`: {sorted(set(found) - known)}"
        settings = re.findall(r"--set (\S+=\S+)", code)
        override(load_preset("quickstart"), [re.sub(r"=[A-Z]$", "=1", each) for each in settings])


@in_documents
def test_names_of_the_config_and_of_python_exist(path, text, tiny_model):
    for code in inline_code(text):
        option = re.match(r"(training|data|model)\.([a-z_]+)\b(?!\.py)", code)
        if option and "/" not in code:
            of_model = option[1] == "model" and option[2] in dir(tiny_model)
            assert option[0] in option_names() or of_model or code.endswith(".json"), f"`{code}`"
            setting = re.fullmatch(r"\w+\.\w+=\w+", code)
            if setting:
                override(Config(), [re.sub(r"=[A-Z]$", "=1", code)])
        dotted = re.match(r"((?:tfdecouple|export)(?:\.\w+)+)", code)
        if dotted:
            find(dotted[1])


def find(dotted):
    """Imports a dotted name of a module, or of an object within a module."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"there is no {dotted}")


@in_documents
def test_files_within_the_text_exist(path, text):
    places = (ROOT, path.parent, ROOT / "tfdecouple", ROOT / "export")
    for code in inline_code(text):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.(py|md|c|mjs|js|sh|yaml|cfg)", code):
            assert any((place / code).exists() for place in places), f"there is no `{code}`"


@in_documents
def test_links_lead_somewhere(path, text):
    for link in links(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            assert re.match(r"https?://[\w.-]+(:\d+)?(/|$)|mailto:", link), link
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.is_relative_to(ROOT) and file.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{link}: there is no such heading"


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
