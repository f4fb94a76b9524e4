"""`python -m tfdecouple doctor`: tests whether this machine computes correctly, and measures speed."""

import argparse
import pathlib
import time
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError, nearest
from tfdecouple.runtime.devices import MOST_DEVICES

# Exit status if a check fails, for example because images are not reconstructed exactly on this machine.
EXIT_FAILS = 5


def add_parser(commands: Any) -> None:
    """Adds the command `doctor` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "doctor",
        "test whether this machine computes correctly, and how fast it is",
        "Each check runs in a process of its own. Nothing is written but temporary files and the report of --out. The "
        f"exit status is 0 if every test passes, and {EXIT_FAILS} if one fails; the report says what to do. "
        "docs/gpu.md explains it.",
    )
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="write doctor.json and doctor.txt there")
    parser.add_argument("--quick", action="store_true", help="run only what takes some minutes on two CPU cores")
    text = "time this preset; default a small model"
    parser.add_argument("--preset", metavar="NAME", help=text)
    text = "change an option, as for train.py"
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help=text)
    text = "use N GPUs instead of all; without GPUs, try N logical CPU devices"
    arguments.add_number(parser, "--devices", None, text, 1, MOST_DEVICES)
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="run these checks only, such as numerics")
    arguments.add_number(parser, "--timeout", 900, "seconds after which a check is ended", 1, 10**6)


def run(options: argparse.Namespace) -> int:
    """Runs the command `doctor`: runs checks, prints and writes a report; returns 0, or EXIT_FAILS if a check fails."""
    from tfdecouple.doctor.check_runner import CHECKS, Task, make_json, make_text, run_checks
    from tfdecouple.doctor.speed import make_doctor_config
    from tfdecouple.storage.files import write_json, write_text

    for name in options.only:
        if name not in CHECKS:
            raise UserError(f"there is no check {name!r}; there are {', '.join(CHECKS)}{nearest(name, [*CHECKS])}")
    task = Task(options.preset, tuple(options.set), options.quick, options.timeout, options.devices)
    # A wrong preset, option or --out raises its error here, before the checks take minutes.
    make_doctor_config(task)
    if options.out is not None:
        write_text(options.out / "doctor.txt", "not done yet\n")
    start = time.monotonic()

    def report_progress(text: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)

    results = run_checks(task, options.only or CHECKS, report_progress)
    text, report = "\n".join(make_text(results)), make_json(task, results)
    print(text, flush=True)
    if options.out is not None:
        write_json(options.out / "doctor.json", report)
        write_text(options.out / "doctor.txt", text + "\n")
        print(f"\n{options.out / 'doctor.json'}")
    return 0 if report["holds"] else EXIT_FAILS
