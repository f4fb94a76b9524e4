"""What an examination says: a table for people, and `doctor.json`, whose fields docs/gpu.md lists."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfdecouple.doctor.checks import CHECKS
from tfdecouple.doctor.examination import Request
from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.recommendation import Recommendation

# Raised when a field changes its meaning or goes.
SCHEMA = 1

_WIDTH = 120
_MARKS = {True: "holds", False: "FAILS", None: ""}


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        request: what was looked at.
        found: the findings by the names of the checks.
        recommendation: what to train with.
    """

    request: Request
    found: Mapping[str, Sequence[Finding]]
    recommendation: Recommendation

    @property
    def failures(self) -> list[tuple[str, Finding]]:
        """The findings that do not hold, each with the name of its check."""
        return [(name, one) for name, every in self.found.items() for one in every if one.holds is False]

    @property
    def holds(self) -> bool:
        """Whether every promise holds."""
        return not self.failures

    def plain(self) -> dict[str, Any]:
        """Returns all of it as plain values for JSON."""
        return {
            "schema": SCHEMA,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "holds": self.holds,
            "request": dataclasses.asdict(self.request),
            "checks": {name: [dataclasses.asdict(one) for one in every] for name, every in self.found.items()},
            "recommendation": dataclasses.asdict(self.recommendation),
        }

    def text(self) -> str:
        """Returns it for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        titles = {check.name: check.title for check in CHECKS}
        for name, every in self.found.items():
            yield f"\n{name}: {titles.get(name, name)}"
            width = max([len(one.what) for one in every], default=0)
            for one in every:
                first = f"  {_MARKS[one.holds]:5}  {one.what:{width}}  "
                yield textwrap.fill(one.said, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
        yield "\nrecommendation"
        for line in self.recommendation.why:
            yield f"  {line}"
        for line in self.recommendation.environment:
            yield f"  in the environment: {line}"
        preset = f" --preset {self.request.preset}" if self.request.preset else ""
        own = "".join(f" --set {shlex.quote(setting)}" for setting in self.request.settings)
        yield f"  python train.py{preset}{own} {self.recommendation.options() or '(the defaults)'}"
        count = sum(one.holds is not None for every in self.found.values() for one in every)
        if self.holds:
            yield f"\nAll {count} promises that were tried hold here."
            return
        yield f"\n{len(self.failures)} of {count} promises do not hold here:"
        for name, one in self.failures:
            yield textwrap.fill(
                f"{name}, {one.what}: {one.said}. What to do: {one.advice}",
                _WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
            )
