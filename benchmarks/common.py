"""Functions that the benchmark programs share: they run programs that measure, and write tables and JSON files."""

import itertools
import json
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tfdecouple.doctor.check_runner import PASSIVE
from tfdecouple.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run_json(command: Sequence[str]) -> dict[str, Any]:
    """Runs a program and returns the JSON object in the last line of its output; UserError if it fails or prints none.

    Idle OpenMP threads of the program sleep instead of spinning, so that they take no CPU time.
    """
    last = (run_text(command, environment={**os.environ, **PASSIVE}).strip().splitlines() or ["nothing"])[-1]
    try:
        return dict(json.loads(last))
    except (ValueError, TypeError) as error:
        raise UserError(f"the last line of {' '.join(command)} is not a JSON object: {last[:300]}") from error


def run_text(
    command: Sequence[str], folder: pathlib.Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Runs a program in the working folder `folder` and returns its standard output; UserError if it fails."""
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1][:300]
        raise UserError(f"{' '.join(command)} ended with status {done.returncode}: {last}")
    return done.stdout


def make_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table as a text; `format_cell` formats each value in `header` and `rows`."""
    first, *others = ("| " + " | ".join(format_cell(value) for value in line) + " |" for line in [header, *rows])
    return "\n".join([first, "|" + "---|" * len(header), *others])


def format_cell(value: Any) -> str:
    """Returns a value as the text of a table cell: floats get three decimals below 1 and fewer above; None gives ""."""
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:z,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def update_page(page: pathlib.Path, tables: Mapping[str, str], check: bool = False) -> int:
    """Puts each of `tables`, {name: Markdown}, into the file `page`, between `<!-- NAME -->` and `<!-- end NAME -->`.

    With `check`, the file stays as it is, and the lines that would change are printed. Returns 1 if there are such
    lines, else 0. UserError is raised if the page lacks one of the two lines.
    """
    document = made = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, opening, rest = made.partition(begin)
        _, closing, after = rest.partition(end)
        if not (opening and closing):
            raise UserError(f"{page} has no lines {begin} and {end} to put the table {name} between")
        made = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    if not check:
        page.write_text(made, encoding="utf-8")
        return 0
    pairs = itertools.zip_longest(document.splitlines(), made.splitlines(), fillvalue="")
    wrong = [f"the page has {ours!r}, and its table {theirs!r}" for ours, theirs in pairs if ours != theirs]
    print("\n".join(wrong or [f"the tables of {page.name} are up to date"]))
    return 1 if wrong else 0
