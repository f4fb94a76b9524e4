"""The checks of `doctor`, and the process in which each of them runs.

`python -P -m tfdecouple.doctor.checks` reads a check's name and task from standard input and writes the results to
standard output, a line of JSON each. A check may fail, hang or run out of memory without harm to the others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfdecouple.doctor import exports, installation, measurements, round_trips, same_numbers, several_devices
from tfdecouple.doctor.benchmark import COUNTING
from tfdecouple.doctor.result import DEFAULT, VARIANTS, Request, Result, Task, Variant
from tfdecouple.errors import UserError, one_line
from tfdecouple.runtime.process import python_process, start_tensorflow

# Idle threads sleep, instead of taking a core from the others while they look for work.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_ADVICE = {
    "time": "see what else computes here (top, nvidia-smi), or give each check longer: --timeout",
    "memory": "see what else holds memory here (free, nvidia-smi), and end it, or take a machine with more",
    "error": "run this check alone (--only NAME) with TFDECOUPLE_TRACEBACK=1 in the environment; report what it prints",
}
# Status of a process whose devices are not there.
_MISTAKE = 64
# The program of a check's process.
_MODULE = "tfdecouple.doctor.checks"
# The system cannot wait longer at once.
_MOST_SECONDS = 1e6


@dataclasses.dataclass(frozen=True)
class Check:
    """A part of the report.

    Attributes:
        title: of its part of the report.
        run: yields the results of a task, in a process of its own.
        takes: whether a task is to be run; by default the one with the default variant.
        promises: whether it keeps a promise; otherwise too little time or memory breaks none.
        environment: variables of its process.
    """

    title: str
    run: Callable[[Task], Iterator[Result]]
    takes: Callable[[Task], bool] = lambda task: task.variant is DEFAULT
    promises: bool = True
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


# The first finds the devices, which the others need.
CHECKS = {
    "build": Check("what is installed and what is there", installation.run),
    "numerics": Check("the same numbers on every device, in each precision", same_numbers.run, same_numbers.takes),
    "exactness": Check("images come back from their codes", round_trips.run),
    "exports": Check("images come back through exported files", exports.run),
    "devices": Check("several devices train as one does (--devices N)", several_devices.run, several_devices.takes),
    "speed": Check("how fast it is", measurements.speed, lambda task: True, promises=False),
    "memory": Check(
        "memory of training, measured and calculated (--preset NAME)",
        *(measurements.memory, measurements.takes_memory),
        promises=False,
        environment=COUNTING,
    ),
}


def run_checks(request: Request, names: Iterable[str], progress: Callable[[str], Any]) -> dict[str, list[Result]]:
    """Returns the results of checks by their names.

    Args:
        request: what to check.
        names: the checks; `build` always runs first.
        progress: receives a line as each process begins.

    Raises:
        UserError: for more devices than there are.
    """
    devices: tuple[str, ...] = ("CPU:0",)
    results: dict[str, list[Result]] = {}
    for name in [name for name in CHECKS if name == "build" or name in names]:
        results[name] = []
        for variant in _variants(devices[0], request.quick):
            task = Task(request, variant, devices)
            if CHECKS[name].takes(task):
                progress(f"{name}: {CHECKS[name].title}, {variant.name}")
                results[name] += run_apart(name, task)
        if name == "build":
            devices = installation.used_devices(request, results[name])
    return results


def _variants(device: str, quick: bool) -> list[Variant]:
    gpu = device.startswith("GPU")
    return [each for each in VARIANTS if (gpu or not each.gpu_only) and (each.in_quick or not quick)]


def run_apart(name: str, task: Task) -> list[Result]:
    """Returns the results of a check in a process of its own; a failure of the process is the last of them.

    Raises:
        UserError: for more devices than there are.
    """
    check = CHECKS[name]
    environment = {**PASSIVE, **check.environment, **task.variant.environment}
    given = json.dumps({"check": name, **dataclasses.asdict(task)}).encode()
    limit = min(task.request.timeout, _MOST_SECONDS)
    try:
        # Tracebacks go to the user.
        errors = None if os.environ.get("TFDECOUPLE_TRACEBACK") else subprocess.PIPE
        python = python_process("-m", _MODULE, **environment)
        done = subprocess.run(**python, input=given, timeout=limit, check=False, stdout=subprocess.PIPE, stderr=errors)
        output, failure = done.stdout, _failure(done.returncode, (done.stderr or b"").decode("utf-8", "replace"))
    except subprocess.TimeoutExpired as expired:
        output, failure = expired.stdout or b"", ("time", f"not done after {limit:.0f} s")
    # An interrupted process may have written a part of its last line.
    results = [Result(**json.loads(line)) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    if failure:
        results.append(_failed(check, task, *failure))
    return results


def _failure(status: int, errors: str) -> tuple[str, str] | None:
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["it printed nothing"]
    if status == _MISTAKE:
        raise UserError(lines[-1])
    if status == -signal.SIGKILL:
        return "memory", "it was killed, most likely for want of memory"
    reason = f"it was ended by signal {-status} ({one_line(lines[-1])})" if status < 0 else one_line(lines[-1])
    return ("error", reason) if status else None


def _failed(check: Check, task: Task, kind: str, reason: str) -> Result:
    holds = False if check.promises or kind == "error" else None
    figures = {"failed": kind, "variant": task.variant.name}
    return Result(check.title, holds, f"{task.variant.name}: not measured: {reason}", _ADVICE[kind], figures)


def main() -> int:
    """Runs the check that standard input names."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        # Libraries print to standard output, too.
        os.dup2(2, 1)
        given = json.load(sys.stdin)
        check, request = CHECKS[given["check"]], Request(**given["request"])
        variant = next(each for each in VARIANTS if each.name == given["variant"]["name"])
        task = Task(request, variant, tuple(given["devices"]))
        start_tensorflow()
        from tfdecouple.training.strategy import make_strategy

        try:
            # Splits the CPU, which must come before anything runs.
            make_strategy(request.devices)
        except UserError as error:
            print(error, file=sys.stderr)
            return _MISTAKE
        for result in run_here(check, task):
            print(json.dumps(dataclasses.asdict(result)), file=results, flush=True)
    return 0


def run_here(check: Check, task: Task) -> Iterator[Result]:
    """Yields the results of a check in this process; an exception becomes the last of them."""
    try:
        yield from check.run(task)
    except Exception as error:
        if os.environ.get("TFDECOUPLE_TRACEBACK"):
            raise
        # TensorFlow's error, which is recognised by its name to do without the import.
        memory = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
        kind = "memory" if memory else "error"
        yield _failed(check, task, kind, f"{type(error).__name__}: {one_line(error, first=True)}")


if __name__ == "__main__":
    sys.exit(main())
