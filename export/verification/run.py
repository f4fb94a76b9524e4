"""Starting the gate's processes and judging what they report."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from export.verification.arrays import Report
from tfdecouple.errors import UserError, one_line
from tfdecouple.runtime.process import python_process

# Checks of other runtimes that run the files of a check, by the package that each needs: made where that is installed.
FURTHER = {"check_onnx": {"openvino": "check_openvino"}}
# More than a report takes.
_REPORT_BYTES = 2**16
# Problems that one line names.
_TOLD = 5

Process: TypeAlias = "subprocess.Popen[str]"


class RefusedError(UserError):
    """An export that did not pass its gate."""


def further_checks(check: str) -> dict[str, str]:
    """Returns the checks of other runtimes on this machine for the files of a check, by their packages."""
    return {
        package: module
        for package, module in FURTHER.get(check, {}).items()
        if importlib.util.find_spec(package) is not None
    }


def pass_gate(
    check: str,
    folder: pathlib.Path,
    cases: pathlib.Path,
    tell: Callable[[str], Any] = lambda text: None,
    started: Callable[[Process], Any] | None = None,
    **options: Any,
) -> Report:
    """Runs one check in a fresh process, and refuses what does not pass.

    Args:
        check: name of the module, such as "check_onnx".
        folder: what is checked.
        cases: file of the cases.
        tell: is told how far the check is.
        started: as of `run_gate`.
        **options: of the check.

    Returns:
        The report of an export that passed.

    Raises:
        RefusedError: naming every endpoint and figure that is wrong.
    """
    report = run_gate(check, folder, cases, cases.with_name(f"{check}.json"), tell, started, **options)
    if report.problems:
        raise RefusedError(f"not published: {listed(report.problems)}")
    return report


def listed(problems: list[str]) -> str:
    """Returns the first problems, and how many there are, in one line."""
    if len(problems) == 1:
        return problems[0]
    told = [f"({number}) {text}" for number, text in enumerate(problems[:_TOLD], 1)]
    more = [f"and {len(problems) - _TOLD} more"] if problems[_TOLD:] else []
    return f"{len(problems)} problems: " + "; ".join([*told, *more])


def run_client(client: pathlib.Path, onnx: pathlib.Path, kept: Callable[[], Iterable[bool]]) -> str:
    """Runs the client that is published beside ONNX files on known images, as whoever has it would.

    Args:
        client: the program.
        onnx: folder of the files.
        kept: returns which of these images the model itself surely keeps; asked only where the client loses some.

    Returns:
        What it says: how many of the images come back. What the model itself loses is no fault of the client.

    Raises:
        RefusedError: where it fails, or loses an image that the model keeps.
    """
    command = python_process(str(client), "--check", str(onnx))
    done = subprocess.run(**command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    # 1 is also the status of a program that Python ends.
    if done.returncode not in (0, 1) or len(lines) != 1:
        raise RefusedError(f"not published: {client.name} fails: {one_line(done.stderr or 'it says nothing')}")
    if done.returncode:
        lost = {int(number) for number in re.findall(r"\d+", lines[0].partition("; lost: ")[2])}
        wrong = [number for number, keeps in enumerate(kept()) if keeps and number in lost]
        if wrong or not lost:
            which = f"number {', '.join(map(str, wrong))}, which the model itself keeps" if wrong else "it names none"
            raise RefusedError(f"not published: {client.name}: {lines[0]}; {which}")
    return lines[0]


def run_gate(
    check: str,
    folder: pathlib.Path,
    cases: pathlib.Path,
    result: pathlib.Path,
    tell: Callable[[str], Any] = lambda text: None,
    started: Callable[[Process], Any] | None = None,
    # A manifest may name its options as it likes.
    /,
    **options: Any,
) -> Report:
    """Runs one check in a fresh process.

    Args:
        check: name of the module.
        folder: what is checked.
        cases: file of the cases.
        result: where the process writes its report.
        tell: is told how far the check is.
        started: is given the process, for whoever must end it from another thread. It then times no call until its
            stdin is closed, which whoever computes beside it does when that is over.
        **options: of the check.

    Returns:
        The report, with the problems that were found; a process that fails is one.
    """
    module = f"export.verification.{check}"
    command = python_process("-m", module, str(folder), str(cases), str(result), json.dumps(options))
    # Room for the report: a full disk shows here and not as a check that failed.
    result.write_bytes(bytes(_REPORT_BYTES))
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            **command,
            stdin=subprocess.PIPE if started else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            if started:
                started(process)
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
        return Report(problems=[f"{check} ended with status {status}: {last}"])
    return Report.load(result)
