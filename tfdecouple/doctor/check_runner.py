"""The checks of the command `doctor`, their report, and the program that runs each check in a process of its own."""

import datetime
import json
import os
import pathlib
import pickle
import pkgutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tfdecouple.config import Config, preset_config
from tfdecouple.errors import UserError
from tfdecouple.storage.files import Facts
from tfdecouple.system.process import run_module, run_program, start_tensorflow

# Environment variables that make idle threads sleep, instead of occupying a core while they wait for work.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
# The phases of a model's use that `doctor` times: training, evaluation of bits/dim, encoding, decoding.
PHASES = ("train", "eval", "encode", "decode")
# The report's advice for a check whose process ran out of time, out of memory, or failed with another error.
_ADVICE = {
    "time": "see what else computes here (top, nvidia-smi), or give each check longer: --timeout",
    "memory": "see what else holds memory here (free, nvidia-smi), and end it, or take a machine with more",
    "error": "run this check alone (--only NAME) with TFDECOUPLE_TRACEBACK=1 in the environment; report what it prints",
}
_MODULE = "tfdecouple.doctor.check_runner"
# The run folder of the small model that the checks use: encoder, prior flow, and a flow of 3 levels for 16 x 16 images.
MODEL = pathlib.Path(__file__).parent / "model"
# Batch size that is timed with --quick, and batch size per device when several devices are timed together.
QUICK_BATCH = 16


class Variant(NamedTuple):
    """Options of training and inference that `doctor` checks and times, such as another precision."""

    name: str
    # The settings `NAME=VALUE`, as for `--set`, that select the variant, and the `PHASES` whose speed is measured.
    settings: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("train",)
    gradient: float = 1e-3  # largest allowed relative difference of a gradient from that in `numbers.npz`
    # Whether the variant is skipped on CPUs, where it would change nothing, and whether --quick includes it.
    gpu_only: bool = False
    in_quick: bool = False


# All variants (options of training and inference), in the order of the report; the first has the default options.
VARIANTS = (
    Variant("float32", phases=PHASES, in_quick=True),
    Variant("tf32", ("training.precision=tf32",), gradient=0.01, gpu_only=True, in_quick=True),
    Variant("bfloat16 nets", ("training.precision=mixed_bfloat16",), gradient=0.1, in_quick=True),
    Variant("recompute", ("training.memory=recompute",)),
    Variant("invert", ("training.memory=invert",)),
    Variant("XLA", ("training.jit_compile=true",), phases=PHASES),
)


class Task(NamedTuple):
    """The task of one process of `doctor`: the command's options, a variant, and the devices by TensorFlow's names."""

    preset: str | None = None  # None for the bundled small model
    settings: tuple[str, ...] = ()
    quick: bool = False
    timeout: float = 900.0
    requested: int | None = None  # count of devices that the user asks for
    variant: Variant = VARIANTS[0]
    devices: tuple[str, ...] = ("CPU:0",)


class CheckResult(NamedTuple):
    """The result of a check or measurement, one line of the report: its subject, the outcome, and the remedy."""

    what: str
    holds: bool | None  # whether the check succeeded; None if nothing was tested, as for a fact or a measurement
    message: str
    advice: str = ""
    figures: Facts = {}  # the numbers behind the message, plain values for JSON


class Check(NamedTuple):
    """A check of the command `doctor`; its results are the part of the report with the title `title`."""

    title: str
    run: str  # "MODULE:NAME" of a function of a `Task` that yields `CheckResult`s, for a module in `doctor/`
    # Whether the check runs once for each variant, and the least number of devices that it needs.
    every_variant: bool = False
    devices: int = 1
    # Whether the check fails if time or memory does not suffice; checks that only measure do not fail.
    promises: bool = True


# All checks by name, in the order of the report. "build" comes first: it finds the devices for the other checks.
CHECKS = {
    "build": Check("what is installed and what is there", "checks:inspect_machine"),
    "numerics": Check("the same numbers on every device, in each precision", "checks:compare_numbers", True),
    "exactness": Check("images are decoded exactly from their codes", "checks:try_round_trips"),
    "devices": Check("several devices train as one does (--devices N)", "checks:compare_devices", devices=2),
    "speed": Check("how fast it is", "checks:measure_speed", True, promises=False),
}


def make_doctor_config(task: Task, batch: int = QUICK_BATCH) -> Config:
    """Returns the config that `doctor` times: that of the preset or small model, with the settings of the variant."""
    config = preset_config(task.preset) if task.preset else Config.from_json(MODEL / "config.json")
    # With the preset's learning rate, training could diverge, because one batch is repeated.
    settings = ["training.learning_rate=1e-6", "training.micro_batches=1"]
    settings += [f"training.{name}={batch}" for name in ("batch_size", "evaluation_batch_size")]
    return config.override([*settings, *task.settings, *task.variant.settings])


def run_checks(task: Task, names: Iterable[str], progress: Callable[[str], object]) -> dict[str, list[CheckResult]]:
    """Runs "build" and the checks `names`; returns {name: its `CheckResult`s}; UserError if there are too few devices.

    The callback `progress` receives a line of text before each process starts.
    """
    devices: tuple[str, ...] = ("CPU:0",)
    results: dict[str, list[CheckResult]] = {}
    for name in [name for name in CHECKS if name == "build" or name in names]:
        results[name] = []
        for variant in VARIANTS if CHECKS[name].every_variant else VARIANTS[:1]:
            fits = (variant.in_quick or not task.quick) and (devices[0][:3] == "GPU" or not variant.gpu_only)
            if fits and len(devices) >= CHECKS[name].devices:
                progress(f"{name}: {CHECKS[name].title}, {variant.name}")
                results[name] += run_in_process(name, task._replace(variant=variant, devices=devices))
        if name == "build":
            # If the check "build" failed, the other checks try the CPU. Without GPUs, one CPU is used by default.
            facts = {"devices": ["CPU:0"], "gpus": []} | (results[name][0].figures if results[name] else {})
            devices = tuple(facts["devices"][: task.requested or (None if facts["gpus"] else 1)])
    return results


def run_in_process(name: str, task: Task) -> list[CheckResult]:
    """Runs the check `name` in a new process; returns its `CheckResult`s, and one more if the process fails."""
    check, results = CHECKS[name], list[CheckResult]()
    status, last = run_module(
        _MODULE,
        on_line=lambda line: results.append(CheckResult(**json.loads(line))),
        limit=task.timeout,
        given=pickle.dumps((name, task)),
        **PASSIVE,
    )
    if name == "build" and status == 2:
        # The check "build" runs first; it ends with status 2 if the user asks for more devices than there are.
        raise UserError(last)
    if status != 0:
        if status is None:
            kind, reason = "time", f"no result for {task.timeout:.0f} s"
        elif status == -signal.SIGKILL or "out of memory" in last:
            kind, reason = "memory", "it was killed, most likely for want of memory" if status < 0 else last
        else:
            kind, reason = "error", f"it was ended by signal {-status} ({last})" if status < 0 else last
        variant, holds = task.variant.name, False if check.promises or kind == "error" else None
        message, figures = f"{variant}: not measured: {reason}", {"failed": kind, "variant": variant}
        results.append(CheckResult(check.title, holds, message, _ADVICE[kind], figures))
    return results


def make_json(task: Task, results: Mapping[str, Sequence[CheckResult]]) -> Facts:
    """Returns the report of `doctor` as a dict of plain values for JSON; docs/results/doctor.md lists the fields."""
    return {
        # The version of this format, raised when a field changes its meaning or is removed.
        "schema": 2,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "holds": all(result.holds is not False for listed in results.values() for result in listed),
        "request": {**dict(zip(Task._fields[:4], task, strict=False)), "devices": task.requested},
        "checks": {name: [result._asdict() for result in listed] for name, listed in results.items()},
    }


def make_text(results: Mapping[str, Sequence[CheckResult]]) -> Iterator[str]:
    """Yields the lines of `doctor`'s report: the results of each check, then the failures with advice."""
    failures, count, marks = [], 0, {True: "holds", False: "FAILS", None: ""}
    for name, listed in results.items():
        yield f"\n{name}: {CHECKS[name].title}"
        width = max([len(result.what) for result in listed], default=0)
        for result in listed:
            first = f"  {marks[result.holds]:5}  {result.what:{width}}  "
            yield textwrap.fill(result.message, 120, initial_indent=first, subsequent_indent=" " * len(first))
            count += result.holds is not None
            if result.holds is False:
                failures.append(f"{name}, {result.what}: {result.message}. What to do: {result.advice}")
    yield f"\n{len(failures)} of {count} tests failed:" if failures else f"\nAll {count} tests passed."
    yield from (textwrap.fill(line, 120, initial_indent="  ", subsequent_indent="    ") for line in failures)


def main() -> int:
    """Runs the check whose name and `Task` are pickled in standard input; prints its results as JSON; returns 0."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        # What libraries print to standard output goes to standard error, so that it does not mix with the results.
        os.dup2(2, 1)
        name, task = pickle.load(sys.stdin.buffer)  # the parent process wrote it
        start_tensorflow()
        from tfdecouple.training.workers import make_strategy

        # TensorFlow can make logical CPU devices, as --devices needs without GPUs, only before its first computation.
        make_strategy(task.requested)
        for result in pkgutil.resolve_name(f"tfdecouple.doctor.{CHECKS[name].run}")(task):
            print(json.dumps(result._asdict()), file=results, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
