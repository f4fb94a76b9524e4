"""What a check found out."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: what was looked at, in a few words.
        holds: whether a promise holds there; None of a measurement, by which nothing is promised.
        said: the result in words.
        advice: what to do where it does not hold; empty where it does.
        figures: the numbers behind it, plain JSON.
    """

    what: str
    holds: bool | None
    said: str
    advice: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a failure that says nothing of what to do."""
        if self.holds is False and not self.advice:
            raise ValueError(f"the finding {self.what!r} does not hold and has no advice")
