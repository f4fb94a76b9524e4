"""Compares the speed of this project with that of a PyTorch program of the same arithmetic, on the same cores.

    python benchmarks/compare.py --yardstick yardstick.py --yardstick-python /path/to/torch/bin/python
    python benchmarks/compare.py --yardstick FILE --form= --form=--channels-last --form="--channels-last --compile"
    python benchmarks/compare.py --phases train16:mixed_bfloat16,train16:invert/recompute

The PyTorch program is called the yardstick. A phase is a kind of work and a number of images in a batch: train16 trains
on batches of 16 images. The yardstick has the phases trainN, evalN, decodeN and gemm (a matrix product), and prints one
JSON object in its last line, as `throughput.py` does. --yardstick-python is an interpreter that has torch. A form is a
set of flags of the yardstick. In each round, for each phase, the program measures how fast the machine multiplies
matrices, then runs the phase once with this project and once with each form of the yardstick. Each run is a process of
its own, with the same number of threads, and idle threads sleep. The form with the best median is compared. On a shared
machine ratios of neighbouring runs mean more than rates, so the table has the ratio of each round and of the medians.

The yardstick has no encoder and no prior, averages no weights and draws no noise. The yardstick's eval phase is the
forward direction of the flow; this project's eval and encode are compared with that phase, and this project's decode
and sample with the yardstick's decode. `PHASE:mixed_bfloat16`, `PHASE:recompute` and `PHASE:invert` compare this
project with itself: training with this precision or this `training.memory`, by which the backward pass gets
activations, against training in float32 with `keep`.

The limit is the rate of images that the speed of a float32 matrix product of 2048 by 2048 allows. The program takes
the largest of all measured limits, because other work on the machine can only make a measured limit smaller.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import statistics
import sys
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import make_table, run_json, run_throughput, write_json  # noqa: E402
from benchmarks.throughput import parse_phase  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.devices import describe_machine, list_instruction_sets  # noqa: E402
from tfdecouple.runtime.process import run_program  # noqa: E402

# {kind of work of this project, such as encode: the work of the PyTorch program that is compared with it}.
COUNTERPARTS = {"train": "train", "eval": "eval", "encode": "eval", "decode": "decode", "sample": "decode"}
# Arguments of `throughput.py` for each way of training that --phases can name after the phase, as in train16:invert.
VARIANTS = {
    "mixed_bfloat16": ("--precision", "mixed_bfloat16"),
    "recompute": ("--memory", "recompute"),
    "invert": ("--memory", "invert"),
}
PHASES = "train16,eval16,encode16,decode16,sample16"

# One round: {measurement: value} of this project, and {description: {measurement: value}} of its competitors.
Round = tuple[dict[str, Any], dict[str, dict[str, Any]]]


class Comparison(NamedTuple):
    """Work of this project that is timed, such as train16 (training on 16 images), and the work it is compared with."""

    # Text of the comparison in --phases, such as "train16:recompute", and arguments of `throughput.py`.
    name: str
    phase: str
    arguments: tuple[str, ...]
    # The argument --phase of the PyTorch program; None if this project is compared with itself.
    counterpart: str | None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yardstick", type=pathlib.Path, help="the PyTorch program")
    parser.add_argument("--yardstick-python", default=sys.executable, help="a Python interpreter that has torch")
    parser.add_argument("--form", action="append", default=[], help="flags of the yardstick; may be repeated")
    parser.add_argument("--phases", default=PHASES, help=f"phases to compare (default {PHASES})")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of measurements (default 3)")
    parser.add_argument("--reps", type=int, default=3, help="repetitions in each process (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each program (default 2)")
    parser.add_argument("--json", type=pathlib.Path, help="write all measurements to this file")
    options = parser.parse_args()
    return run_program(lambda: run_rounds(options))


def parse_comparison(text: str) -> Comparison:
    """Returns the `Comparison` that a text in --phases describes, such as "encode16" or "train16:recompute"."""
    phase, _, variant = text.partition(":")
    kind, batch = parse_phase(phase)
    if kind not in COUNTERPARTS:
        raise UserError(f"the phase {phase!r} has no counterpart; there are {', '.join(COUNTERPARTS)}")
    if not variant:
        arguments = ("--precision", "float32") if kind == "train" else ()
        return Comparison(text, phase, arguments, f"{COUNTERPARTS[kind]}{batch}")
    if variant not in VARIANTS or kind != "train":
        raise UserError(f"{text!r} cannot be compared; there are trainN:{' and trainN:'.join(VARIANTS)}")
    return Comparison(text, phase, VARIANTS[variant], None)


def run_rounds(options: argparse.Namespace) -> int:
    """Times this project and the PyTorch program in --rounds rounds; prints a table after each; returns status 0."""
    comparisons = [parse_comparison(text) for text in options.phases.split(",") if text]
    if any(comparison.counterpart for comparison in comparisons) and not options.yardstick:
        raise UserError("--yardstick is missing: the path of the PyTorch program to compare with")
    if options.yardstick and not options.yardstick.is_file():
        raise UserError(f"--yardstick: there is no file {options.yardstick}")
    common = ("--threads", str(options.threads), "--reps", str(options.reps))
    machine = {**describe_machine(), "instructions": list_instruction_sets()}
    print(json.dumps(machine), flush=True)

    def run_yardstick(phase: str, form: str = "") -> dict[str, Any]:
        command = [options.yardstick_python, str(options.yardstick), "--phase", phase, *common, *shlex.split(form)]
        # PYTHONPATH is dropped, because its packages are for this interpreter and can fail in the PyTorch program's.
        return run_json(command, drop=("PYTHONPATH",))

    gemm: list[dict[str, Any]] = []
    runs: dict[str, list[Round]] = {comparison.name: [] for comparison in comparisons}
    for number in range(1, options.rounds + 1):
        for comparison in comparisons:
            if options.yardstick:
                gemm.append(run_yardstick("gemm"))
            ours = run_throughput(comparison.phase, *common, *comparison.arguments)
            if comparison.counterpart:
                forms = options.form or [""]
                theirs = {
                    f"{comparison.counterpart} {form}".strip(): run_yardstick(comparison.counterpart, form)
                    for form in forms
                }
            else:
                theirs = {"float32": run_throughput(comparison.phase, *common)}
            runs[comparison.name].append((ours, theirs))
            rates = {name: round(run["images_per_s"], 2) for name, run in {"ours": ours, **theirs}.items()}
            print(f"round {number}, {comparison.name}, images/s: {rates}", file=sys.stderr)
        # Results are written after each round, so that an interrupted program keeps the finished rounds.
        results = [summarize_rounds(comparison, runs[comparison.name], gemm) for comparison in comparisons]
        measured = {"machine": machine, "threads": options.threads, "gemm": gemm, "results": results, "runs": runs}
        write_json(options.json, measured)
        print(render_results(results), flush=True)
    return 0


def summarize_rounds(comparison: Comparison, rounds: list[Round], gemm: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a dict: medians over `rounds` for this project and for its fastest competitor, and ratios of the two.

    The medians are of images/s, CPU seconds and memory. A competitor is the PyTorch program with some flags, or this
    project with other options. `gemm` has measurements of matrix products, which limit the speed.
    """

    def median(runs: list[dict[str, Any]], name: str) -> float:
        return statistics.median(run[name] for run in runs)

    ours = [ours for ours, _ in rounds]
    forms = {name: [theirs[name] for _, theirs in rounds] for name in rounds[0][1]}
    against = max(forms, key=lambda name: median(forms[name], "images_per_s"))
    theirs = forms[against]
    limit = f"limit_{'train' if comparison.phase.startswith('train') else 'eval'}_images_per_s"
    names = ("images_per_s", "cpu_s_per_image", "peak_rss_mib")
    rate = median(ours, "images_per_s")
    return {
        "phase": comparison.name,
        "against": against,
        **{f"ours_{name}": median(ours, name) for name in names},
        **{f"theirs_{name}": median(theirs, name) for name in names},
        "forms_images_per_s": {name: median(runs, "images_per_s") for name, runs in forms.items()},
        "ratio": rate / median(theirs, "images_per_s"),
        "ratios": [our["images_per_s"] / their["images_per_s"] for our, their in zip(ours, theirs, strict=True)],
        "cpu_ratio": median(theirs, "cpu_s_per_image") / median(ours, "cpu_s_per_image"),
        "part_of_limit": rate / max(float(product[limit]) for product in gemm) if gemm else None,
    }


def render_results(results: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of speeds, ratios and memory, with a row for each dict from `summarize_rounds`."""
    header = ["phase", "against", "images/s", "theirs", "ratio", "of each round", "CPU ratio", "MiB", "theirs"]
    rows = [
        [
            result["phase"],
            result["against"],
            float(result["ours_images_per_s"]),
            float(result["theirs_images_per_s"]),
            f"{result['ratio']:.2f}",
            " ".join(f"{ratio:.2f}" for ratio in result["ratios"]),
            f"{result['cpu_ratio']:.2f}",
            round(result["ours_peak_rss_mib"]),
            round(result["theirs_peak_rss_mib"]),
            "" if result["part_of_limit"] is None else f"{result['part_of_limit']:.0%}",
        ]
        for result in results
    ]
    return make_table([*header, "of the GEMM limit"], rows)


if __name__ == "__main__":
    sys.exit(main())
