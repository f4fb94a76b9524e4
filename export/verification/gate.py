"""Starting verifications, each in a process of its own, and refusing what does not pass."""

from __future__ import annotations

import json
import pathlib
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from export.verification.check import Report
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import python_process

# More than a report takes.
_REPORT_BYTES = 2**16
# Problems that one line names.
_NAMED = 5


class RefusedError(UserError):
    """An export that did not pass its verification."""


def pass_gate(
    runtime: str, folder: pathlib.Path, cases: pathlib.Path, tell: Callable[[str], Any], options: dict[str, Any]
) -> Report:
    """Runs one verification, and refuses what does not pass.

    Args:
        runtime: of `runtimes.RUNTIMES`.
        folder: what is checked.
        cases: file of the cases.
        tell: is told how far it is.
        options: of `check.check`.

    Returns:
        The report of an export that passed.

    Raises:
        RefusedError: naming the endpoints and figures that are wrong.
    """
    report = run_gate(runtime, folder, cases, cases.with_name(f"{runtime}.json"), tell, options)
    if report.problems:
        raise RefusedError(f"not published: {listed(report.problems)}")
    return report


def listed(problems: list[str]) -> str:
    """Returns the first problems, and how many there are, in one line."""
    if len(problems) == 1:
        return problems[0]
    named = [f"({number}) {text}" for number, text in enumerate(problems[:_NAMED], 1)]
    more = [f"and {len(problems) - _NAMED} more"] if problems[_NAMED:] else []
    return f"{len(problems)} problems: " + "; ".join([*named, *more])


def run_gate(
    runtime: str,
    folder: pathlib.Path,
    cases: pathlib.Path,
    result: pathlib.Path,
    tell: Callable[[str], Any],
    options: dict[str, Any],
) -> Report:
    """Runs one verification in a fresh process.

    Args:
        runtime: of `runtimes.RUNTIMES`.
        folder: what is checked.
        cases: file of the cases.
        result: where the process writes its report.
        tell: is told how far it is.
        options: of `check.check`.

    Returns:
        The report, with the problems that were found; a process that fails is one.
    """
    arguments = [runtime, str(folder), str(cases), str(result), json.dumps(options)]
    started = python_process("-m", "export.verification.check", *arguments)
    # Room for the report: a full disk shows here and not as a verification that failed.
    result.write_bytes(bytes(_REPORT_BYTES))
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            **started, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                tell(line.rstrip("\n"))
            status = process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        lines = [line for line in errors.read().strip().splitlines() if line.strip()]
    if status:
        last = lines[-1].strip()[:300] if lines else "no message"
        return Report(problems=[f"the verification of {runtime} ended with status {status}: {last}"])
    return Report(**json.loads(result.read_text(encoding="utf-8")))
