"""Functions that the benchmarks share: programs run in fresh processes, markdown tables, and JSON files."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfdecouple.doctor.check_runner import PASSIVE
from tfdecouple.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
THROUGHPUT = ROOT / "benchmarks" / "throughput.py"


def run_throughput(phase: str, *arguments: str) -> dict[str, Any]:
    """Returns the figures that `throughput.py` measures for a phase in a process of its own."""
    return run_json([sys.executable, str(THROUGHPUT), "--phase", phase, *arguments])


def run_json(command: Sequence[str], drop: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the JSON object in the last line that a program prints; the program's idle threads sleep.

    Args:
        command: the program and its arguments.
        drop: names of the environment variables that are removed for the program.

    Raises:
        UserError: if the program fails or prints no JSON object; the message has the last line of its output.
    """
    environment = {name: value for name, value in {**os.environ, **PASSIVE}.items() if name not in drop}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from error
    said = f"it said: {(done.stderr.strip() or done.stdout.strip() or 'nothing').splitlines()[-1][:300]}"
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command))} ended with status {done.returncode}; {said}")
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"the last line of {' '.join(map(str, command))} is no JSON object; {said}") from error


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a markdown table with its numbers rounded by `cell`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def cell(value: Any) -> str:
    """Returns the text of a table cell: floats have three decimals below 1 and fewer above, booleans are yes or no."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def relative_differences(found: Iterable[Any], expected: Iterable[Any]) -> list[float]:
    """Returns for each pair of arrays the largest absolute difference over the largest absolute expected number."""
    import numpy as np

    pairs = [[np.asarray(value, np.float64) for value in pair] for pair in zip(found, expected, strict=True)]
    return [float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)) for ours, theirs in pairs]


def write_json(path: str | pathlib.Path | None, value: Mapping[str, Any]) -> None:
    """Writes `value` to a JSON file, or does nothing if `path` is None."""
    if path:
        pathlib.Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
