import ast
import importlib
import pkgutil
import re

import pytest
from helpers import documents
from helpers.places import ROOT

import tfdecouple
from tfdecouple.cli import app
from tfdecouple.config import Config, list_option_names, preset_config, preset_names
from tfdecouple.errors import EXIT_FAILED, DivergedError, UserError
from tfdecouple.system.signals import InterruptedRunError
from tfdecouple.training.workers import LostWorkerError

TEXTS = [(path, path.read_text(encoding="utf-8")) for path in documents.DOCUMENTS]
in_documents = pytest.mark.parametrize(("path", "text"), TEXTS, ids=[str(path.relative_to(ROOT)) for path, _ in TEXTS])


class TestDocument:
    @in_documents
    def test_programs_accept_the_commands_of_a_document(self, path, text):
        commands = [code for code in documents.find_inline_code(text) if documents.is_command(code)]
        for block in (block for block in documents.split_code(text) if block.language not in ("python", "json")):
            commands += [
                line for line in documents.list_commands(block.text) if block.language or documents.is_command(line)
            ]
        for line in commands:
            # `a|b` stands for two commands.
            choice = re.search(r"\b\w+(\|\w+)+\b", line)
            for word in choice[0].split("|") if choice else [""]:
                try:
                    documents.check_command(line.replace(choice[0], word) if choice else line, path.parent)
                except documents.CommandError as error:
                    # The text may name a command without its options.
                    is_named_only = line in documents.find_inline_code(text) and " --" not in line
                    if "requires" not in str(error) or not is_named_only:
                        raise

    @pytest.mark.parametrize("name", preset_names())
    def test_train_accepts_the_options_in_the_notes_of_a_preset(self, name):
        preset = preset_config(name)
        option = r"--[a-z][\w-]* (?!with )(?:[^\s,;']|'[^']*')+"
        for together in re.findall(rf"{option}(?: {option})*", preset.notes):
            options = re.sub(r"\bPATH$", ".", together.rstrip(".:"))
            documents.check_command(f"python train.py --preset {name} {options}")
        assert set(re.findall(r"the preset (\w+)", preset.notes)) <= set(preset_names())

    def test_programs_accept_the_commands_in_their_help(self):
        docs = [app[name].default_command.__doc__ for name in app if not name.startswith("-")]
        examples = re.findall("^ {8}((?:python|tfdecouple) .*)", "\n".join(docs), re.MULTILINE)
        assert examples
        for line in [*examples, *re.findall(r"`(tfdecouple [^`<>]+)`", "\n".join(docs))]:
            documents.check_command(line)

    @in_documents
    def test_options_python_names_and_files_in_a_document_exist(self, path, text, tiny_model):
        places = (ROOT, path.parent, ROOT / "tfdecouple", ROOT / "export")
        for code in documents.find_inline_code(text):
            option = re.match(r"(training|data|model)\.([a-z_]+)\b(?!\.py)", code)
            if option and "/" not in code:
                of_model = option[1] == "model" and option[2] in dir(tiny_model)
                assert option[0] in list_option_names() or of_model or code.endswith(".json"), f"`{code}`"
                if re.fullmatch(r"\w+\.\w+=\w+", code):
                    Config().override([re.sub(r"=[A-Z]$", "=1", code)])
            if dotted := re.match(r"((?:tfdecouple|export)(?:\.\w+)+)", code):
                pkgutil.resolve_name(dotted[1])
            if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.(py|md|c|mjs|js|sh|yaml|cfg)", code):
                assert any((place / code).exists() for place in places), f"there is no `{code}`"

    @in_documents
    def test_links_of_a_document_lead_to_files_and_headings(self, path, text):
        for link in documents.find_links(text):
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                assert re.match(r"https?://[\w.-]+(:\d+)?(/|$)|mailto:", link), link
                continue
            file = (path.parent / target).resolve() if target else path
            assert file.is_relative_to(ROOT) and file.exists(), f"{link} leads nowhere"
            if anchor:
                assert anchor in documents.list_anchors(file.read_text(encoding="utf-8")), (
                    f"{link}: there is no such heading"
                )

    @in_documents
    def test_python_blocks_of_a_document_use_names_that_exist(self, path, text, monkeypatch):
        # An export has a copy of client.py.
        monkeypatch.syspath_prepend(ROOT / "export")
        for block in documents.split_code(text):
            for node in ast.walk(ast.parse(block.text)) if block.language == "python" else ():
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), block
                elif isinstance(node, ast.Import):
                    for alias in node.names:
                        importlib.import_module(alias.name)
                elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tfdecouple":
                    assert hasattr(tfdecouple, node.attr), block


class TestReferences:
    def test_exit_statuses_of_the_programs_differ_and_have_rows_in_the_table(self):
        ends = [error.status for error in (UserError, DivergedError, LostWorkerError, InterruptedRunError)]
        # A fault of the program, an interruption, done.
        ends += [EXIT_FAILED, 1, 130, 0]
        assert len(set(ends)) == len(ends) == 8
        page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
        assert set(map(int, re.findall(r"^\| (\d+) \|", page, re.M))) == set(ends)

    def test_pages_and_headings_that_messages_and_presets_name_exist(self):
        named = set()
        for folder in ("tfdecouple", "export"):
            for path in (ROOT / folder).rglob("*"):
                if path.suffix in (".py", ".json", ".js", ".mjs", ".html"):
                    named |= set(re.findall(r"\bdocs/[\w/-]+\.md(?:#[\w-]+)?", path.read_text(encoding="utf-8")))
        assert len(named) > 8
        for name in named:
            page, _, heading = name.partition("#")
            assert (ROOT / page).is_file(), name
            assert not heading or heading in documents.list_anchors((ROOT / page).read_text(encoding="utf-8")), name
