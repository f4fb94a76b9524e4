"""The checks of `doctor`, and the program that runs each check in a process of its own.

`python -P -m tfdecouple.doctor.check_runner` reads the name and the task of a check from standard input, and writes the
results to standard output, a line of JSON each. If a check fails, hangs or runs out of memory, the other checks go on.
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

from tfdecouple.doctor import device_checks, installation, measurements, round_trips
from tfdecouple.doctor.benchmark import COUNTING
from tfdecouple.doctor.result import DEFAULT, VARIANTS, Request, Result, Task
from tfdecouple.errors import UserError, one_line
from tfdecouple.runtime.process import python_process, start_tensorflow

# Environment variables that make idle threads sleep, instead of occupying a core while they wait for work.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_ADVICE = {
    "time": "see what else computes here (top, nvidia-smi), or give each check longer: --timeout",
    "memory": "see what else holds memory here (free, nvidia-smi), and end it, or take a machine with more",
    "error": "run this check alone (--only NAME) with TFDECOUPLE_TRACEBACK=1 in the environment; report what it prints",
}
# Exit status of a process that has fewer devices than the user asked for.
_TOO_FEW_DEVICES = 64
# Name of the module that runs as the process of a check.
_MODULE = "tfdecouple.doctor.check_runner"


class Check(NamedTuple):
    """A check of `doctor`, which is one part of the report.

    Attributes:
        title: the title of the part.
        run: a function that yields the results of a task; it runs in a process of its own.
        takes: a function that returns whether the check runs for a task; by default it runs for the default variant.
        promises: whether the check tests a promise; if not, too little time or memory is no failure.
        environment: environment variables of the process.
    """

    title: str
    run: Callable[[Task], Iterator[Result]]
    takes: Callable[[Task], bool] = lambda task: task.variant == DEFAULT
    promises: bool = True
    environment: dict[str, str] = {}


# All checks by name; the first check finds the devices that the following checks use.
CHECKS = {
    "build": Check("what is installed and what is there", installation.inspect_machine),
    "numerics": Check(
        "the same numbers on every device, in each precision", device_checks.compare_numbers, lambda task: True
    ),
    "exactness": Check("images come back from their codes", round_trips.try_round_trips),
    "devices": Check(
        "several devices train as one does (--devices N)",
        device_checks.compare_devices,
        lambda task: len(task.devices) > 1 and task.variant == DEFAULT,
    ),
    "speed": Check("how fast it is", measurements.measure_speed, lambda task: True, promises=False),
    "memory": Check(
        "memory of training, measured and calculated (--preset NAME)",
        measurements.measure_memory,
        # The memory that XLA takes is not calculated.
        lambda task: task.request.preset is not None and task.variant.name != "XLA",
        promises=False,
        environment=COUNTING,
    ),
}


def run_checks(request: Request, names: Iterable[str], progress: Callable[[str], Any]) -> dict[str, list[Result]]:
    """Returns the results of the named checks, after `build`, by the name of the check.

    Args:
        request: the options of the command `doctor`.
        names: the names of the checks.
        progress: a callback that receives a line before each process starts.

    Raises:
        UserError: if the machine has fewer devices than the user asked for.
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
                results[name] += run_apart(name, task)
        if name == "build":
            devices = installation.find_used_devices(request, results[name])
    return results


def run_apart(name: str, task: Task) -> list[Result]:
    """Returns the results of a check that runs in a process of its own; a failed process adds a result.

    Raises:
        UserError: if the machine has fewer devices than the user asked for.
    """
    check, limit = CHECKS[name], task.request.timeout
    python = python_process("-m", _MODULE, **PASSIVE, **check.environment)
    # With TFDECOUPLE_TRACEBACK the process writes to the user's own standard error, which shows its tracebacks.
    errors = None if os.environ.get("TFDECOUPLE_TRACEBACK") else subprocess.PIPE
    text = pickle.dumps((name, task))
    try:
        done = subprocess.run(**python, input=text, timeout=limit, check=False, stdout=subprocess.PIPE, stderr=errors)
        output, failure = done.stdout, _explain_end(done.returncode, (done.stderr or b"").decode("utf-8", "replace"))
    except subprocess.TimeoutExpired as expired:
        output, failure = expired.stdout or b"", ("time", f"not done after {limit:.0f} s")
    # Only whole lines are read, because a process that was stopped may have written a part of its last line.
    results = [Result(**json.loads(line)) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    return [*results, _make_failure(check, task, *failure)] if failure else results


def _explain_end(status: int, errors: str) -> tuple[str, str] | None:
    """Returns the kind and the reason of a failed process, from its exit status and its errors; None for success."""
    *_, last = ["it printed nothing", *(line.strip() for line in errors.splitlines() if line.strip())]
    if status == _TOO_FEW_DEVICES:
        raise UserError(last)
    if status == -signal.SIGKILL:
        return "memory", "it was killed, most likely for want of memory"
    reason = f"it was ended by signal {-status} ({one_line(last)})" if status < 0 else one_line(last)
    return ("error", reason) if status else None


def _make_failure(check: Check, task: Task, kind: str, reason: str) -> Result:
    holds = False if check.promises or kind == "error" else None
    figures = {"failed": kind, "variant": task.variant.name}
    return Result(check.title, holds, f"{task.variant.name}: not measured: {reason}", _ADVICE[kind], figures)


def main() -> int:
    """Returns the exit status of the program, after it has run the check that standard input names."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        # Libraries' output to standard output goes to standard error, which leaves the results alone.
        os.dup2(2, 1)
        name, task = pickle.load(sys.stdin.buffer)  # noqa: S301 - the parent process wrote it
        start_tensorflow()
        from tfdecouple.training.workers import make_strategy

        try:
            # Logical CPU devices must be made before TensorFlow computes anything.
            make_strategy(task.request.devices)
        except UserError as error:
            print(error, file=sys.stderr)
            return _TOO_FEW_DEVICES
        for result in _run_here(CHECKS[name], task):
            print(json.dumps(dataclasses.asdict(result)), file=results, flush=True)
    return 0


def _run_here(check: Check, task: Task) -> Iterator[Result]:
    """Yields the results of a check, run in this process; an exception becomes the last result."""
    try:
        yield from check.run(task)
    except Exception as error:
        if os.environ.get("TFDECOUPLE_TRACEBACK"):
            raise
        # TensorFlow's exception is compared by its name, so that this module need not import TensorFlow.
        kind = "memory" if type(error).__name__ in ("MemoryError", "ResourceExhaustedError") else "error"
        yield _make_failure(check, task, kind, f"{type(error).__name__}: {one_line(error, first=True)}")


if __name__ == "__main__":
    sys.exit(main())
