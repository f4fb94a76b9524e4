"""The report of `doctor`: results of checks as text and as `doctor.json`, and recommended options of training."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# The phases of a model's use that `doctor` can time: training, evaluation of bits/dim, encoding, decoding, sampling.
PHASES = ("train", "eval", "encode", "decode", "sample")
# Version of `doctor.json`, raised when a field changes its meaning or is removed.
SCHEMA = 1
# A variant (training options) is recommended if it trains at least this many times as fast as the default options.
GAIN = 1.05
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
    Variant("float32", phases=PHASES[:4], in_quick=True),
    Variant("tf32", ("training.precision=tf32",), gradient=0.01, gpu_only=True, in_quick=True),
    Variant("bfloat16 nets", ("training.precision=mixed_bfloat16",), gradient=0.1, in_quick=True),
    Variant("recompute", ("training.memory=recompute",)),
    Variant("invert", ("training.memory=invert",)),
    Variant("XLA", ("training.jit_compile=true",), phases=PHASES[:4]),
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


def recommend_settings(results: Results) -> dict[str, list[str]]:
    """Returns a dict with "settings", the options of training to change on this machine, and "why", the reasons.

    For each option the fastest setting that passed the check "numerics" is chosen, if it trains at least `GAIN` times
    as fast as the default. The settings are texts `NAME=VALUE`; "why" has a sentence on each variant that was timed.
    """
    rates: dict[str, dict[int, float]] = {}
    for figures in (result.figures for result in results.get("speed", ())):
        if figures.get("phase") == "train" and figures["devices"] == 1:
            rates.setdefault(figures["variant"], {})[figures["batch"]] = figures["images_per_s"]
    compared = {(result.figures.get("variant"), result.holds) for result in results.get("numerics", ())}
    best: dict[str, tuple[float, str]] = {}
    why = []
    for variant in VARIANTS[1:]:
        common = rates.get(variant.name, {}).keys() & rates.get(DEFAULT.name, {}).keys()
        if not common:
            continue
        gain = rates[variant.name][max(common)] / rates[DEFAULT.name][max(common)]
        # A failed result that names no variant (training options) counts against all variants.
        is_wrong = bool({(variant.name, False), (None, False)} & compared)
        is_right = not is_wrong and (variant.name, True) in compared
        verdict = "are wrong here" if is_wrong else "are right" if is_right else "were not compared"
        why.append(f"{variant.name}: {gain:.2f} times as fast as {DEFAULT.name}; its numbers {verdict}")
        (setting,) = variant.settings
        option = setting.partition("=")[0]
        if is_right and gain >= max(GAIN, best.get(option, (0, ""))[0]):
            best[option] = gain, setting
    if not rates:
        why.append("training was not timed: nothing to choose from")
    return {"settings": [setting for _, setting in best.values()], "why": why}


def format_settings(settings: Sequence[str]) -> str:
    """Returns settings such as "model.alpha=0.5" as text for a command line: `--set NAME=VALUE --set ...`."""
    return " ".join(f"--set {shlex.quote(setting)}" for setting in settings)


def find_failures(results: Results) -> list[tuple[str, Result]]:
    """Returns a list of pairs (name of the check, its `Result`), one for each result that failed (`holds` is False)."""
    return [(name, result) for name, each in results.items() for result in each if result.holds is False]


def make_json(request: Request, results: Results, recommendation: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Returns the report of `doctor` as a dict of plain values for JSON; docs/gpu.md lists the fields."""
    return {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "holds": not find_failures(results),
        "request": dataclasses.asdict(request),
        "checks": {name: [dataclasses.asdict(result) for result in each] for name, each in results.items()},
        "recommendation": recommendation,
    }


def make_text(
    request: Request, results: Results, titles: Mapping[str, str], recommendation: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yields the lines of `doctor`'s report: results, recommendation, failures; `titles` is {check's name: title}."""
    for name, each in results.items():
        yield f"\n{name}: {titles[name]}"
        width = max([len(result.what) for result in each], default=0)
        for result in each:
            first = f"  {_MARKS[result.holds]:5}  {result.what:{width}}  "
            yield textwrap.fill(result.message, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
    yield "\nrecommendation"
    yield from (f"  {line}" for line in recommendation["why"])
    preset = f" --preset {request.preset}" if request.preset else ""
    options = format_settings([*request.settings, *recommendation["settings"]])
    yield f"  python train.py{preset} {options or '(the defaults)'}"
    count = sum(result.holds is not None for each in results.values() for result in each)
    failures = find_failures(results)
    if not failures:
        yield f"\nAll {count} promises that were tried hold here."
    else:
        yield f"\n{len(failures)} of {count} promises do not hold here:"
    for name, result in failures:
        line = f"{name}, {result.what}: {result.message}. What to do: {result.advice}"
        yield textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ")
