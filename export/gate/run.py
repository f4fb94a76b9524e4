"""Starting the gate's processes and judging what they report."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

from export.gate.arrays import Report
from tfdecouple.errors import UserError

# More than a report takes.
_REPORT_BYTES = 2**16


class RefusedError(UserError):
    """An export that did not pass its gate."""


def pass_gate(check: str, folder: pathlib.Path, cases: pathlib.Path, **options: object) -> Report:
    """Runs one check in a fresh process.

    Args:
        check: name of the module, "check_onnx" or "check_saved_model".
        folder: what is checked.
        cases: file of the cases.
        **options: of the check.

    Returns:
        The report of an export that passed.

    Raises:
        RefusedError: naming the endpoint and the figure.
    """
    result = cases.with_name(f"{check}.json")
    command = [sys.executable, "-m", f"export.gate.{check}", str(folder), str(cases), str(result), json.dumps(options)]
    # Room for the report: a full disk shows here and not as a check that failed.
    result.write_bytes(bytes(_REPORT_BYTES))
    # From where this package lies, whatever the folder that the user is in.
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.run(
        command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if process.returncode:
        lines = [line for line in process.stderr.strip().splitlines() if line.strip()]
        last = lines[-1].strip()[:300] if lines else "no message"
        raise RefusedError(f"not published: {check} ended with status {process.returncode}: {last}")
    report = Report.load(result)
    if report.problems:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise RefusedError(f"not published: {report.problems[0]}{more}")
    return report
