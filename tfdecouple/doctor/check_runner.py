"""The checks of the command `doctor`, and the program that runs each check in a process of its own.

It reads a check's name and a pickled `Task` from standard input, and writes each `Result` as a line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tfdecouple.doctor import device_checks, installation, speed
from tfdecouple.doctor.report import DEFAULT, VARIANTS, Request, Result, Task
from tfdecouple.errors import UserError, one_line
from tfdecouple.runtime.process import make_python_command, run_program, start_tensorflow

# Environment variables that make idle threads sleep, instead of occupying a core while they wait for work.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
# The report's advice for a check whose process failed: out of time, out of memory, or with another error.
_ADVICE = {
    "time": "see what else computes here (top, nvidia-smi), or give each check longer: --timeout",
    "memory": "see what else holds memory here (free, nvidia-smi), and end it, or take a machine with more",
    "error": "run this check alone (--only NAME) with TFDECOUPLE_TRACEBACK=1 in the environment; report what it prints",
}
# Name of this module, which Python runs as the process of a check.
_MODULE = "tfdecouple.doctor.check_runner"


class Check(NamedTuple):
    """A check of the command `doctor`; its results are one part of the report.

    Attributes:
        title: the title of the part.
        run: a function of a `Task` (options, variant, devices) that yields `Result`s; it runs in a new process.
        takes: a function of a `Task` that returns whether to run the check; by default, only for default options.
        promises: whether the check fails if time or memory does not suffice; checks that only measure do not fail.
    """

    title: str
    run: Callable[[Task], Iterator[Result]]
    takes: Callable[[Task], bool] = lambda task: task.variant == DEFAULT
    promises: bool = True


# All checks by name, in the order of the report. The check "build" comes first, because it finds the devices for the
# other checks.
CHECKS = {
    "build": Check("what is installed and what is there", installation.inspect_machine),
    "numerics": Check(
        "the same numbers on every device, in each precision", device_checks.compare_numbers, lambda task: True
    ),
    "exactness": Check("images come back from their codes", device_checks.try_round_trips),
    "devices": Check(
        "several devices train as one does (--devices N)",
        device_checks.compare_devices,
        lambda task: len(task.devices) > 1 and task.variant == DEFAULT,
    ),
    "speed": Check("how fast it is", speed.measure_speed, lambda task: True, promises=False),
}


def run_checks(request: Request, names: Iterable[str], progress: Callable[[str], Any]) -> dict[str, list[Result]]:
    """Runs "build" and the checks `names`; returns {name: its `Result`s}; UserError if there are too few devices.

    The callback `progress` receives a line of text before each process starts.
    """
    devices: tuple[str, ...] = ("CPU:0",)
    results: dict[str, list[Result]] = {}
    for name in [name for name in CHECKS if name == "build" or name in names]:
        results[name] = []
        for variant in VARIANTS:
            task = Task(request, variant, devices)
            fits = (variant.in_quick or not request.quick) and (devices[0][:3] == "GPU" or not variant.gpu_only)
            if fits and CHECKS[name].takes(task):
                progress(f"{name}: {CHECKS[name].title}, {variant.name}")
                results[name] += run_in_process(name, task)
        if name == "build":
            devices = installation.find_used_devices(request, results[name])
    return results


def run_in_process(name: str, task: Task) -> list[Result]:
    """Runs the check `name` of `doctor` in a new process; returns its `Result`s, and one more if the process fails."""
    check, limit = CHECKS[name], task.request.timeout
    python = make_python_command("-m", _MODULE, **PASSIVE)
    # With TFDECOUPLE_TRACEBACK the process shares this program's standard error, so that users see its tracebacks.
    errors = None if os.environ.get("TFDECOUPLE_TRACEBACK") else subprocess.PIPE
    text = pickle.dumps((name, task))
    try:
        done = subprocess.run(**python, input=text, timeout=limit, check=False, stdout=subprocess.PIPE, stderr=errors)
        output, failure = done.stdout, _explain_end(name, done.returncode, done.stderr or b"")
    except subprocess.TimeoutExpired as expired:
        output, failure = expired.stdout or b"", ("time", f"not done after {limit:.0f} s")
    # Only complete lines are parsed, because a stopped process has possibly written only a part of its last line.
    results = [Result(**json.loads(line)) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    if failure:
        kind, reason = failure
        holds = False if check.promises or kind == "error" else None
        figures = {"failed": kind, "variant": task.variant.name}
        message = f"{task.variant.name}: not measured: {reason}"
        results.append(Result(check.title, holds, message, _ADVICE[kind], figures))
    return results


def _explain_end(name: str, status: int, errors: bytes) -> tuple[str, str] | None:
    """Returns why a check's process failed, (key of `_ADVICE`, reason), or None; `errors` is its standard error."""
    lines = [line.strip() for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    last = one_line(lines[-1].removeprefix("error: ") if lines else "it printed nothing")
    if status == -signal.SIGKILL:
        return "memory", "it was killed, most likely for want of memory"
    if status < 0:
        return "error", f"it was ended by signal {-status} ({last})"
    if "out of memory" in last:
        return "memory", last
    if name == "build" and status == 2:
        # The check "build" runs first; it ends with status 2 if the user asks for more devices than there are.
        raise UserError(last)
    return ("error", last) if status else None


def main() -> int:
    """Runs the check of `doctor` that standard input names; writes `Result`s to standard output as JSON; returns 0."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        # What libraries print to standard output goes to standard error, so that it does not mix with the results.
        os.dup2(2, 1)
        name, task = pickle.load(sys.stdin.buffer)  # noqa: S301 - the parent process wrote it
        start_tensorflow()
        from tfdecouple.training.workers import make_strategy

        # TensorFlow can make logical CPU devices, as --devices needs without GPUs, only before its first computation.
        make_strategy(task.request.devices)
        for result in CHECKS[name].run(task):
            print(json.dumps(dataclasses.asdict(result)), file=results, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
