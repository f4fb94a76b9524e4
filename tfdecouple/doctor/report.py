"""The report of `doctor`: a table for people, `doctor.json` (docs/gpu.md lists its fields), and what to train with."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfdecouple.doctor.checks import CHECKS
from tfdecouple.doctor.installation import used_devices
from tfdecouple.doctor.measurements import config_of
from tfdecouple.doctor.result import DEFAULT, VARIANTS, Request, Result, Variant
from tfdecouple.networks.costs import fewest_micro_batches, not_counted
from tfdecouple.runtime.memory import shown_bytes

Results = Mapping[str, Sequence[Result]]

# Raised when a field changes its meaning or goes.
SCHEMA = 1
# A smaller gain is not worth another option.
GAIN = 1.05
# Settings that save memory at the cost of time, in the order in which they are tried where nothing else fits.
SAVING: tuple[list[str], ...] = ([], ["training.memory=recompute"], ["training.memory=invert"])
# The share of a device's memory that TensorFlow and gaps leave to training.
USABLE = 0.9
_WIDTH = 120
_MARKS = {True: "holds", False: "FAILS", None: ""}


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What to train with, and why.

    Attributes:
        settings: `NAME=VALUE` for `--set`; empty where the defaults are the best.
        environment: `NAME=VALUE` of variables.
        why: sentences.
    """

    settings: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

    def options(self) -> str:
        """Returns the settings for a command line: `--set NAME=VALUE ...`."""
        return " ".join(f"--set {setting}" for setting in self.settings)


def recommend(request: Request, results: Results) -> Recommendation:
    """Returns the variants that train faster than the default with the right numbers, and micro-batches that fit."""
    gains = _gains(results.get("speed", ()))
    if DEFAULT.name not in gains:
        return Recommendation(why=("training was not timed: nothing to choose from",))
    timed = [variant for variant in VARIANTS[1:] if variant.name in gains]
    verdicts = {variant.name: _verdict(variant, results) for variant in timed}
    # Of the variants that set the same option, the fastest.
    best: dict[Any, Variant] = {}
    for variant in sorted(timed, key=lambda variant: gains[variant.name]):
        if gains[variant.name] >= GAIN and verdicts[variant.name] is True:
            best[tuple(setting.partition("=")[0] for setting in variant.settings) or variant.name] = variant
    taken = [variant for variant in timed if variant in best.values()]
    words = {True: "not taken", False: "but its numbers are wrong here", None: "but its numbers were not compared"}
    why = [
        f"{v.name}: {gains[v.name]:.2f} times as fast, {'taken' if v in taken else words[verdicts[v.name]]}"
        for v in timed
    ]
    settings = [setting for variant in taken for setting in variant.settings]
    environment = [f"{name}={value}" for variant in taken for name, value in variant.environment.items()]
    micro_batches, reason = _micro_batches(request, settings, results.get("build", ()))
    return Recommendation((*settings, *micro_batches), tuple(environment), (*why, *reason))


def _gains(results: Sequence[Result]) -> dict[str, float]:
    """Returns how many times as fast as the default each variant trains, at the largest batch of both."""
    rows = sorted((r.figures for r in results if r.figures.get("phase") == "train"), key=lambda row: row["batch"])
    default = {(row["devices"], row["batch"]): row["images_per_s"] for row in rows if row["variant"] == DEFAULT.name}
    pairs = [(row, default.get((row["devices"], row["batch"]))) for row in rows]
    return {row["variant"]: row["images_per_s"] / rate for row, rate in pairs if rate}


def _verdict(variant: Variant, results: Results) -> bool | None:
    """Returns whether all devices compute a variant's numbers right; None where they were not compared.

    A variant of several devices is right only where these train as one does by default, too.
    """
    name = "devices" if variant.together else "numerics"
    # A failure that names no variant concerns all of them.
    names = {variant.name, None} | ({DEFAULT.name} if variant.together else set())
    found = {(each.figures.get("variant"), each.holds) for each in results.get(name, ())}
    if any((each, False) in found for each in names):
        return False
    return True if (variant.name, True) in found else None


def _micro_batches(request: Request, settings: list[str], build: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Returns settings with as few micro-batches as let a preset's batch fit into memory, and why."""
    facts = next((result.figures for result in build if "devices" in result.figures), None)
    if request.preset is None or facts is None:
        return [], []
    devices = len(used_devices(request, list(build)))
    # Logical CPU devices share the memory of the machine.
    memory = device_memory(facts) // (1 if facts["gpus"] else devices)
    for saving in SAVING:
        changed = dataclasses.replace(request, settings=(*request.settings, *settings, *saving))
        config = config_of(changed)
        if count := fewest_micro_batches(config, devices, int(USABLE * memory)):
            share = config.training.batch_size // (count * devices)
            why = f"{count} micro-batches: {share} images at a time on each device fit into {shown_bytes(memory)}"
            own = [f"training.micro_batches={count}"] if count != config.training.micro_batches else []
            return [*saving, *own], [why + not_counted(config)]
    return [], [f"not even one image at a time fits into {shown_bytes(memory)}, by calculation"]


def device_memory(facts: Mapping[str, Any]) -> int:
    """Returns the bytes of the smallest GPU, or of this machine where there is none."""
    sizes = [line["memory.total"].split()[0] for line in facts["nvidia_smi"] if "memory.total" in line]
    if facts["gpus"] and sizes and all(size.isdigit() for size in sizes):
        return min(map(int, sizes)) * 2**20
    return int(facts["memory_bytes"])


def failures(results: Results) -> list[tuple[str, Result]]:
    """Returns the results that do not hold, each with the name of its check."""
    return [(name, each) for name, every in results.items() for each in every if each.holds is False]


def as_json(request: Request, results: Results, recommendation: Recommendation) -> dict[str, Any]:
    """Returns the report as plain values for JSON."""
    return {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "holds": not failures(results),
        "request": dataclasses.asdict(request),
        "checks": {name: [dataclasses.asdict(each) for each in every] for name, every in results.items()},
        "recommendation": dataclasses.asdict(recommendation),
    }


def as_text(request: Request, results: Results, recommendation: Recommendation) -> str:
    """Returns the report for people."""
    return "\n".join(_lines(request, results, recommendation))


def _lines(request: Request, results: Results, recommendation: Recommendation) -> Iterator[str]:
    for name, every in results.items():
        yield f"\n{name}: {CHECKS[name].title}"
        width = max([len(each.what) for each in every], default=0)
        for each in every:
            first = f"  {_MARKS[each.holds]:5}  {each.what:{width}}  "
            yield textwrap.fill(each.message, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
    yield "\nrecommendation"
    yield from (f"  {line}" for line in recommendation.why)
    yield from (f"  in the environment: {line}" for line in recommendation.environment)
    preset = f" --preset {request.preset}" if request.preset else ""
    own = "".join(f" --set {shlex.quote(setting)}" for setting in request.settings)
    yield f"  python train.py{preset}{own} {recommendation.options() or '(the defaults)'}"
    count = sum(each.holds is not None for every in results.values() for each in every)
    if not (failed := failures(results)):
        yield f"\nAll {count} promises that were tried hold here."
        return
    yield f"\n{len(failed)} of {count} promises do not hold here:"
    for name, each in failed:
        line = f"{name}, {each.what}: {each.message}. What to do: {each.advice}"
        yield textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ")
