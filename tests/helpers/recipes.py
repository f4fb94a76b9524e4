"""Functions that add the example code in docs/extending.md to a copy of the project's packages, and run the copy."""

import contextlib
import pathlib
import re
import shutil
import subprocess
import textwrap

from helpers.forked import forked_programs
from helpers.places import ROOT, run_python


def read_recipe(name: str) -> str:
    """Returns the example code under the heading `name` of docs/extending.md; upper or lower case does not matter."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    begins = re.search(rf"^## {re.escape(name)}$", text, re.MULTILINE | re.IGNORECASE)
    assert begins, f"there is no recipe for {name}"
    paragraphs = text[begins.end() :].split("\n## ")[0].split("\n\n")
    block = (paragraph for paragraph in paragraphs if paragraph.startswith("    "))
    return textwrap.dedent("\n\n".join(block)).rstrip("\n")


def copy_packages(folder: pathlib.Path) -> pathlib.Path:
    """Copies the packages `tfdecouple` and `export`, and train.py, into a folder; returns the folder."""
    for package in ("tfdecouple", "export"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    return folder


def insert_text(file: pathlib.Path, before: str, text: str, after: str = "") -> None:
    """Inserts `text` into a file, in front of the first occurrence of the string `before` behind the string `after`."""
    content = file.read_text(encoding="utf-8")
    place = content.index(before, content.index(after))
    file.write_text(content[:place] + text + content[place:], encoding="utf-8")


def append_rows(file: pathlib.Path, name: str, lines: str) -> None:
    """Adds `lines` to a Python file, as the last entries of the list, tuple or dict that the file assigns to `name`."""
    rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
    begin = next(number for number, row in enumerate(rows) if re.match(rf"\s*{name}(:.*)? = .*[([{{]$", row))
    end = next(number for number in range(begin, len(rows)) if rows[number].strip()[0] in ")]}")
    indent = rows[end - 1][: -len(rows[end - 1].lstrip())]
    rows[end:end] = [f"{indent}{line.strip()}\n" for line in lines.strip().splitlines()]
    file.write_text("".join(rows), encoding="utf-8")


def run_in_copy(folder: pathlib.Path, *arguments: str, anew: bool = False) -> subprocess.CompletedProcess:
    """Runs Python in the copy `folder` of the packages, as a fork unless `anew`; returns a `CompletedProcess`."""
    with contextlib.nullcontext() if anew else forked_programs():
        return run_python(*arguments, folder=folder, PYTHONPATH=str(folder))
