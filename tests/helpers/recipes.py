"""The recipes of docs/design.md ("Adding something"), read from the page and carried out in a copy of the packages."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

from helpers.forked import forked_programs
from helpers.places import PATIENCE, ROOT


def recipe(name: str) -> str:
    """Returns the code of the recipe that begins with `A **name**` or `An **name**`."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## Adding something")[2]
    begins = re.search(rf"^An? \*\*{re.escape(name)}\*\*", text, re.MULTILINE)
    assert begins, f"there is no recipe for {name}"
    paragraphs = text[begins.start() :].split("\n\n")[1:]
    block = itertools.takewhile(lambda paragraph: paragraph.startswith("    "), paragraphs)
    return textwrap.dedent("\n\n".join(block)).rstrip("\n")


def copy_of_packages(folder: pathlib.Path) -> pathlib.Path:
    """Copies what a user runs into a folder, and returns the folder."""
    for package in ("tfdecouple", "export"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    return folder


def insert(file: pathlib.Path, before: str, text: str, after: str = "") -> None:
    """Inserts text into a file, before the first `before` that follows `after`."""
    content = file.read_text(encoding="utf-8")
    place = content.index(before, content.index(after))
    file.write_text(content[:place] + text + content[place:], encoding="utf-8")


def replace_line(file: pathlib.Path, begins: str, text: str) -> None:
    """Puts text in the place of the one line of a file that begins so; every word of it must be there, in order."""
    content = file.read_text(encoding="utf-8")
    (line,) = [line for line in content.splitlines(keepends=True) if line.startswith(begins)]
    words = iter(re.findall(r"\w+", text))
    lost = [word for word in re.findall(r"\w+", line) if word not in words]
    assert not lost, f"{file.name} would lose {', '.join(lost)} of {line}"
    file.write_text(content.replace(line, text.rstrip("\n") + "\n"), encoding="utf-8")


def run_in(folder: pathlib.Path, *arguments: str, anew: bool = False) -> subprocess.CompletedProcess:
    """Runs Python with these arguments in a copy, whose packages it imports; forked (`forked.py`), or anew."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    with contextlib.nullcontext() if anew else forked_programs():
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
