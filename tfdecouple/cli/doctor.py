"""`python -m tfdecouple doctor`: whether every promise holds on this machine, and how fast it is."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError

EXIT_FAILS = 5


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = arguments.command(
        commands,
        "doctor",
        "say whether every promise holds on this machine, and how fast it is",
        "Checks run in processes of their own; nothing is written but with --out, and temporary files. The "
        f"exit status is 0 where all promises hold, and {EXIT_FAILS} where one does not; the report says what to do. "
        "docs/gpu.md explains it.",
    )
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="write doctor.json and doctor.txt there")
    parser.add_argument("--quick", action="store_true", help="only what takes about a minute on two CPU cores")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="time this one, and compare its memory with the calculated; default a small model, without memory",
    )
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="change an option, as for train.py"
    )
    parser.add_argument(
        "--devices", metavar="N", type=int, help="use N GPUs instead of all; without GPUs, try N logical CPU devices"
    )
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="of the checks: numerics, speed, ...")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=900, help="end a check's process then (default 900)"
    )
    parser.add_argument(
        "--recommend",
        action="store_true",
        help="print the recommended --set options alone, and all else to standard error",
    )


def run(options: argparse.Namespace) -> int:
    """Checks this machine.

    Raises:
        UserError: for an option of an impossible value, or more devices than there are.
    """
    from tfdecouple.doctor.checks import CHECKS, run_checks
    from tfdecouple.doctor.measurements import config_of
    from tfdecouple.doctor.report import as_json, as_text, failures, recommend
    from tfdecouple.doctor.result import Request
    from tfdecouple.errors import nearest
    from tfdecouple.storage.files import write_json, write_text

    arguments.at_least(options, "devices", 1)
    if not options.timeout > 0:
        raise UserError(f"--timeout is {options.timeout}; it must be above 0")
    for name in options.only:
        if name not in CHECKS:
            raise UserError(f"there is no check {name!r}; there are {', '.join(CHECKS)}{nearest(name, [*CHECKS])}")
    request = Request(
        preset=options.preset,
        settings=tuple(options.set),
        quick=options.quick,
        devices=options.devices,
        timeout=options.timeout,
    )
    config_of(request)
    if options.out is not None:
        # Fail before minutes of work where nothing can be written.
        write_text(options.out / "doctor.txt", "not done yet\n")
    output = sys.stderr if options.recommend else sys.stdout
    begun = time.monotonic()

    def progress(text: str) -> None:
        print(f"[{time.monotonic() - begun:4.0f} s] {text}", file=output, flush=True)

    results = run_checks(request, options.only or CHECKS, progress)
    recommendation = recommend(request, results)
    text = as_text(request, results, recommendation)
    print(text, file=output, flush=True)
    if options.out is not None:
        write_json(options.out / "doctor.json", as_json(request, results, recommendation))
        write_text(options.out / "doctor.txt", text + "\n")
        print(f"\n{options.out / 'doctor.json'}", file=output)
    if options.recommend:
        print(recommendation.options())
    return EXIT_FAILS if failures(results) else 0
