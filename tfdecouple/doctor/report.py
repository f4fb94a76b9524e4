"""The report of `doctor`: a text, `doctor.json` (docs/gpu.md lists its fields), and recommended options of training."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfdecouple.doctor.check_runner import CHECKS
from tfdecouple.doctor.result import DEFAULT, VARIANTS, Request, Result

Results = Mapping[str, Sequence[Result]]

# Version of the JSON report, raised when a field changes its meaning or is removed.
SCHEMA = 1
# Smallest gain in speed for which another option is recommended.
GAIN = 1.05
_WIDTH = 120
_MARKS = {True: "holds", False: "FAILS", None: ""}


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The options of training that `doctor` recommends on this machine.

    Attributes:
        settings: the settings `NAME=VALUE` for the option `--set`; empty if the defaults are the best.
        why: the reasons, one sentence each.
    """

    settings: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

    def options(self) -> str:
        """Returns the recommended settings as command-line options: `--set NAME=VALUE ...`."""
        return " ".join(f"--set {setting}" for setting in self.settings)


def recommend(results: Results) -> Recommendation:
    """Returns the fastest setting of each option whose numbers are right and whose gain is at least `GAIN`."""
    rates = {
        (row["variant"], row["batch"]): row["images_per_s"]
        for row in (result.figures for result in results.get("speed", ()))
        if row.get("phase") == "train" and row["devices"] == 1
    }
    batches = [batch for name, batch in sorted(rates, key=lambda key: key[1]) if name == DEFAULT.name]
    if not batches:
        return Recommendation(why=("training was not timed: nothing to choose from",))
    compared = {(result.figures.get("variant"), result.holds) for result in results.get("numerics", ())}
    best: dict[str, tuple[float, str]] = {}
    why = []
    for variant in VARIANTS[1:]:
        # The last gain counts: it is measured at the largest batch size that both variants have.
        gains = [rates[variant.name, b] / rates[DEFAULT.name, b] for b in batches if (variant.name, b) in rates]
        if not gains:
            continue
        # A failure that names no variant concerns all variants.
        is_wrong = bool({(variant.name, False), (None, False)} & compared)
        is_right = not is_wrong and (variant.name, True) in compared
        verdict = "are wrong here" if is_wrong else "are right" if is_right else "were not compared"
        why.append(f"{variant.name}: {gains[-1]:.2f} times as fast as {DEFAULT.name}; its numbers {verdict}")
        (setting,) = variant.settings
        option = setting.partition("=")[0]
        if is_right and gains[-1] >= max(GAIN, best.get(option, (0, ""))[0]):
            best[option] = gains[-1], setting
    return Recommendation(tuple(setting for _, setting in best.values()), tuple(why))


def find_failures(results: Results) -> list[tuple[str, Result]]:
    """Returns the results whose promise does not hold, each with the name of its check."""
    return [(name, result) for name, each in results.items() for result in each if result.holds is False]


def make_json(request: Request, results: Results, recommendation: Recommendation) -> dict[str, Any]:
    """Returns the report as plain values for JSON."""
    return {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "holds": not find_failures(results),
        "request": dataclasses.asdict(request),
        "checks": {name: [dataclasses.asdict(result) for result in each] for name, each in results.items()},
        "recommendation": dataclasses.asdict(recommendation),
    }


def make_text(request: Request, results: Results, recommendation: Recommendation) -> Iterator[str]:
    """Yields the lines of the report as a text for people."""
    for name, each in results.items():
        yield f"\n{name}: {CHECKS[name].title}"
        width = max([len(result.what) for result in each], default=0)
        for result in each:
            first = f"  {_MARKS[result.holds]:5}  {result.what:{width}}  "
            yield textwrap.fill(result.message, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
    yield "\nrecommendation"
    yield from (f"  {line}" for line in recommendation.why)
    preset = f" --preset {request.preset}" if request.preset else ""
    own = "".join(f" --set {shlex.quote(setting)}" for setting in request.settings)
    yield f"  python train.py{preset}{own} {recommendation.options() or '(the defaults)'}"
    count = sum(result.holds is not None for each in results.values() for result in each)
    failures = find_failures(results)
    if not failures:
        yield f"\nAll {count} promises that were tried hold here."
    else:
        yield f"\n{len(failures)} of {count} promises do not hold here:"
    for name, result in failures:
        line = f"{name}, {result.what}: {result.message}. What to do: {result.advice}"
        yield textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ")
