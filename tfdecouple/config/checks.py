"""What every check of a config is made of: a condition, and one line for the user where it does not hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tfdecouple.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raises a ConfigError with a message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def shown(value: Any) -> str:
    """Returns a value for a message, in one line and cut short where it is long."""
    text = " ".join(repr(value).splitlines())
    return text if len(text) <= 120 else f"{text[:100]} ... ({len(text):,} characters)"


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuses a value of the option `name` that is none of the choices."""
    choices = tuple(choices)
    check(value in choices, f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, choices))}")


def at_least(name: str, value: float, least: float) -> None:
    """Refuses a value of the option `name` below `least`, and NaN."""
    check(value >= least, f"{name} is {value}; it must be at least {least}")
