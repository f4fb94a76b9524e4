"""This project beside a PyTorch program of the same arithmetic, in turn, on the same cores.

    python benchmarks/compare.py --yardstick yardstick.py --yardstick-python /path/to/torch/bin/python
    python benchmarks/compare.py --yardstick yardstick.py --phases train16:mixed_bfloat16,train16:remat

The yardstick is a program with phases trainN, evalN, decodeN and gemm that prints one JSON object in its last line,
like `throughput.py`; --yardstick-python is an interpreter that has torch. Each round runs every phase once of ours and
once of theirs, A B A B, each in a process of its own with the same number of threads and passive waiting, and before
each pair measures how fast the machine multiplies matrices. Figures of a shared machine mean little, ratios of
neighbours more: the table has the ratio of each round and the ratio of the medians.

The yardstick has neither encoder nor prior and neither averages weights nor draws noise. Its eval is the forward
direction, so our eval and encode are compared with it, and our decode and sample with its decode.
`PHASE:mixed_bfloat16` and `PHASE:remat` compare this project with itself: that training against training in float32
without it.

The limit is that of a matrix product of 2048 by 2048 in float32, in images of the CIFAR-10 preset, the best of all that
were measured: noise makes a limit only smaller. A rate above it says that the machine was too busy to measure it (or
that a convolution took fewer multiplications), and is not counted as having come close to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import run_json, run_throughput, table, write_json  # noqa: E402
from benchmarks.throughput import parse_phase  # noqa: E402
from tfdecouple.config import PRECISIONS  # noqa: E402
from tfdecouple.doctor.machine import machine  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program  # noqa: E402

# Our kind of phase: the yardstick's, the ratio to reach, and the part of the limit that is enough where it is less.
COUNTERPARTS = {
    "train": ("train", 1.45, 0.85),
    "eval": ("eval", 1.9, 0.85),
    "encode": ("eval", 1.9, 0.85),
    "decode": ("decode", 2.1, 0.85),
    "sample": ("decode", 2.1, 0.85),
}
# Variants of our own training, and how many times as fast as float32 without them they should be.
VARIANTS = {"mixed_bfloat16": (("--precision", "mixed_bfloat16"), 1.25), "remat": (("--remat",), None)}
PHASES = "train16,eval16,encode16,decode16,sample16"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A phase against its counterpart.

    Attributes:
        name: of the phase, as it was asked for.
        phase: ours.
        arguments: of our program.
        counterpart: the yardstick's phase; None for our own without `arguments`.
        goal: ratio to reach; None for none.
        enough: part of the limit that is as good as the goal.
    """

    name: str
    phase: str
    arguments: tuple[str, ...]
    counterpart: str | None
    goal: float | None
    enough: float | None

    @property
    def limit(self) -> str:
        """What the yardstick calls the limit."""
        return f"limit_{'train' if self.phase.startswith('train') else 'eval'}_images_per_s"


def main() -> int:
    """Compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yardstick", type=pathlib.Path, help="the PyTorch program")
    parser.add_argument("--yardstick-python", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--phases", default=PHASES, help=f"default {PHASES}")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--reps", type=int, default=3, help="repetitions in each process (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of both (default 2)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of our training (default float32)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures there")
    options = parser.parse_args()
    return run_program(lambda: compare(options))


def parse_comparison(text: str, precision: str = "float32") -> Comparison:
    """Returns what `PHASE` or `PHASE:VARIANT` compares.

    Raises:
        UserError: for an unknown phase or variant.
    """
    phase, _, variant = text.partition(":")
    kind, batch = parse_phase(phase)
    if kind not in COUNTERPARTS:
        raise UserError(f"the phase {phase!r} has no counterpart; there are {', '.join(COUNTERPARTS)}")
    if variant:
        if variant not in VARIANTS or kind != "train":
            raise UserError(f"{text!r} cannot be compared; there are trainN:{' and trainN:'.join(VARIANTS)}")
        arguments, goal = VARIANTS[variant]
        return Comparison(text, phase, arguments, None, goal, None)
    counterpart, goal, enough = COUNTERPARTS[kind]
    arguments = ("--precision", precision) if kind == "train" else ()
    return Comparison(text, phase, arguments, f"{counterpart}{batch}", goal, enough)


def compare(options: argparse.Namespace) -> int:
    """Runs the rounds and prints the table."""
    comparisons = [parse_comparison(text, options.precision) for text in options.phases.split(",") if text]
    for name in ("rounds", "reps", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if any(comparison.counterpart for comparison in comparisons) and not options.yardstick:
        raise UserError("--yardstick is missing: the path of the PyTorch program to compare with")
    if options.yardstick and not options.yardstick.is_file():
        raise UserError(f"--yardstick: there is no file {options.yardstick}")
    common = ("--threads", str(options.threads), "--reps", str(options.reps))
    described = machine()
    print(json.dumps(described), flush=True)

    def yardstick(phase: str) -> dict[str, Any]:
        command = [options.yardstick_python, str(options.yardstick), "--phase", phase, *common]
        # Ours, if there is one, holds packages of another environment.
        return run_json(command, drop=("PYTHONPATH",))

    gemm: list[dict[str, Any]] = []
    pairs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {each.name: [] for each in comparisons}
    for number in range(1, options.rounds + 1):
        for each in comparisons:
            if options.yardstick:
                gemm.append(yardstick("gemm"))
            ours = run_throughput(each.phase, *common, *each.arguments)
            theirs = yardstick(each.counterpart) if each.counterpart else run_throughput(each.phase, *common)
            pairs[each.name].append((ours, theirs))
            rates = ours["images_per_s"], theirs["images_per_s"]
            print(f"round {number}, {each.name}: {rates[0]:.2f} and {rates[1]:.2f} images/s", file=sys.stderr)
    results = [judge(each, pairs[each.name], gemm) for each in comparisons]
    print(report(results))
    figures = {"machine": described, "threads": options.threads, "gemm": gemm, "results": results, "runs": pairs}
    write_json(options.json, figures)
    return 0


def judge(
    comparison: Comparison, pairs: list[tuple[dict[str, Any], dict[str, Any]]], gemm: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the medians of both sides, their ratios, the part of the limit, and whether the goal is met."""

    def medians(name: str) -> list[float]:
        return [statistics.median(pair[side][name] for pair in pairs) for side in (0, 1)]

    rates, cpus, memory = medians("images_per_s"), medians("cpu_s_per_image"), medians("peak_rss_mib")
    ratio = rates[0] / rates[1]
    limit = max((each[comparison.limit] for each in gemm), default=None)
    part = rates[0] / limit if limit else None
    met = None
    if comparison.goal:
        enough = bool(comparison.enough and part and comparison.enough <= part <= 1)
        met = ratio >= comparison.goal or enough
    return {
        "phase": comparison.name,
        "against": comparison.counterpart or "float32",
        "ours_images_per_s": rates[0],
        "theirs_images_per_s": rates[1],
        "ratio": ratio,
        "ratios": [ours["images_per_s"] / theirs["images_per_s"] for ours, theirs in pairs],
        "ratio_of_best": max(p[0]["best_images_per_s"] for p in pairs) / max(p[1]["best_images_per_s"] for p in pairs),
        "cpu_ratio": cpus[1] / cpus[0],
        "ours_cpu_s_per_image": cpus[0],
        "theirs_cpu_s_per_image": cpus[1],
        "ours_peak_rss_mib": memory[0],
        "theirs_peak_rss_mib": memory[1],
        "part_of_limit": part,
        "goal": comparison.goal,
        "enough_of_limit": comparison.enough,
        "met": met,
    }


def report(results: list[dict[str, Any]]) -> str:
    """Returns the table of the results."""
    header = ["phase", "against", "images/s", "theirs", "ratio", "of each round", "CPU ratio"]
    header += ["MiB", "theirs", "of the GEMM limit", "goal", "met"]
    rows = []
    for each in results:
        goal = None
        if each["goal"]:
            enough = each["enough_of_limit"]
            goal = f"{each['goal']}" + (f" or {enough:.0%} of the limit" if enough else "")
        part = each["part_of_limit"]
        rows.append(
            [
                each["phase"],
                each["against"],
                float(each["ours_images_per_s"]),
                float(each["theirs_images_per_s"]),
                f"{each['ratio']:.2f}",
                " ".join(f"{ratio:.2f}" for ratio in each["ratios"]),
                f"{each['cpu_ratio']:.2f}",
                round(each["ours_peak_rss_mib"]),
                round(each["theirs_peak_rss_mib"]),
                None if part is None else f"{part:.0%}",
                goal,
                each["met"],
            ]
        )
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
