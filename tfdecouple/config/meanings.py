"""What every option means, read from the docstrings of the config's classes: the one place that says it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any

from tfdecouple.config.run import Config

# "name: meaning" or "name, name: meaning", below "Attributes:"; what is indented deeper goes on with it.
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


def option_meanings() -> dict[str, str]:
    """Returns by the dotted name of each option, in their order, what it means, as one line of plain text.

    >>> option_meanings()["model.steps"][:30]
    'steps of flow per level. The f'
    """
    hints, meanings = typing.get_type_hints(Config), _attributes(Config)
    told: dict[str, str] = {}
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(hints[field.name]):
            inner = _attributes(hints[field.name])
            told |= {f"{field.name}.{each.name}": inner[each.name] for each in dataclasses.fields(hints[field.name])}
        else:
            told[field.name] = meanings[field.name]
    return told


def _attributes(cls: Any) -> dict[str, str]:
    _, _, section = inspect.getdoc(cls).partition("Attributes:\n")  # type: ignore[union-attr]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.partition("\n\n")[0].splitlines():
        entry = _ENTRY.fullmatch(line.strip()) if line.startswith("    ") and line[4] != " " else None
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
