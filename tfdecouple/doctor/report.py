"""The report of `doctor`: results of checks as text and as `doctor.json`."""

from __future__ import annotations

import dataclasses
import datetime
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# The phases of a model's use that `doctor` times: training, evaluation of bits/dim, encoding, decoding.
PHASES = ("train", "eval", "encode", "decode")
# Version of `doctor.json`, raised when a field changes its meaning or is removed.
SCHEMA = 2
_WIDTH = 120
_MARKS = {True: "holds", False: "FAILS", None: ""}


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a check or measurement: one line of the report.

    Attributes:
        what: the subject of the check, in a few words.
        holds: whether the check succeeded; None if nothing was tested, as for a fact or a measurement.
        message: the outcome in words.
        advice: the remedy if the check failed.
        figures: the numbers behind the message, as plain values for JSON.
    """

    what: str
    holds: bool | None
    message: str
    advice: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


Results = Mapping[str, Sequence[Result]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """Options of training and inference that `doctor` checks and times, such as another precision.

    Attributes:
        name: the variant's name in the report.
        settings: the settings `NAME=VALUE`, as for `--set`, that select the variant.
        phases: the phases, entries of `PHASES`, whose speed is measured.
        gradient: the largest allowed relative difference of a gradient from the gradient in `numbers.npz`.
        gpu_only: whether the variant is skipped on CPUs, where it would change nothing.
        in_quick: whether `--quick` includes the variant.
    """

    name: str
    settings: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("train",)
    gradient: float = 1e-3
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
DEFAULT = VARIANTS[0]


@dataclasses.dataclass(frozen=True)
class Request:
    """The command-line options of `doctor` that its checks need; without a preset the bundled small model is timed."""

    preset: str | None = None
    settings: tuple[str, ...] = ()
    quick: bool = False
    devices: int | None = None
    timeout: float = 900.0


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of one process of `doctor`: options of training, and TensorFlow's names of devices, such as "GPU:0"."""

    request: Request
    variant: Variant = DEFAULT
    devices: tuple[str, ...] = ("CPU:0",)


def find_failures(results: Results) -> list[tuple[str, Result]]:
    """Returns a list of pairs (name of the check, its `Result`), one for each result that failed (`holds` is False)."""
    return [(name, result) for name, each in results.items() for result in each if result.holds is False]


def make_json(request: Request, results: Results) -> dict[str, Any]:
    """Returns the report of `doctor` as a dict of plain values for JSON; docs/gpu.md lists the fields."""
    return {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "holds": not find_failures(results),
        "request": dataclasses.asdict(request),
        "checks": {name: [dataclasses.asdict(result) for result in each] for name, each in results.items()},
    }


def make_text(results: Results, titles: Mapping[str, str]) -> Iterator[str]:
    """Yields the lines of `doctor`'s report: results, then failures; `titles` is {check's name: title}."""
    for name, each in results.items():
        yield f"\n{name}: {titles[name]}"
        width = max([len(result.what) for result in each], default=0)
        for result in each:
            first = f"  {_MARKS[result.holds]:5}  {result.what:{width}}  "
            yield textwrap.fill(result.message, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
    count = sum(result.holds is not None for each in results.values() for result in each)
    failures = find_failures(results)
    few = f"{len(failures)} of {count} promises do not hold here:"
    yield f"\n{few}" if failures else f"\nAll {count} promises that were tried hold here."
    for name, result in failures:
        line = f"{name}, {result.what}: {result.message}. What to do: {result.advice}"
        yield textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ")
